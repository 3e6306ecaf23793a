"""The private interfaces of vLLM (0.32) that this project uses. vLLM is an optional extra."""

from typing import Any


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
