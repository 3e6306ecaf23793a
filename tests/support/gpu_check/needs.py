"""What this machine lacks for the check. Nothing but the standard library is needed to say it."""

import importlib
import importlib.util
import sys

from teacherlm.core.errors import UserError, one_line

NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "jsonlines": "jsonlines",
    "datasets": "datasets",
    "pytest": "pytest",
}
"""Modules that most tests import, and the packages that they are in."""
SINGLE = {
    "deepspeed": "DeepSpeed's stages",
    "peft": "LoRA and QLoRA",
    "bitsandbytes": "QLoRA and int8",
    "lm_eval": "evaluation",
    "vllm": "the engine vllm",
    "flash_attn": "flash attention",
}
"""Modules without which some tests are left out, and what these are about."""


def require_all() -> None:
    """Refuse a machine that lacks what the check needs.

    Raises:
        UserError: it says all that is missing, in one line.
    """
    names = dict(NEEDED) | ({} if sys.version_info >= (3, 14) else {"backports.zstd": "backports.zstd"})
    missing = [package for module, package in names.items() if not is_there(module)]
    if missing:
        raise UserError(
            f"{sys.executable} lacks {', '.join(missing)}; the check installs nothing: install them there, or run "
            "make install, or set BASE_PYTHON to a python that has them"
        )
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # of a damaged installation, or of libraries that its CUDA build lacks
        raise UserError(f"torch cannot be imported: {one_line(error)}") from error
    if not torch.cuda.is_available():
        raise UserError(f"a GPU that torch can use is needed, and {why_none(torch)}")


def is_there(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package around it is missing
        return False


def why_none(torch: object) -> str:
    """Why torch sees no GPU."""
    version = torch.__version__
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {version} is a build for CPUs: TORCH=cuda make install, or set BASE_PYTHON"
    if torch.cuda.device_count() == 0:
        return f"torch {version} sees none (nvidia-smi, and CUDA_VISIBLE_DEVICES, say more)"
    return f"torch {version} cannot use this one; is the driver older than CUDA {torch.version.cuda}?"
