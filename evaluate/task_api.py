"""Task files in the reference's API, on the pinned lm-eval library.

The reference's tasks are written for lm-eval 0.2 / 0.3: `from lm_eval.base import rf, Task`, and `construct_requests`
returns requests like `ll, _ = rf.loglikelihood(ctx, "A")`. The library has neither any more. `install` makes these two
names importable; the Task below carries such a task through lm-eval 0.4's evaluator, unchanged.
"""

import importlib.util
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import lm_eval.api.task
from lm_eval.api.instance import Instance

from teacherlm.errors import UserError

REQUEST_TYPES = {
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "greedy_until": "generate_until",
}
"""The old name of each kind of request, and the library's."""


@dataclass(frozen=True)
class Request:
    """One question to the model. `part` picks one of several answers: a log-likelihood is (sum, whether greedy)."""

    kind: str
    arguments: tuple
    part: int | None = None

    def __iter__(self) -> Iterator["Request"]:
        if self.kind != "loglikelihood":
            raise TypeError(f"{self.kind} has one answer, not two to unpack")
        return iter((self[0], self[1]))

    def __getitem__(self, part: int) -> "Request":
        return Request(self.kind, self.arguments, part)


class RequestFactory:
    """`rf`: makes requests by the old names."""

    def loglikelihood(self, context: str, continuation: str) -> Request:
        return Request("loglikelihood", (context, continuation))

    def loglikelihood_rolling(self, text: str) -> Request:
        return Request("loglikelihood_rolling", (text,))

    def greedy_until(self, context: str, until: Any) -> Request:
        until = until if isinstance(until, dict) else {"until": until}
        return Request("greedy_until", (context, {"do_sample": False, **until}))


class Task(lm_eval.api.task.Task):
    """The base class of task files: lm-eval's own, with the old `construct_requests(doc, ctx)` and request parts."""

    OUTPUT_TYPE = "loglikelihood"

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, rank: int = 0, world_size: int = 1, **_: Any
    ) -> None:
        """Make the library's Instances from the requests of every sample of this rank."""
        self._instances = []
        self._parts: list[int | None] = []
        shots = self.config.num_fewshot or 0
        for doc_id, doc in self.doc_iterator(rank=rank, limit=limit, samples=samples, world_size=world_size):
            context = self.fewshot_context(doc, shots, rnd=self.fewshot_rnd or random.Random(0))
            requests = self.construct_requests(doc, context)
            for number, request in enumerate([requests] if isinstance(requests, Request) else requests):
                instance = Instance(
                    request_type=REQUEST_TYPES[request.kind],
                    doc=doc,
                    arguments=request.arguments,
                    idx=number,
                    metadata=(self.config.task, doc_id, 1),
                )
                self._instances.append(instance)
                self._parts.append(request.part)

    def apply_filters(self) -> None:
        """Take the model's first answer to each request, and of it the part that the task asked for."""
        super().apply_filters()
        for instance, part in zip(self._instances, self._parts):
            if part is not None:
                instance.filtered_resps = {key: answer[part] for key, answer in instance.filtered_resps.items()}


def install() -> None:
    """Make `lm_eval.base` (rf, Task) and `lm_eval.metrics` importable for task files."""
    base = types.ModuleType("lm_eval.base", "The old API's names; see evaluate/task_api.py.")
    base.Task, base.rf = Task, RequestFactory()
    sys.modules["lm_eval.base"] = base
    sys.modules["lm_eval.metrics"] = lm_eval.api.metrics


def load_task_file(path: Path) -> list[type[Task]]:
    """The task classes that a file defines.

    Raises:
        UserError: the file cannot be imported, defines no task, or a task lacks required methods (they are named).
    """
    install()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # task files may build on one another
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Task)]
    classes = [c for c in classes if c.__module__ == path.stem]
    if not classes:
        raise UserError(f"{path}: no class that is derived from lm_eval.base.Task")
    for found in classes:
        if found.__abstractmethods__:
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise UserError(f"{path}: the class {found.__name__} lacks {missing}")
    return classes
