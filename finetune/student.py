"""The student as it is trained, and the collator whose batches it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adapters import load_with_adapters
from chunked_loss import use_chunked_loss
from collators import PackingCollator, PaddingCollator
from processes import say

from teacherlm.errors import UserError, reason
from teacherlm.loading import load_model
from teacherlm.packed_attention import use_packing


def load_student(own: Any, folder: Path, tokenizer: Any) -> tuple[torch.nn.Module, Callable]:
    """The model in float32 (mixed precision and DeepSpeed keep their own copies) and its collator.

    Raises:
        UserError: it cannot be loaded, or not with the attention that was asked for.
    """
    if own.peft == "none":
        model = load_model(folder, dtype=torch.float32)
    else:
        model = load_with_adapters(folder, own.peft, own.peft_rank)
    collate: Callable = PackingCollator(own.loss_average)
    try:
        packed = own.packing and use_packing(model, own.attention)  # after peft: it calls the model's forward itself
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {own.attention}: {reason(error)}") from error
    if not packed:
        if own.packing:
            say(f"finetune: {model.config.model_type} models are padded: their attention cannot be replaced")
        collate = PaddingCollator(own.loss_average, tokenizer.pad_token_id)
    use_chunked_loss(model)
    return model, collate
