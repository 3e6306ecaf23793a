"""What a model's configuration says of it: its kind, its vocabulary, its positions, its attention windows.

A composite configuration (of vision and text) keeps these in its text part: `get_text_config` returns that part, or the
configuration itself.
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
"""Endings of class names (the configuration's `architectures`) whose weights are no language model's."""
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types that are encoders unless their configuration says is_decoder."""
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
"""Model types whose first position is the one after the padding token's number."""
UNLIMITED = ("bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma")
"""Model types without a limit, whatever their configuration still says of positions."""

WINDOW = re.compile(r"^(?!.*(layer|pattern|num)).*(window|chunk_size|index_topk)")
"""Names of settings that bound how far a layer looks back, or at how many tokens; not of those that say which layers
do."""


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in a folder; of a folder with adapters, that of their base model.

    Raises:
        UserError: it cannot be read, or would need code of its own.
    """
    try:
        place = base_folder(folder) if is_adapter(folder) else folder
        return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # of the file system, of JSON, of the library's checks
        raise UserError(f"the configuration in {folder} cannot be read: {loading_fault(error)}") from error


def loading_fault(error: BaseException) -> str:
    """Why the library could not load a model's or a tokenizer's folder, in one line.

    Every call of `from_pretrained` and `from_config` passes `trust_remote_code=False`. Without it, the library asks
    whether the Python files of such a folder may run, and takes an answer from stdin.
    """
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own (`auto_map` in its JSON files), and code from a model's folder is never "
            "run here; give a model of a class that transformers has"
        )
    return reason(error)


def require_causal_decoder(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a model that does not predict each next token from the tokens before it.

    The configuration tells most of them; self_check.py looks at what a model computes.

    Raises:
        UserError: it says what the model is.
    """
    name = next(iter(config.architectures or []), None) or type(config).__name__.removesuffix("Config")
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder"
    elif config.model_type not in known_causal_types():
        what = "of a kind that transformers has no causal language model for"
    elif name.endswith(OTHER_HEADS):
        what = "a model with another head than that of a language model"
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
    """Rows of a model's embedding; None where its configuration does not say."""
    return getattr(config.get_text_config(), "vocab_size", None)


def position_count(config: PreTrainedConfig) -> int | None:
    """How many tokens a model takes at most, by its configuration; None where it has no limit (BLOOM, Mamba)."""
    text = config.get_text_config()
    if text.model_type in UNLIMITED:
        return None
    counts = (getattr(text, name, None) for name in POSITIONS)
    count = next((count for count in counts if isinstance(count, int) and count > 0), None)
    if count is not None and text.model_type in AFTER_PADDING:
        count -= (text.pad_token_id or 0) + 1
    return count


def attention_windows(config: PreTrainedConfig) -> list[int]:
    """Lengths beyond which a model treats texts otherwise, ascending: of windows, of chunks, of rescaled positions."""
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
    """Whether attention sees only so many of the earlier tokens, those of the highest rank (DeepSeek's indexer, Doge).

    Where too few tokens are there to choose from, the library's choice depends on the tokens that follow, padding too,
    and only at some positions. A few sequences need not show that: such a model takes one text at a time.
    """
    known = config.get_text_config().to_dict()
    return any(value for name, value in known.items() if name.startswith(("index_topk", "keep_window_size")))


def rope_types(rope: Any) -> set[str]:
    """The kinds of rotary positions that a model's settings name."""
    if not isinstance(rope, Mapping):
        return set()
    return {str(rope.get("rope_type"))}.union(*map(rope_types, rope.values()))


def rescaled_from(rope: Any, positions: int | None) -> Iterator[int]:
    """Lengths beyond which rotary positions are scaled by a text's length ("longrope").

    Args:
        rope: the settings of rotary positions, or of each kind of layer.
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
