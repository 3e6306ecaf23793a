"""Load a model or tokenizer from a folder, the same way in every stage."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from teacherlm.catalog.adapters import attach, base_folder, is_adapter
from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_object
from teacherlm.runtime.foreign_tokenizers import guarded, is_panic, require_bounded_file, without_panics
from teacherlm.runtime.model_config import load_config, loading_fault, require_causal_decoder, vocabulary_size

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()  # a log file would keep every state of the bar
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no accelerator


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the warnings of transformers about missing, unexpected and tied weights."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def load_tokenizer(folder: Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    If the tokenizer has no padding token, or the model in the folder has no embedding for that token, it pads with its
    end-of-text token. Padding is always masked.

    Raises:
        UserError: the tokenizer cannot be loaded or used; see foreign_tokenizers.py.
    """
    require_bounded_file(folder)
    rows = None
    if (folder / "config.json").is_file() or is_adapter(folder):  # before the tokenizer, which warns of odd ones
        rows = vocabulary_size(load_config(folder))
    try:
        with without_panics():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **kwargs)
    except BaseException as error:  # a broken file can raise anything
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UserError(f"the tokenizer in {folder} cannot be loaded: {loading_fault(error)}") from error
    pad = tokenizer.pad_token_id
    if pad is None or (rows is not None and pad >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    return guarded(tokenizer, folder)


def load_model(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """The causal decoder in a folder, with all its weights. Pickled weights are read with weights_only=True.

    A model with capped attention scores gets the library's eager attention, because the other kernels ignore the cap.

    Raises:
        UserError: the model cannot be loaded, is not a causal decoder, or its weights are incomplete (see
            check_weights).
    """
    if "gguf_file" not in kwargs:
        config = load_config(folder)
        require_causal_decoder(config, folder)
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            kwargs.setdefault("attn_implementation", "eager")
    source = base_folder(folder) if is_adapter(folder) else folder
    with without_warnings():  # check_weights reports these problems instead
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **kwargs
            )
        except Exception as error:  # a broken file, or a missing package, can raise anything
            raise UserError(f"the model in {source} cannot be loaded: {loading_fault(error)}") from error
    check_weights(model, info, source)
    if source != folder:
        attach(model, folder)
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the library reads from a model's folder; empty if it has only pickled weights.

    The library does not read other safetensors files in the folder, such as averages or old shards.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    try:
        names = load_object(index)["weight_map"].values()
        return sorted({folder / name for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def check_weights(model: torch.nn.Module, info: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model if some of its weights do not come from its folder or are not finite.

    Args:
        model: the model that `from_pretrained` returned.
        info: its loading info (`output_loading_info=True`, with `ignore_mismatched_sizes=True`).
        folder: the model's folder, for the message.

    Raises:
        UserError: a tensor is missing, has the wrong shape, belongs to a layer that the configuration does not have, or
            holds a number that is not finite. The message names the first such tensor.
    """
    # The missing keys do not include a tied head.
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"the model in {folder}, {type(model).__name__}, lacks {listed(missing)}; without them it would compute "
            "with random numbers: copy all its files, or save it with its head"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise UserError(
            f"the model in {folder}: the tensor {name} has the shape {list(found)}, but config.json says "
            f"{list(expected)}{others(mismatched)}; do config.json and the weights belong together?"
        )
    if info["error_msgs"]:
        raise UserError(f"the model in {folder} cannot be loaded: {' '.join(str(info['error_msgs'][0]).split())}")
    # An unexpected name that differs from a known one only in its numbers belongs to an omitted layer or expert.
    known = {without_numbers(name) for name in model.state_dict()}
    if extra := sorted(name for name in info["unexpected_keys"] if without_numbers(name) in known):
        raise UserError(
            f"the model in {folder} has {listed(extra)}, which config.json leaves no place for; do config.json and the "
            "weights belong together?"
        )
    for name, part in model.named_parameters():
        if not is_finite(part):
            raise UserError(
                f"the model in {folder}: the tensor {name} holds numbers that are not finite (NaN or infinity); use "
                "another checkpoint"
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if not tensor.is_floating_point() or tensor.device.type == "meta":
        return True
    tensor = tensor.detach()
    # The sum needs no second tensor, but it can overflow although all numbers are finite. Then each number is checked.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def listed(names: Sequence[str]) -> str:
    return f"the tensor {names[0]}{others(names)}"


def others(names: Sequence[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def base_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a model with adapters, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
