"""What this project uses of lm-eval (0.4.9 and later) without a public interface for it."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

Pair = tuple[list[int], list[int]]


def asked_tokens(options: dict[str, Any], default: int) -> int:
    """How many new tokens a request for a generated answer asks for; the library reads several spellings of it."""
    return normalize_gen_kwargs(options, default)["max_gen_toks"]


def longest_input(config: Any, tokenizer: Any) -> int:
    """How many tokens the library would give to a model at most; its `max_length` is for configurations of text."""
    return resolve_max_length(config, tokenizer)


class OpenModel(HFLM):
    """The library's Hugging Face model, whose private methods are those with public names here.

    `loglikelihood`, `loglikelihood_rolling` and `generate_until` are public; the steps in between, which a subclass
    computes in another way, are not.
    """

    def __init__(self, model: Any, **options: Any):
        # The library ties the head to the embedding of any model, also where the checkpoint holds them apart.
        model.tie_weights = lambda: None
        try:
            super().__init__(pretrained=model, **options)
        finally:
            del model.tie_weights

    def given_length(self) -> int | None:
        """The number of tokens that the model was told to take at most (`max_length`); the property of that name, which
        a subclass replaces, has it only where there is one."""
        return self._max_length

    def take_model(self, model: Any) -> None:
        """Use another model from now on; the property `model` cannot be set."""
        self._model = model

    def encode_pair(self, context: str, continuation: str) -> Pair:
        """The tokens of a context and of its continuation."""
        return super()._encode_pair(context, continuation)

    def score_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        """[log-likelihood, whether greedy] of (anything, the context's tokens, the continuation's tokens)."""
        return super()._loglikelihood_tokens(list(requests), disable_tqdm=True)

    def uses_cache(self) -> bool:
        """Whether generation keeps keys and values between tokens, as the library's does in any case."""
        return True

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        return self.encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        return self.score_tokens(requests)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        if self.uses_cache():
            return super()._model_generate(context, max_length, stop, **options)
        generate = self.model.generate
        self.model.generate = lambda **others: generate(**{**others, "use_cache": False})
        try:
            return super()._model_generate(context, max_length, stop, **options)
        finally:
            del self.model.generate


def set_instances(task: Task, instances: list[Instance]) -> None:
    """Give a task its requests, which the property `instances` has from then on.

    A task whose `build_all_requests` is another one has to put them where the library's own puts them.
    """
    task._instances = instances
