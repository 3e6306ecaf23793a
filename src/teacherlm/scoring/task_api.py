"""The API of lm-eval 0.2 and 0.3 for task files, on top of the pinned lm-eval library.

The reference's tasks are written for those versions: they use `from lm_eval.base import rf, Task`, and their
`construct_requests` returns requests such as `ll, _ = rf.loglikelihood(ctx, "A")`. The library no longer has these
names. With the class Task below, such a task runs unchanged in lm-eval 0.4's evaluator. old_modules.py makes the old
names importable.
"""

import functools
import inspect
import math
import operator
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import lm_eval.api.task
import numpy as np
from lm_eval.api.instance import Instance

from teacherlm.core.errors import UserError, reason
from teacherlm.core.terminal import shown
from teacherlm.runtime.compat.of_lm_eval import set_instances
from teacherlm.scoring.task_data import load_samples
from teacherlm.scoring.task_files import in_folder

REQUEST_TYPES = {
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "greedy_until": "generate_until",
}
"""Maps the old name of each kind of request to the library's name."""


@dataclass(frozen=True)
class Request:
    """A request to the model. `part` selects a part of the answer, which is (sum, whether greedy) for loglikelihood."""

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
    """The class of `rf`, which makes requests by their old names."""

    def loglikelihood(self, context: str, continuation: str) -> Request:
        return Request("loglikelihood", (context, continuation))

    def loglikelihood_rolling(self, text: str) -> Request:
        return Request("loglikelihood_rolling", (text,))

    def greedy_until(self, context: str, until: Any) -> Request:
        settings = dict(until) if isinstance(until, Mapping) else {"until": until}
        if "max_length" in settings:  # its name in lm-eval 0.3
            settings["max_gen_toks"] = settings.pop("max_length")
        return Request("greedy_until", (context, {"do_sample": False, **settings}))


class Task(lm_eval.api.task.Task):
    """The base class of task files: lm-eval's class, with what a task of lm-eval 0.3 relies on.

    This is `construct_requests(doc, ctx)` with parts of requests, `fewshot_context` with a description, and loading of
    samples by DATASET_PATH and DATASET_NAME.
    """

    OUTPUT_TYPE = "loglikelihood"
    TEST_SETS = Path("lm_eval/datasets")
    """The folder that replaces `lm_eval/datasets` in a DATASET_PATH."""
    orders: Sequence[Callable[[dict], dict]] = (lambda doc: doc,)
    """Functions that reorder the choices of a sample. The question is asked once per function; see permutations.py."""

    def __init__(self, data_dir: str | None = None, cache_dir: str | None = None, download_mode: Any = None):
        if self.DATASET_PATH:
            self.DATASET_PATH = in_folder(str(self.DATASET_PATH), self.TEST_SETS)
        super().__init__(data_dir, cache_dir, download_mode)

    def download(self, data_dir: str | None = None, cache_dir: str | None = None, download_mode: Any = None) -> None:
        kwargs = {"data_dir": data_dir, "cache_dir": cache_dir, "download_mode": download_mode}
        try:
            self.dataset = load_samples(self.DATASET_PATH, self.DATASET_NAME, **kwargs)
        except Exception as error:  # from the data, the hub, the network or a loading script
            where = f"DATASET_PATH {self.DATASET_PATH!r}, DATASET_NAME {self.DATASET_NAME!r}"
            raise UserError(
                f"{file_of(type(self))}: its samples ({where}) cannot be loaded: {reason(error)}"
            ) from error

    @functools.cached_property
    def eval_docs(self) -> Sequence[Any]:
        """The samples in a form that can be iterated several times. Old tasks may return a `map` or a generator.

        Raises:
            UserError: the task has no samples.
        """
        name = "test_docs" if self.has_test_docs() else "validation_docs"
        if name == "validation_docs" and not self.has_validation_docs():
            raise UserError(
                f"{file_of(type(self))}: the class {type(self).__name__} has no samples to score: has_test_docs() or "
                "has_validation_docs() must return True, and test_docs() or validation_docs() the samples"
            )
        docs = getattr(self, name)()
        if isinstance(docs, Mapping) or not isinstance(docs, Iterable):
            has = f" of {', '.join(map(str, docs))}" if docs else ""
            what = f"{type(docs).__name__}{has}"
            raise UserError(f"{file_of(type(self))}: {name}() returned a {what} where samples were expected")
        docs = docs if isinstance(docs, Sized) and hasattr(docs, "__getitem__") else list(docs)
        if not len(docs):
            raise UserError(f"{file_of(type(self))}: {name}() returned no samples")
        return docs

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, rank: int = 0, world_size: int = 1, **_: Any
    ) -> None:
        """Make the library's Instances for the requests of all samples of this rank."""
        from teacherlm.scoring.task_classes import task_errors

        instances: list[Instance] = []
        self.parts_asked: list[int | None] = []
        file = file_of(type(self))
        for doc_id, doc in self.doc_iterator(rank=rank, limit=limit, samples=samples, world_size=world_size):
            where = f"sample {doc_id} of {self.config.task}"
            with task_errors(where, always=file):
                if fault := self.sample_fault(doc):
                    raise UserError(f"{file}: {where}: {fault}")
                requests = [request for order in self.orders for request in self.requests(order(doc))]
            if not requests:
                raise UserError(f"{file}: {where}: construct_requests() returned no request")
            for number, request in enumerate(requests):
                if fault := request_fault(request):
                    raise UserError(f"{file}: {where}: {fault}")
                instance = Instance(
                    request_type=REQUEST_TYPES[request.kind],
                    doc=doc,
                    arguments=request.arguments,
                    idx=number,
                    metadata=(self.config.task, doc_id, 1),
                )
                instances.append(instance)
                self.parts_asked.append(request.part)
        set_instances(self, instances)

    def sample_fault(self, doc: Any) -> str:
        """Why this kind of task cannot score a sample; "" when nothing is wrong."""
        return ""

    def requests(self, doc: Any) -> list[Request]:
        """The requests for a sample."""
        constructed = self.construct_requests(doc, self.context(doc))
        return [constructed] if isinstance(constructed, Request) else list(constructed or ())

    def context(self, doc: Any) -> str:
        """The result of `fewshot_context` for a sample. As in lm-eval 0.3, it gets its arguments by keyword."""
        given = {"num_fewshot": self.config.num_fewshot or 0, "rnd": self.fewshot_rnd, "description": ""}
        taken = inspect.signature(self.fewshot_context).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            given = {parameter.name: given[parameter.name] for parameter in taken if parameter.name in given}
        return self.fewshot_context(doc=doc, **given)

    def fewshot_context(
        self,
        doc: Any,
        num_fewshot: int,
        provide_description: bool | None = None,
        rnd: random.Random | None = None,
        description: str | None = None,
    ) -> str:
        """The description and an empty line (if there is a description), then the examples, then the question."""
        context = super().fewshot_context(doc, num_fewshot, rnd=rnd)
        return f"{description}\n\n{context}" if description else context

    def apply_filters(self) -> None:
        """Take the model's first answer to each request, and the part of it that the task uses."""
        super().apply_filters()
        for instance, part in zip(self.instances, self.parts_asked):
            if part is not None:
                instance.filtered_resps = {key: answer[part] for key, answer in instance.filtered_resps.items()}


