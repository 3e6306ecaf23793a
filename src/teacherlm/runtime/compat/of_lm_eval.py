"""The private interfaces of lm-eval (0.4.9 and later) that this project uses."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

Pair = tuple[list[int], list[int]]


def requested_tokens(kwargs: dict[str, Any], default: int) -> int:
    """Maximum number of new tokens in a generation request. The library accepts several names for this option."""
    return normalize_gen_kwargs(kwargs, default)["max_gen_toks"]


def longest_input(config: Any, tokenizer: Any) -> int:
    """Maximum number of tokens that the library would give to a model. Its `max_length` handles text models only."""
    return resolve_max_length(config, tokenizer)


class OpenModel(HFLM):
    """The library's Hugging Face model with public names for its private methods.

    `loglikelihood`, `loglikelihood_rolling` and `generate_until` are public in the library. The steps that they consist
    of are private there, and a subclass here replaces some of them.
    """

    def __init__(self, model: Any, **kwargs: Any):
        # The library ties the head to the embedding of every model, even if the checkpoint stores both tensors.
        model.tie_weights = lambda: None
        try:
            super().__init__(pretrained=model, **kwargs)
        finally:
            del model.tie_weights

    def given_length(self) -> int | None:
        """The `max_length` that was passed to the constructor, or None. The property `max_length` never returns None,
        and a subclass replaces it."""
        return self._max_length

    def take_model(self, model: Any) -> None:
        """Use another model from now on. The public property `model` cannot be set."""
        self._model = model

    def encode_pair(self, context: str, continuation: str) -> Pair:
        """The tokens of a context and of its continuation."""
        return super()._encode_pair(context, continuation)

    def score_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy) for each request (anything, context tokens, continuation tokens)."""
        return super()._loglikelihood_tokens(list(requests), disable_tqdm=True)

    def uses_cache(self) -> bool:
        """Whether generation keeps keys and values between tokens. The library always keeps them."""
        return True

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        return self.encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        return self.score_tokens(requests)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        if self.uses_cache():
            return super()._model_generate(context, max_length, stop, **kwargs)
        generate = self.model.generate
        self.model.generate = lambda **others: generate(**{**others, "use_cache": False})
        try:
            return super()._model_generate(context, max_length, stop, **kwargs)
        finally:
            del self.model.generate


def set_instances(task: Task, instances: list[Instance]) -> None:
    """Set the requests of a task, which its property `instances` then returns.

    A task that overrides `build_all_requests` has to store the requests where the library's method stores them.
    """
    task._instances = instances
