"""Task files in the reference's API, on the pinned lm-eval library.

The reference's tasks are written for lm-eval 0.2 / 0.3: `from lm_eval.base import rf, Task`, and `construct_requests`
returns requests like `ll, _ = rf.loglikelihood(ctx, "A")`. The library has neither any more. `install` makes these two
names importable; the Task below carries such a task through lm-eval 0.4's evaluator, unchanged.
"""

import functools
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import lm_eval.api.task
import numpy as np
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
    orders: Sequence[Callable[[dict], dict]] = (lambda doc: doc,)
    """What makes of a sample each of those that are asked; see permutations.py."""

    @functools.cached_property
    def eval_docs(self) -> Sequence[Any]:
        """The samples, gone through more than once, which those of old tasks (a `map`, a generator) cannot be."""
        docs = self.test_docs() if self.has_test_docs() else self.validation_docs()
        return docs if hasattr(docs, "__getitem__") else list(docs)

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, rank: int = 0, world_size: int = 1, **_: Any
    ) -> None:
        """Make the library's Instances from the requests of every sample of this rank."""
        self._instances = []
        self._parts: list[int | None] = []
        shots = self.config.num_fewshot or 0
        for doc_id, doc in self.doc_iterator(rank=rank, limit=limit, samples=samples, world_size=world_size):
            requests: list[Request] = []
            for order in self.orders:
                asked = order(doc)
                context = self.fewshot_context(asked, shots, rnd=self.fewshot_rnd or random.Random(0))
                constructed = self.construct_requests(asked, context)
                requests += [constructed] if isinstance(constructed, Request) else constructed
            for number, request in enumerate(requests):
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


class MultipleChoiceTask(Task):
    """Samples with `choices` and `gold`, its index: `acc` by log-likelihood, `acc_norm` by log-likelihood a letter."""

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        return f" {doc['choices'][doc['gold']]}"

    def construct_requests(self, doc: Mapping[str, Any], ctx: str) -> list[Request]:
        return [rf.loglikelihood(ctx, f" {choice}")[0] for choice in doc["choices"]]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, float]:
        lengths = [len(choice) for choice in doc["choices"]]
        chosen = {"acc": np.argmax(results), "acc_norm": np.argmax(np.divide(results, lengths))}
        return {metric: float(choice == doc["gold"]) for metric, choice in chosen.items()}

    def aggregation(self) -> dict[str, Callable]:
        return {"acc": lm_eval.api.metrics.mean, "acc_norm": lm_eval.api.metrics.mean}

    def higher_is_better(self) -> dict[str, bool]:
        return {"acc": True, "acc_norm": True}


class PerplexityTask(Task):
    """Texts, each scored as a whole; `doc_to_target` gives them."""

    def has_training_docs(self) -> bool:
        return False

    def doc_to_text(self, doc: Any) -> str:
        return ""

    def construct_requests(self, doc: Any, ctx: str) -> Request:
        return rf.loglikelihood_rolling(self.doc_to_target(doc))

    def process_results(self, doc: Any, results: Sequence[float]) -> dict[str, tuple[float, int]]:
        text = self.doc_to_target(doc)
        of_words, of_bytes = (results[0], len(text.split())), (results[0], len(text.encode()))
        return {"word_perplexity": of_words, "byte_perplexity": of_bytes, "bits_per_byte": of_bytes}

    def aggregation(self) -> dict[str, Callable]:
        perplexity = lm_eval.api.metrics.weighted_perplexity
        bits = lm_eval.api.metrics.bits_per_byte
        return {"word_perplexity": perplexity, "byte_perplexity": perplexity, "bits_per_byte": bits}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), False)


rf = RequestFactory()


def install() -> None:
    """Make `lm_eval.base` (rf, Task and its two kinds) and `lm_eval.metrics` importable for task files."""
    base = types.ModuleType("lm_eval.base", "The old API's names; see evaluate/task_api.py.")
    base.Task, base.MultipleChoiceTask, base.PerplexityTask, base.rf = Task, MultipleChoiceTask, PerplexityTask, rf
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