class HFTask(Task):
    """A task class of lm-eval 0.2: its splits are those of its dataset; `_convert_standard` converts each sample."""

    def download(self, data_dir: str | None = None, cache_dir: str | None = None, download_mode: Any = None) -> None:
        super().download(data_dir, cache_dir, download_mode)
        self.data = self.dataset

    def has_training_docs(self) -> bool:
        return "train" in self.data

    def has_validation_docs(self) -> bool:
        return "validation" in self.data

    def has_test_docs(self) -> bool:
        return "test" in self.data

    def _convert_standard(self, doc: Any) -> Any:
        return doc

    def training_docs(self) -> list[Any]:
        return [self._convert_standard(doc) for doc in self.data["train"]]

    def validation_docs(self) -> Iterator[Any]:
        return map(self._convert_standard, self.data["validation"])

    def test_docs(self) -> Iterator[Any]:
        return map(self._convert_standard, self.data["test"])


class MultipleChoiceTask(Task):
    """A task whose samples have `choices` and `gold`, the index of the right choice.

    `acc` compares the log-likelihoods of the choices, and `acc_norm` compares the log-likelihoods per character.
    """

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        if fault := choices_fault(doc) or gold_fault(doc):
            raise UserError(f"{file_of(type(self))}: a sample of {self.config.task}: {fault}")
        return f" {doc['choices'][doc['gold']]}"

    def sample_fault(self, doc: Any) -> str:
        """What is wrong with a sample. A task file that overrides these methods may use samples of another form."""
        asks = type(self).construct_requests is MultipleChoiceTask.construct_requests
        judges = type(self).process_results is MultipleChoiceTask.process_results
        fault = choices_fault(doc) if asks or judges else ""
        if not fault and judges:
            fault = gold_fault(doc)
        if not fault and asks and not is_text(question := self.doc_to_text(doc)):
            fault = f"its question is {shown(question)}; doc_to_text() must return a text that is not empty"
        return fault

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
    """A task that scores whole texts. A text's log-likelihood is divided by `count_words` or `count_bytes`."""

    def has_training_docs(self) -> bool:
        return False

    def fewshot_context(self, doc: Any, num_fewshot: int, **_: Any) -> str:
        if num_fewshot:
            raise UserError(f"--num_fewshot {num_fewshot}: {self.config.task} scores whole texts and takes no examples")
        return ""

    def sample_fault(self, doc: Any) -> str:
        asks = type(self).construct_requests is PerplexityTask.construct_requests
        if asks and not is_text(text := self.doc_to_target(doc)):
            return f"its text is {shown(text)}; doc_to_target() must return a text that is not empty"
        return ""

    def doc_to_decontamination_query(self, doc: Any) -> Any:
        return doc

    def doc_to_text(self, doc: Any) -> str:
        return ""

    def doc_to_target(self, doc: Any) -> Any:
        return doc

    def construct_requests(self, doc: Any, ctx: str) -> Request:
        return rf.loglikelihood_rolling(self.doc_to_target(doc))

    def process_results(self, doc: Any, results: Sequence[float]) -> dict[str, tuple[float, int]]:
        (likelihood,) = results
        of_words, of_bytes = (likelihood, self.count("words", doc)), (likelihood, self.count("bytes", doc))
        return {"word_perplexity": of_words, "byte_perplexity": of_bytes, "bits_per_byte": of_bytes}

    def aggregation(self) -> dict[str, Callable]:
        bits = lm_eval.api.metrics.bits_per_byte
        return {"word_perplexity": weighted_perplexity, "byte_perplexity": weighted_perplexity, "bits_per_byte": bits}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), False)

    def count(self, what: str, doc: Any) -> int:
        """Number of words or bytes of a sample. As in lm-eval 0.3, `count_words` and `count_bytes` get the sample.

        If the sample is not a text and the task does not override the method, the scored text is counted.
        """
        counter = getattr(self, f"count_{what}")
        default = getattr(PerplexityTask, f"count_{what}").__func__
        is_own = getattr(counter, "__func__", None) is not default
        return counter(doc if is_own or isinstance(doc, str) else self.doc_to_target(doc))

    @classmethod
    def count_bytes(cls, doc: str) -> int:
        return len(doc.encode("utf-8"))

    @classmethod
    def count_words(cls, doc: str) -> int:
        return len(re.split(r"\s+", doc))


