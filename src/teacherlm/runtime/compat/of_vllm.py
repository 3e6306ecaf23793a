"""The private interfaces of vLLM (0.32) that this project uses. vLLM is an optional extra."""

import os
from typing import Any

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""The variable that turns on vLLM's batch-invariant mode. Modules of vLLM read it when they are imported."""


def ask_for_batch_invariance() -> bool:
    """Turn on the mode in which a text does not depend on the texts that are written with it, where vLLM has it.

    vLLM 0.32 has it on NVIDIA GPUs of compute capability 8.0 or higher (its documentation, "Batch Invariance"). A value
    of the user's own is kept. `VLLM_BATCH_INVARIANT=0` is for architectures that do not have the mode, such as Mamba.

    Returns:
        Whether the mode is on.
    """
    from vllm.platforms import current_platform  # asks the driver, and leaves CUDA as it is

    if BATCH_INVARIANT not in os.environ and current_platform.is_cuda() and current_platform.has_device_capability(80):
        os.environ[BATCH_INVARIANT] = "1"
    return os.environ.get(BATCH_INVARIANT, "0").strip() not in ("", "0")


def engine_within(model: Any) -> Any:
    """The engine inside a `vllm.LLM`. The caller runs its steps (`add_request`, `step`).

    The public class chooses settings for many texts, but it returns answers only when all of them are complete. The
    engine is an attribute of it that the documentation does not mention.
    """
    return model.llm_engine


def known_architectures() -> set[str]:
    """The architectures that vLLM has code of its own for, as `config.json` names them."""
    from vllm import ModelRegistry

    return set(ModelRegistry.get_supported_archs())


def window_of(engine: Any) -> int:
    """Maximum number of tokens in a prompt and its completion together. vLLM finds it when it loads the model."""
    return engine.model_config.max_model_len
