"""What this project uses of vLLM (0.32), an extra, without a public interface for it."""

from typing import Any


def engine_within(model: Any) -> Any:
    """The engine of a `vllm.LLM`, whose steps the caller drives (`add_request`, `step`).

    The public class is made from the settings that serve many texts best, but gives answers only when all of them are
    done. The engine within it is an attribute that its documentation does not name.
    """
    return model.llm_engine


def window_of(engine: Any) -> int:
    """How many tokens a prompt and its completion have together at most; found by vLLM when it loads the model."""
    return engine.model_config.max_model_len