def weighted_perplexity(items: Sequence[tuple[float, int]]) -> float:
    """The library's weighted perplexity; infinite if a float cannot hold it, as for a text of one very long word."""
    try:
        return lm_eval.api.metrics.weighted_perplexity(items)
    except OverflowError:
        return math.inf


rf = RequestFactory()


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def request_fault(request: Any) -> str:
    """What is wrong with a request; "" when nothing is wrong."""
    if not isinstance(request, Request):
        return f"construct_requests() returned {shown(request)} where a request of rf was expected"
    context = request.arguments[0]
    if request.kind == "loglikelihood":
        _, choice = request.arguments
        if not isinstance(context, str):
            return f"the context is {shown(context)}; a text was expected"
        if not isinstance(choice, str) or not choice:
            return f"the choice is {shown(choice)}; a text that is not empty was expected"
    elif not is_text(context):
        return f"the text is {shown(context)}; a text that is not empty was expected"
    return ""


def choices_fault(doc: Any) -> str:
    """What is wrong with the `choices` of a sample; "" when nothing is wrong."""
    if not isinstance(doc, Mapping):
        return f"it is {shown(doc)}; an object with choices and gold was expected"
    if "choices" not in doc:
        return f"it has no choices (its fields: {', '.join(map(str, doc))}); a list of texts was expected"
    choices = doc["choices"]
    if isinstance(choices, str | Mapping) or not isinstance(choices, Iterable):
        return f"its choices are {shown(choices)}; a list of texts was expected"
    choices = list(choices)
    if len(choices) < 2:
        return f"it has {'only one choice' if choices else 'no choices'}; at least two were expected"
    for number, choice in enumerate(choices):
        if not is_text(choice):
            return f"its choice {number} is {shown(choice)}; a text that is not empty was expected"
    return ""


def gold_fault(doc: Mapping[str, Any]) -> str:
    """What is wrong with the `gold` of a sample with valid choices; "" when nothing is wrong."""
    last = len(doc["choices"]) - 1
    expected = f"the number of the right choice, 0 to {last}, was expected"
    if "gold" not in doc:
        return f"it has no gold (its fields: {', '.join(map(str, doc))}); {expected}"
    try:
        right = 0 <= operator.index(doc["gold"]) <= last
    except TypeError:
        right = False
    return "" if right else f"its gold is {doc['gold']!r:.60}; {expected}"


def file_of(kind: type) -> str:
    """The file that defines a task."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__
