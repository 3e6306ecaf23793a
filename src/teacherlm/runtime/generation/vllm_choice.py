"""Whether vLLM can take a model on this machine, and how many GPUs it uses. vLLM is not loaded for this."""

import functools
import importlib.util
import json
from pathlib import Path

from teacherlm.catalog.adapters import is_adapter


@functools.cache
def vllm_lacks(folder: Path, dtype: str) -> str:
    """Why vLLM cannot take a model here; an empty text if it can."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        return "the package vllm is not installed"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if dtype == "int8":
        return "--dtype int8 works only with transformers"
    if is_adapter(folder):
        return "the model is a folder of adapters"
    from teacherlm.runtime.compat.of_vllm import known_architectures

    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    known = known_architectures()
    return "" if any(name in known for name in named) else f"vLLM does not know the architecture {', '.join(named)}"


def gpus_together(folder: Path, gpus: int) -> int:
    """Number of GPUs that a model is divided among: at most `gpus` and those that are visible.

    vLLM gives each GPU the same number of attention heads.
    """
    if gpus < 2:
        return 1
    import torch

    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}  # none beside a GGUF file
    config = config.get("text_config") or config  # of a model that also reads images
    heads = next((config[name] for name in ("num_attention_heads", "n_head") if type(config.get(name)) is int), 0)
    most = min(gpus, torch.cuda.device_count())
    return next((count for count in range(most, 1, -1) if heads % count == 0), 1)
