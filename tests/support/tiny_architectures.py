"""Tiny random models of every causal architecture of transformers, with a tokenizer, for the sweep.

The fields of a default configuration are set to tiny values. tiny_architectures.yaml has the names of these fields, and
further changes that an architecture needs.
"""

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DEVIATION = 0.3
TIED = 0.2
"""Scale of embeddings that are also the output layer. With larger values, a model repeats its last token for ever."""
TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TINY = {field: size["value"] for size in TABLE["sizes"] for field in size["fields"].split()}
"""Maps each field of a configuration to its tiny value."""
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
"""Fields that list the kind of every layer: tiny models have one layer of each kind."""
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the sweep.

    Attributes:
        name: `model_type`, with what is special about a variant in parentheses.
        changes: fields of the text configuration that differ from the shrunk default.
        saved_as: the name of the class whose weights are saved, if it differs from the class in the causal mapping.
    """

    name: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    saved_as: str | None = None

    @property
    def model_type(self) -> str:
        return self.name.split(" ")[0]


def architectures() -> list[Architecture]:
    """All rows of the sweep, sorted by name."""
    mapped = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in TABLE["unmade"]]
    return sorted(
        [
            *(Architecture(name, saved_as=TABLE["composite"].get(name)) for name in mapped),
            *(Architecture(f"{name} (decoder)", {"is_decoder": True}) for name in TABLE["encoders"].split()),
            *(Architecture(f"{name} (encoder-decoder)", {}, kind) for name, kind in TABLE["encoder_decoders"].items()),
            *(Architecture(name, changes) for name, changes in TABLE["variants"].items()),
        ],
        key=lambda one: one.name,
    )


def tiny_config(architecture: Architecture, vocabulary: int) -> PreTrainedConfig:
    """The shrunk configuration with the architecture's changes, which apply to the text part if there are several."""
    kind = CONFIG_MAPPING[architecture.model_type]
    values = shrunk(kind, vocabulary, TABLE["text_parts"].get(architecture.model_type))
    merge(values, TABLE["exceptions"].get(architecture.model_type, {}))
    text = values.get("text_config", values)
    if text is not values:
        merge(text, TABLE["exceptions"].get(f"{architecture.model_type}_text", {}))
    merge(text, architecture.changes)
    return kind(**values)


def merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge changes into values, recursively for changes of a part."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            merge(values[name], value)
        else:
            values[name] = copy.deepcopy(value)


def shrunk(kind: type[PreTrainedConfig], vocabulary: int, text: str | None = None) -> dict[str, Any]:
    """Arguments for a configuration class.

    Args:
        text: the model_type of its text part, if its class does not say.
    """
    default = {field.name: field.default for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {name: size for name, size in TINY.items() if name in default}
    values |= {name: 0.0 for name, value in default.items() if isinstance(value, float) and is_random(name)}
    values |= {name: token for name, token in SPECIAL.items() if name in default}
    values |= {name: vocabulary for name in default if name == "vocab_size" or name.startswith("vocab_size_per")}
    for name, part in kind.sub_configs.items():
        if dataclasses.is_dataclass(part):
            values[name] = shrunk(part, vocabulary)
        elif name == "text_config" and text is not None:
            values[name] = {"model_type": text, **shrunk(CONFIG_MAPPING[text], vocabulary)}
    if "use_sliding_window" in default:
        values["use_sliding_window"] = True
    return values | kinds_of_layers(kind)


def kinds_of_layers(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """The fields with the kind of each layer: one layer per kind of the default configuration, but at least two layers.

    If the architecture supports windows but no layer has one, one layer gets a window.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    try:
        made = kind()
    except StrictDataclassError:  # it has no default
        return {}
    lists: dict[str, list[str]] = {}
    for name in KINDS:
        kinds = list(dict.fromkeys(getattr(made, name, None) or [])) if name in names else []
        if kinds == ["full_attention"] and "sliding_window" in names:
            kinds = ["sliding_attention", "full_attention"]
        if len(kinds) > 1 or (kinds and name != "layer_types"):
            lists[name] = kinds
    if not lists:
        return {}
    count = max(2, *map(len, lists.values()))
    layers = {name: count for name in ("num_hidden_layers", "n_layer") if name in names}
    return layers | {name: (kinds * count)[:count] for name, kinds in lists.items()}


def is_random(name: str) -> bool:
    """Whether a field is the probability of something random in training, which would make comparisons impossible."""
    return "drop" in name or "jitter" in name


def make_model(architecture: Architecture, vocabulary: int) -> PreTrainedModel:
    """A model with random weights (the class's initialisation plus normal numbers of DEVIATION) and eager attention."""
    config = tiny_config(architecture, vocabulary)
    config._attn_implementation = config._experts_implementation = "eager"  # not saved
    saved_as = architecture.saved_as
    kind = getattr(transformers, saved_as) if saved_as else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    torch.manual_seed(0)
    model = kind(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0).add_(DEVIATION * torch.randn_like(parameter))
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is embeddings.weight and getattr(head, "bias", None) is None:
            head.weight.mul_(TIED)
    return model


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with about 600 tokens, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
