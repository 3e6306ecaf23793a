"""Load a model or tokenizer from a folder, the same way in every stage."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from teacherlm.errors import UserError, reason

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()  # a log file keeps every step of a bar
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers asks, would warn that it found none


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Let transformers be silent about weights that are known to be missing, left over or tied."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; one without a padding token pads with its end of text, which masks hide anyway.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # a broken file raises whatever its parser does
        raise UserError(f"the tokenizer in {folder} cannot be loaded: {reason(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, **options: Any) -> PreTrainedModel:
    """A folder's causal model. Weights are safetensors; pickled ones are read with torch's weights_only=True.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except ImportError as error:  # of an optional package, which the message names
        raise UserError(f"the model in {folder} cannot be loaded: {reason(error)}") from error
    except Exception as error:
        raise UserError(f"the model in {folder} cannot be loaded: {reason(error)}; is the copy whole?") from error


def base_model(model: Any) -> PreTrainedModel:
    """The model of transformers within one with adapters, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
