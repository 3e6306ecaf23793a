"""The engine that `--engine auto` chooses for a local teacher: the fastest one that can take it on this machine.

Sampled texts differ between engines, because each has its own random numbers. An output is therefore continued with the
engine that has begun it; job.py sees to that.
"""

import functools
import importlib.util
import json
from pathlib import Path

from teacherlm.catalog.adapters import is_adapter
from teacherlm.catalog.models import Model, local_folder


def fastest(teacher: Model, dtype: str) -> str:
    """The fastest engine here. If vLLM is installed but cannot take the teacher, a line says why."""
    if importlib.util.find_spec("vllm") is None:
        return "transformers"
    if why := vllm_lacks(local_folder(teacher), dtype):
        print(f"enhance: --engine transformers, although vLLM is installed: {why}", flush=True)
        return "transformers"
    return "vllm"


@functools.cache
def vllm_lacks(folder: Path, dtype: str) -> str:
    """Why vLLM cannot take a teacher here; an empty text if it can."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        return "the package vllm is not installed"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if dtype == "int8":
        return "--dtype int8 works only with transformers"
    if is_adapter(folder):
        return "the teacher is a folder of adapters"
    from teacherlm.runtime.compat.of_vllm import known_architectures

    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    known = known_architectures()
    return "" if any(name in known for name in named) else f"vLLM does not know the architecture {', '.join(named)}"


def gpus_together(folder: Path, gpus: int) -> int:
    """Number of GPUs that vLLM divides a teacher among: at most `gpus` and those that are visible.

    vLLM gives each GPU the same number of attention heads.
    """
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config  # of a model that also reads images
    heads = next((config[name] for name in ("num_attention_heads", "n_head") if type(config.get(name)) is int), 1)
    most = min(gpus, torch.cuda.device_count())
    return next((count for count in range(most, 1, -1) if heads % count == 0), 1)
