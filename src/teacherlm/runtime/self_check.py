"""Does a fast way of computing a model give the same logits as the library's plain forward pass?

Before the first batch of a stage, the model computes a few short token sequences (check_sequences.py) in the fast way
and in the plain forward pass (plain_pass.py). A way whose logits differ is not used (verdicts.py). So a model for which
the fast ways were not written is computed correctly, only more slowly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from teacherlm.core.errors import UserError, reason
from teacherlm.runtime.check_sequences import make_sequences
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.plain_pass import COMPARED, attention_set, plain_logits

SHOWN = 60
"""Maximum number of characters of a library's error in a message."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits, relative to their spread, that counts as rounding. A wrong computation differs by far
more. The values for 16 bits are used for models whose rounding cannot be measured."""
ROUNDINGS, LOOSEST = 2.0, 0.3
"""In 16 bits a model's rounding is measured (`tolerance_of`). The tolerance is ROUNDINGS times that rounding, but at
most LOOSEST. Two correct ways to compute a model (the library's two attentions, 120 random models of two kinds)
differed by at most 0.7 times the measured rounding."""


@torch.inference_mode()
def tolerance_of(model: PreTrainedModel, dtype: Any, longest: int | None) -> float:
    """Largest difference of logits, relative to their spread, that counts as rounding for this model and dtype.

    How far rounding errors grow depends on the weights. In 16 bits they are large enough to be measured: the plain
    forward pass is repeated with the last bit of the embeddings changed.

    Args:
        longest: maximum number of tokens in a text of the run; None means unknown.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return TOLERANCE.get(dtype, 0.1)
    sequences = make_sequences(base_model(model).config, longest)[-2:]
    generator = torch.Generator().manual_seed(0)

    def change(_: Any, __: Any, embeddings: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(2, embeddings.shape, generator=generator) * 2 - 1
        return (embeddings * (1 + torch.finfo(dtype).eps * signs.to(embeddings.device))).to(embeddings.dtype)

    try:
        with attention_set(model, "eager"):
            expected = plain_logits(model, sequences)
            hook = base_model(model).get_input_embeddings().register_forward_hook(change)
            try:
                found = plain_logits(model, sequences)
            finally:
                hook.remove()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # `expected_logits` reports a forward pass that fails
        return TOLERANCE[dtype]
    # A difference of 0 means that the model does not call its embedding, so nothing was changed.
    return min(LOOSEST, ROUNDINGS * difference(found, expected)) or TOLERANCE[dtype]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest root mean square difference at a position, relative to the spread of the expected logits there."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        usable = other.isfinite()
        spread = torch.where(usable, other, 0).std(-1).clamp(min=1e-6)
        apart = torch.where(usable, one.float().cpu() - other, 0).square().mean(-1).sqrt()
        error = (apart / spread).max().item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def fault_of(compute: Callable[[], Sequence[torch.Tensor]], expected: Sequence[torch.Tensor], tolerance: float) -> str:
    """A description of what is wrong with a way to compute logits; "" when it agrees with the expected logits.

    Args:
        compute: returns the logits of the same sequences; an exception that it raises is a fault as well.
        tolerance: see `tolerance_of`.
    """
    try:
        error = difference(compute(), expected)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a model for which the way was not written can raise anything
        return failure(error)
    return f"differs by {error:.1e}" if error > tolerance else ""


def failure(error: Exception, when: str = "") -> str:
    """The description of a way that raises an error. `when` is a part of the sentence, such as " in training"."""
    return f"fails{when} ({type(error).__name__}: {reason(error)[:SHOWN]})"


def expected_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]], tolerance: float) -> list[torch.Tensor]:
    """The logits [at most COMPARED, V] that every way must give, from plain forward passes with eager attention.

    Args:
        sequences: the sequences of `make_sequences`, or these extended by the same number of tokens each.

    Raises:
        UserError: the model is not a causal decoder (its logits at a position change with later tokens), or the
            library's forward pass fails.
    """
    inner = base_model(model)
    *before, last = sequences
    further = max(0, len(last) - len(before[-1]))
    try:
        with attention_set(model, "eager"):
            expected = plain_logits(model, before)
            expected += plain_logits(model, [last], COMPARED + further)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a model can raise anything
        raise UserError(
            f"{type(inner).__name__} ({inner.config.model_type}) is refused: the library's forward pass fails "
            f"({type(error).__name__}: {reason(error)})"
        ) from error
    require_causal(model, sequences, expected, tolerance)
    expected[-1] = expected[-1][-COMPARED:]
    return expected


def require_causal(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], logits: Sequence[torch.Tensor], tolerance: float
) -> None:
    """Refuse a model whose logits at a position change with later tokens.

    Args:
        logits: the logits of the last positions of each sequence. Those of the last sequence begin at the same position
            as those of the second-to-last.
    """
    one, other = sequences[-2:]
    alike = next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), len(one))
    count = alike - (len(one) - len(logits[-2]))
    if count > 0 and not fault_of(lambda: [logits[-1][:count]], [logits[-2][:count]], tolerance):
        return
    # The two sequences differ in length, which may be the cause. A sequence of the same length decides.
    changed = [*other[:-1], other[0] if other[0] != other[-1] else other[1]]
    with attention_set(model, "eager"):
        if not fault_of(lambda: [plain_logits(model, [changed])[0][:-1]], [logits[-1][-COMPARED:][:-1]], tolerance):
            return
    name, kind = type(base_model(model)).__name__, base_model(model).config.model_type
    raise UserError(
        f"{name} ({kind}) is no causal decoder: what it predicts at a position changes with the tokens after it; a "
        "causal decoder, such as LlamaForCausalLM, was expected"
    )
