"""The private interfaces of peft (0.17 and later) that this project uses."""

import torch


def merged_weights(base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model with its LoRA adapters added, under the names that the model uses without adapters.

    The public `merge_and_unload` changes the model itself, and `unmerge_adapter` restores the weights only up to
    rounding. During training the weights must stay the same, bit by bit.

    Args:
        base: the model inside the peft model; its layers hold the adapters.
    """
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in base.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
    merged = {}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        merged[name.replace(".base_layer.", ".")] = tensor + deltas[layer] if layer in deltas else tensor
    return merged
