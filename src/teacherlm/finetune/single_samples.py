"""Train one sample at a time. This is for models that neither packed nor padded batches compute exactly."""

from collections.abc import Callable
from typing import Any

import torch

from teacherlm.finetune.chunked_loss import scores_of, zeros_of_parts
from teacherlm.finetune.collators import NO_LOSS
from teacherlm.finetune.soft_targets import SoftTargets
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.plain_pass import plain_arguments


def use_single_samples(model: torch.nn.Module, share: float = 0.0) -> Callable[[], None]:
    """Let a causal model return `loss`, the sum of token weight x cross-entropy, for a batch from PaddingCollator.

    Each sample passes through the model's original forward alone, without padding.

    Args:
        share: the weight of the teacher's distributions, in batches that have some (soft_targets.py).

    Returns:
        A function that restores the original forward.
    """
    forward = model.forward
    inner = base_model(model)
    kwargs = plain_arguments(model)
    kwargs.pop("logits_to_keep", None)

    def one_at_a_time(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        token_weights: torch.Tensor,
        parts: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, torch.Tensor]:
        losses = []
        soft = scores_of(inner) or SoftTargets.of_batch(others, labels.numel(), share)
        sums_P = inner.part_losses = None if parts is None else zeros_of_parts(parts.device)
        for row, (ids_T, mask_T, labels_T, weights_T) in enumerate(
            zip(input_ids, attention_mask, labels, token_weights)
        ):
            count = int(mask_T.sum())
            logits_TV = forward(input_ids=ids_T[None, :count], **kwargs).logits[0]
            losses_T = torch.nn.functional.cross_entropy(
                logits_TV.float(), labels_T[:count], ignore_index=NO_LOSS, reduction="none"
            )
            if soft is not None:
                kept = (labels_T[:count] != NO_LOSS).nonzero()[:, 0]
                of_kept = soft.losses(losses_T[kept], logits_TV[kept], kept + row * labels.shape[1])
                losses_T = losses_T.index_put((kept,), of_kept)
            losses_T = losses_T * weights_T[:count]
            losses.append(losses_T.sum())
            if parts is not None and sums_P is not None:
                sums_P.index_add_(0, parts[row, :count], losses_T.detach().to(sums_P.dtype))
        return {"loss": torch.stack(losses).sum()}

    model.forward = one_at_a_time

    def undo() -> None:
        del model.forward

    return undo
