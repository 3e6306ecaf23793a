"""Cross-entropy without the logits of a whole batch.

With BLOOM's vocabulary of 250,880 tokens, the logits of one sample of 2,048 tokens take 2 GiB in float32, and their
gradients take as much. Here one chunk of positions is computed at a time, together with its gradients. So only one
chunk's logits exist at a time, and no logits are computed twice. Liger's fused loss works in this way (Hsu et al. 2024,
arXiv 2410.10989); this is an implementation in plain torch for every device.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from teacherlm.catalog.text_parts import PARTS
from teacherlm.finetune.collators import NO_LOSS
from teacherlm.finetune.soft_targets import SoftTargets
from teacherlm.finetune.token_losses import loss_and_gradient
from teacherlm.runtime.compat.of_transformers import forget_loss_function
from teacherlm.runtime.loading import base_model

CHUNK = 2**26
"""Maximum number of logits that exist at a time: 256 MiB in float32."""
SCORES = "scores_of_batch"
"""The attribute of the model inside any adapters with the teacher's scores of a batch, if it has been written by the
student (on_policy.py)."""
SCALED = ("logit_scale", "logits_scaling", "final_logit_softcapping", "output_multiplier_scale")
"""Settings of models that change their logits after the matrix product."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum over positions of token weight x cross-entropy of softmax(hidden @ weight.T) with the label.

    Args (of apply):
        hidden_ND: the hidden states of the last layer.
        weight_VD: the weight of the output layer.
        labels_N: the next tokens, int64; positions with NO_LOSS are skipped.
        weights_N: the weight of each position in the sum, float32.
        parts_N: the part that each position belongs to, or None.
        sums_P: the sums of the parts, to which those of these positions are added, or None.
        soft: the teacher's distributions (soft_targets.py, on_policy.py), or None.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, labels_N, weights_N, parts_N=None, sums_P=None, soft=None):
        device = hidden_ND.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        matrix_VD = weight_VD.to(compute)
        exact = torch.promote_types(compute, torch.float32)  # 16 bits are too few for sums over a vocabulary
        # In float16, small gradients would vanish before the loss scale is applied: the largest weight is 1 until then.
        scale = weights_N.max().clamp(min=torch.finfo(weights_N.dtype).tiny)
        hidden_grad_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=exact, device=device)
        kept = (labels_N != NO_LOSS).nonzero()[:, 0]
        with torch.autocast(device, enabled=False):
            for places in kept.split(max(1, CHUNK // len(weight_VD))):
                rows_ND, weight_N1 = hidden_ND[places].to(compute), (weights_N[places, None] / scale).to(exact)
                logits_NV = (rows_ND @ matrix_VD.T).to(exact)
                if soft is None:
                    loss_N1, grad_NV = loss_and_gradient(logits_NV, labels_N[places], weight_N1)
                else:
                    loss_N1, grad_NV = soft.loss_and_gradient(logits_NV, labels_N[places], weight_N1, places)
                loss += loss_N1.sum()
                if sums_P is not None:
                    sums_P.index_add_(0, parts_N[places], (loss_N1[:, 0] * scale).to(sums_P.dtype))
                grad_NV = grad_NV.to(compute)
                if hidden_grad_ND is not None:
                    hidden_grad_ND[places] = (grad_NV @ matrix_VD).to(hidden_ND.dtype)
                if weight_grad_VD is not None and compute == weight_VD.dtype:
                    weight_grad_VD.addmm_(grad_NV.T, rows_ND)
                elif weight_grad_VD is not None:
                    weight_grad_VD += grad_NV.T @ rows_ND
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD, scale)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, grad):
        *gradients, scale = ctx.saved_tensors
        both = (None if part is None else part.mul_((grad * scale).to(part.dtype)) for part in gradients)
        return *both, None, None, None, None, None


def scores_of(inner: PreTrainedModel) -> Any:
    """The teacher's scores of the batch that comes (on_policy.Scores), or None."""
    return getattr(inner, SCORES, None)


def zeros_of_parts(device: torch.device) -> torch.Tensor:
    """A sum for each of PARTS."""
    return torch.zeros(len(PARTS), dtype=torch.float32, device=device)


def use_chunked_loss(model: PreTrainedModel, whole: bool = False, share: float = 0.0) -> Callable[[], None]:
    """Let a causal model return `loss`, the sum of token weight x cross-entropy, for `labels` and
    `token_weights` [B, T].

    If the call has `parts` [B, T], the sums of the parts are in the attribute `part_losses` of the model inside any
    adapters afterwards. The labels are already the next tokens. The sum is computed in the call of the output layer,
    because ZeRO-3 gathers the layer's weights only there. A model computes all logits at once if it changes them after
    the matrix product, or if its output layer is not a plain linear layer without bias.

    Args:
        whole: whether to compute all logits at once for any model.
        share: the weight of the teacher's distributions, in batches that have some (soft_targets.py).

    Returns:
        A function that restores the model's original loss.
    """
    inner = base_model(model)
    head = inner.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None
    text = inner.config.get_text_config()
    plain = plain and not whole and not any(getattr(text, name, None) for name in SCALED)
    batch: dict[str, Any] = {}

    def begin(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        batch["labels"], batch["token_weights"] = kwargs["labels"].flatten(), kwargs.pop("token_weights").flatten()
        parts = kwargs.pop("parts", None)
        batch["soft"] = scores_of(inner) or SoftTargets.of_batch(kwargs, batch["labels"].numel(), share)
        batch["parts"] = None if parts is None else parts.flatten()
        batch["sums"] = inner.part_losses = None if parts is None else zeros_of_parts(parts.device)
        return args, kwargs

    def chunked(self: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        of_batch = (batch[name] for name in ("labels", "token_weights", "parts", "sums", "soft"))
        return ChunkedCrossEntropy.apply(hidden.flatten(0, -2), self.weight, *of_batch)

    def finish(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if plain:
            return logits
        logits_NV = logits.flatten(0, -2).float()
        losses_N = torch.nn.functional.cross_entropy(logits_NV, batch["labels"], ignore_index=NO_LOSS, reduction="none")
        if batch["soft"] is not None:
            kept = (batch["labels"] != NO_LOSS).nonzero()[:, 0]
            of_kept = batch["soft"].losses(losses_N[kept], logits_NV[kept], kept)
            losses_N = losses_N.index_put((kept,), of_kept)
        losses_N = losses_N * batch["token_weights"]
        if batch["sums"] is not None:
            batch["sums"].index_add_(0, batch["parts"], losses_N.detach().to(batch["sums"].dtype))
        return losses_N.sum()

    hook = model.register_forward_pre_hook(begin, with_kwargs=True)
    if plain:
        head.forward = types.MethodType(chunked, head)
    inner.loss_function = finish

    def undo() -> None:
        hook.remove()
        if plain:
            del head.forward
        forget_loss_function(inner)

    return undo
