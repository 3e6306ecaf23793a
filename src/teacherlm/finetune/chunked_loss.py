"""Cross-entropy without the logits of a whole batch.

With BLOOM's 250,880 tokens the logits of one sample of 2,048 take 2 GiB in float32, and their gradients as much. Here a
chunk of positions is computed at a time and its gradients at once, so that no more than one chunk's logits exist and
none is computed twice (as in Liger's fused loss, Hsu et al. 2024, arXiv 2410.10989, in plain torch for every device).
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from teacherlm.finetune.collators import NO_LOSS
from teacherlm.runtime.compat.of_transformers import forget_loss_function
from teacherlm.runtime.loading import base_model

CHUNK = 2**26
"""Logits that exist at a time: 256 MiB in float32."""
SCALED = ("logit_scale", "logits_scaling", "final_logit_softcapping", "output_multiplier_scale")
"""Settings of models that do more to their logits than one matrix product."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over positions of weight x cross-entropy of softmax(hidden @ weight.T) and the label.

    Args (of apply):
        hidden_ND: of the last layer.
        weight_VD: of the output layer.
        labels_N: int64; NO_LOSS positions are left out.
        shares_N: how much each position counts, float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, labels_N, shares_N):
        device = hidden_ND.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        matrix_VD = weight_VD.to(compute)
        exact = torch.promote_types(compute, torch.float32)  # 16 bits are too few for sums over a vocabulary
        # In float16 small gradients would vanish before the loss scale reaches them: the largest share is 1 until then.
        scale = shares_N.max().clamp(min=torch.finfo(shares_N.dtype).tiny)
        hidden_grad_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=exact, device=device)
        kept = (labels_N != NO_LOSS).nonzero()[:, 0]
        with torch.autocast(device, enabled=False):
            for places in kept.split(max(1, CHUNK // len(weight_VD))):
                rows_ND, share_N1 = hidden_ND[places].to(compute), (shares_N[places, None] / scale).to(exact)
                chunk_loss, grad_NV = loss_and_gradient((rows_ND @ matrix_VD.T).to(exact), labels_N[places], share_N1)
                loss += chunk_loss
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
        return *(None if part is None else part.mul_((grad * scale).to(part.dtype)) for part in gradients), None, None


def loss_and_gradient(logits_NV, labels_N, share_N1):
    """Sum of share x cross-entropy, and its gradient by the logits, which takes their place in memory."""
    logits_NV -= logits_NV.amax(1, keepdim=True)
    chosen_N1 = logits_NV.gather(1, labels_N[:, None])
    total_N1 = logits_NV.exp_().sum(1, keepdim=True)
    loss = ((total_N1.log() - chosen_N1) * share_N1).sum()
    return loss, logits_NV.mul_(share_N1 / total_N1).scatter_add_(1, labels_N[:, None], -share_N1)


def use_chunked_loss(model: PreTrainedModel, whole: bool = False) -> Callable[[], None]:
    """Let a causal model return `loss`, the sum of shares x cross-entropy, for `labels` and `shares` [B, T].

    Labels are the next tokens already. The sum is computed where the output layer is called, with its weights: ZeRO-3
    has them there and only there. A model whose logits are more than one product, or whose output layer is no plain
    one, computes them all.

    Args:
        whole: compute all logits in any case.

    Returns:
        What gives the model its own loss back.
    """
    inner = base_model(model)
    head = inner.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None
    text = inner.config.get_text_config()
    plain = plain and not whole and not any(getattr(text, name, None) for name in SCALED)
    batch: dict[str, torch.Tensor] = {}

    def begin(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        batch["labels"], batch["shares"] = kwargs["labels"].flatten(), kwargs.pop("shares").flatten()
        return args, kwargs

    def chunked(self: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        return ChunkedCrossEntropy.apply(hidden.flatten(0, -2), self.weight, batch["labels"], batch["shares"])

    def finish(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if plain:
            return logits
        losses_N = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), batch["labels"], ignore_index=NO_LOSS, reduction="none"
        )
        return (losses_N * batch["shares"]).sum()

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
