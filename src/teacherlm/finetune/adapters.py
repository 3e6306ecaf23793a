"""Train low-rank adapters instead of all weights: LoRA (Hu et al. 2021, arXiv 2106.09685) and QLoRA (Dettmers et al.
2023, arXiv 2305.14314)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from teacherlm.catalog.adapters import base_reference
from teacherlm.catalog.models import find_model
from teacherlm.core.errors import UserError
from teacherlm.runtime.compat.of_peft import merged_weights
from teacherlm.runtime.gpu import computes_bfloat16
from teacherlm.runtime.loading import base_model, load_model

ADAPTERS = "adapter_model.safetensors"
"""peft's file in a checkpoint with the weights of the adapters."""
MERGED = "merged"
"""Folder in a checkpoint of adapters: the student with the adapters added to its weights."""


def load_with_adapters(folder: Path, name: str, kind: str, rank: int) -> torch.nn.Module:
    """A student with frozen weights (in 4 bits for "qlora") and adapters on its linear layers.

    The scale of the adapters is alpha / rank = 2. All linear layers except the output layer have an adapter, which the
    QLoRA paper found best.

    Args:
        folder: the student's folder.
        name: the name that the user gave for the student. The adapters record the hub id and commit, or the path, that
            it stands for.

    Raises:
        UserError: peft is not installed, or 4 bits were asked for without a GPU.
    """
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ImportError as error:
        raise UserError("--peft needs the package peft; install it with make install") from error
    kwargs: dict[str, Any] = {"dtype": torch.float32}
    if kind == "qlora":
        if not torch.cuda.is_available():
            raise UserError("--peft qlora needs a GPU (bitsandbytes); use --peft lora here")
        kwargs = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16 if computes_bfloat16() else torch.float16,
            )
        }
    model = load_model(folder, **kwargs)
    if kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the Trainer does that
    model.enable_input_require_grads()  # gradient checkpointing needs an input that has a gradient
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    # This must come last: get_peft_model stores the path from which the model was loaded, which may be relative.
    config.base_model_name_or_path, config.revision = base_reference(find_model(name), folder)
    return adapted


def read_adapters(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's adapters by the names of the model's parameters, which also have the name of the
    set of adapters, `default`."""
    found = {}
    for name, weights in load_file(checkpoint / ADAPTERS).items():
        module, _, kind = name.rpartition(".")
        found[f"{module}.default.{kind}"] = weights.float()
    return found


def has_adapters(model: torch.nn.Module) -> bool:
    return hasattr(model, "get_base_model")


def save_merged(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    """Save the student with its adapters added as an ordinary model. The student in training does not change."""
    base = base_model(model)
    base.save_pretrained(folder, state_dict=merged_weights(base))
    tokenizer.save_pretrained(folder)
