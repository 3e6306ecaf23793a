"""Properties of a model that its configuration tells: its kind, vocabulary, positions and attention windows.

A composite configuration (for vision and text) keeps these in its text part. `get_text_config` returns that part, or
the configuration itself if it is not composite.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from teacherlm.catalog.adapters import base_folder, is_adapter
from teacherlm.core.errors import UserError, reason
from teacherlm.runtime.compat.of_transformers import known_causal_types

OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForPreTraining",
    "ForImageClassification",
)
"""Endings of class names (in the configuration's `architectures`) that are not language models."""
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types that are encoders unless their configuration sets is_decoder."""
POSITIONS = (
    "n_positions",
    "max_position_embeddings",
    "max_seq_len",
    "n_ctx",
    "max_sequence_length",
    "context_length",
    "max_target_positions",
)
AFTER_PADDING = (
    "camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
)  # fmt: skip
"""Model types whose first position number is the padding token's id plus one."""
UNLIMITED = ("bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma")
"""Model types without a limit, even if their configuration has a number of positions."""

WINDOW = re.compile(r"^(?!.*(layer|pattern|num)).*(window|chunk_size|index_topk)")
"""Matches the names of settings that limit how far back a layer sees, or how many tokens it sees. Settings that say
which layers have the limit do not match."""


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in a folder. If the folder holds adapters, it is that of their base model.

    Raises:
        UserError: the configuration cannot be read, or the model would need code from its folder.
    """
    try:
        place = base_folder(folder) if is_adapter(folder) else folder
        return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # from the file system, the JSON parser or the library's checks
        raise UserError(f"the configuration in {folder} cannot be read: {loading_fault(error)}") from error


def loading_fault(error: BaseException) -> str:
    """The reason why the library could not load the folder of a model or tokenizer, in one line.

    Every call of `from_pretrained` and `from_config` passes `trust_remote_code=False`. Without it, the library asks on
    stdin whether the Python files of the folder may run.
    """
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own (`auto_map` in its JSON files), and code from a model's folder is never "
            "run here; give a model of a class that transformers has"
        )
    return reason(error)


def require_causal_decoder(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a model that does not predict each next token from the tokens before it.

    The configuration shows most such models. self_check.py finds the others by what they compute.

    Raises:
        UserError: the message says what the model is.
    """
    name = next(iter(config.architectures or []), None) or type(config).__name__.removesuffix("Config")
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder"
    elif config.model_type not in known_causal_types():
        what = "of a kind that transformers has no causal language model for"
    elif name.endswith(OTHER_HEADS):
        what = "a model whose head is not that of a language model"
    elif "dynamic" in rope_types(getattr(config.get_text_config(), "rope_parameters", None)):
        what = "with positions that depend on the texts computed before (rope_type dynamic)"
    elif config.model_type in ENCODERS and not getattr(config, "is_decoder", False):
        what = "an encoder: each token sees those after it"
    if what is not None:
        raise UserError(
            f"the model in {folder} is {name} ({config.model_type}), {what}; a causal decoder, such as "
            "LlamaForCausalLM, was expected"
        )


def vocabulary_size(config: PreTrainedConfig) -> int | None:
    """Number of rows of a model's embedding; None if its configuration does not say."""
    return getattr(config.get_text_config(), "vocab_size", None)


def position_count(config: PreTrainedConfig) -> int | None:
    """Maximum number of tokens of a model according to its configuration; None if there is no limit (BLOOM, Mamba)."""
    text = config.get_text_config()
    if text.model_type in UNLIMITED:
        return None
    counts = (getattr(text, name, None) for name in POSITIONS)
    count = next((count for count in counts if isinstance(count, int) and count > 0), None)
    if count is not None and text.model_type in AFTER_PADDING:
        count -= (text.pad_token_id or 0) + 1
    return count


def attention_windows(config: PreTrainedConfig) -> list[int]:
    """Lengths beyond which a model computes differently, ascending: from windows, chunks and rescaled positions."""
    text = config.get_text_config()
    known = text.to_dict()
    found = {value for name, value in known.items() if WINDOW.search(name) and type(value) is int}
    found |= set(rescaled_from(known.get("rope_parameters"), known.get("max_position_embeddings")))
    return sorted(length for length in found if length > 1)


def is_rescaled(config: PreTrainedConfig) -> bool:
    """Whether the length of a text changes how its positions are encoded."""
    text = config.get_text_config()
    return any(rescaled_from(getattr(text, "rope_parameters", None), position_count(config)))


def picks_tokens(config: PreTrainedConfig) -> bool:
    """Whether attention sees only a fixed number of earlier tokens, those ranked highest (DeepSeek's indexer, Doge).

    When there are too few earlier tokens, the library's choice depends on later tokens and on padding, but only at some
    positions. A check with a few sequences may miss this, so such a model gets one text at a time.
    """
    known = config.get_text_config().to_dict()
    return any(value for name, value in known.items() if name.startswith(("index_topk", "keep_window_size")))


def rope_types(rope: Any) -> set[str]:
    """The types of rotary positions that a model's settings name."""
    if not isinstance(rope, Mapping):
        return set()
    return {str(rope.get("rope_type"))}.union(*map(rope_types, rope.values()))


def rescaled_from(rope: Any, positions: int | None) -> Iterator[int]:
    """Lengths beyond which rotary positions are scaled by a text's length ("longrope").

    Args:
        rope: the settings of rotary positions, or a mapping with such settings for each kind of layer.
        positions: the model's max_position_embeddings.
    """
    if not isinstance(rope, Mapping):
        return
    if rope.get("rope_type") == "longrope":
        first = rope.get("original_max_position_embeddings") or positions
        if type(first) is int:
            yield first
    for value in rope.values():
        yield from rescaled_from(value, positions)
