"""Save and load checkpoints of retriever and reader.

A checkpoint of this project is a folder. Its folders reader/ and retriever/ are model folders of transformers;
retriever/ holds query_encoder/, and passage_encoder/ if that has separate weights. atlas.json has the step. A released
checkpoint is one pickle, model.pth.tar: a dictionary with `step`, `model` (with names that begin with reader. and
retriever.), `opt` and more. Its retriever has a different LayerNorm (layer_norm.py), which is recorded when it is saved
here.
"""

import argparse
import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas import reader as readers
from teacherlm.atlas import retriever as retrievers
from teacherlm.atlas.layer_norm import use_mean_square
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.json_files import load_object
from teacherlm.runtime.loading import is_finite
from teacherlm.runtime.pickles import load_plain

NAME = "atlas.json"
RELEASED = "model.pth.tar"
ALLOWED = [argparse.Namespace, defaultdict, OrderedDict, set]
"""The classes that the pickle of a released checkpoint may contain in addition to tensors and plain values."""


def checkpoint_kind(folder: Path) -> str:
    """The kind of a checkpoint, "own" or "released".

    Raises:
        UserError: the folder is neither.
    """
    if (folder / NAME).is_file():
        return "own"
    if (folder / RELEASED).is_file():
        return "released"
    raise UserError(f"{folder}: no checkpoint there; {RELEASED} (released) or {NAME} (this project's) was expected")


def save_checkpoint(
    folder: Path, retriever: Any, retriever_tokenizer: Any, reader: Any, reader_tokenizer: Any, step: int
) -> None:
    """Write a checkpoint completely or not at all."""
    with whole_folder(folder) as partial:
        reader.save_pretrained(partial / "reader")
        reader_tokenizer.save_pretrained(partial / "reader")
        if retriever is not None:
            save_retriever(partial / "retriever", retriever, retriever_tokenizer)
        (partial / NAME).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def save_retriever(folder: Path, retriever: retrievers.Retriever, tokenizer: Any) -> None:
    retriever.query.config.pooling, retriever.query.config.normalize = retriever.pooling, retriever.normalize
    retriever.query.save_pretrained(folder / "query_encoder")
    tokenizer.save_pretrained(folder / "query_encoder")
    if retriever.passage is not retriever.query:
        retriever.passage.save_pretrained(folder / "passage_encoder")


def saved_step(folder: Path) -> int:
    try:
        return int(load_object(folder / NAME)["step"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{folder / NAME}: it has no valid step ({error!r}); copy the checkpoint again") from error


class Released:
    """A released checkpoint with memory-mapped tensors.

    Args:
        file: the file model.pth.tar.

    Raises:
        UserError: the file is damaged, or contains anything other than tensors and plain values.
    """

    def __init__(self, file: Path):
        self.file = file
        loaded = load_plain(file, ALLOWED, mapped=True)
        if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), Mapping):
            raise UserError(f"{file}: a dictionary with step, model and opt was expected")
        # The names of a model that was trained in several processes contain `module`.
        self.weights = {name.replace(".module.", "."): tensor for name, tensor in named_tensors(loaded["model"])}
        self.untied = any(name.startswith("retriever.passage_contriever.") for name in self.weights)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
            and not name.endswith("position_ids")  # a constant of older versions of transformers
        }

    def fill(self, model: Any, prefix: str, shape: str) -> None:
        """Load the weights whose names begin with `prefix` into a model.

        Raises:
            UserError: names or shapes do not fit the model, or numbers are not finite.
        """
        weights = self.part(prefix)
        if not weights:
            raise UserError(f"{self.file}: no weights named {prefix}...")
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        if readers.has_own_head(model.config):
            tied -= {"lm_head.weight"}
        expected = model.state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            if name not in expected:
                raise UserError(f"{self.file}: {prefix}* are not the weights of {shape}: {name} is unknown")
            if name not in weights:
                if name in tied:
                    continue
                raise UserError(f"{self.file}: {prefix}* are not the weights of {shape}: {name} is missing")
            found, wanted = list(weights[name].shape), list(expected[name].shape)
            if found != wanted:
                raise UserError(
                    f"{self.file}: {prefix}{name} does not have the shape of {shape}: found {found}, expected {wanted}"
                    "; use the model of this size (--reader_model_type, --retriever_model_path)"
                )
            if not is_finite(weights[name]):
                raise UserError(
                    f"{self.file}: {prefix}{name} holds numbers that are not finite (NaN or infinity); use another "
                    "checkpoint"
                )
        model.load_state_dict(weights, strict=False)


def named_tensors(model: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, value) for name, value in model.items() if isinstance(name, str) and torch.is_tensor(value))


def load_released(
    file: Path, reader_folder: Path | None, retriever_folder: Path | None, untied: bool
) -> tuple[Any, Any]:
    """Return (retriever, reader) from a released checkpoint.

    Args:
        reader_folder: folder with the configuration of the reader's T5; None loads no reader.
        retriever_folder: folder with the configuration of the encoder; None loads no retriever.
        untied: whether query and passage encoder get separate weights. If the checkpoint has two encoders, both are
            always loaded.
    """
    released = Released(file)
    retriever = reader = None
    if retriever_folder is not None:
        retriever = retrievers.empty_retriever(retriever_folder, untied or released.untied)
        for encoder in {retriever.query, retriever.passage}:
            use_mean_square(encoder)
        if released.untied:
            released.fill(retriever.query, "retriever.query_contriever.", str(retriever_folder))
            released.fill(retriever.passage, "retriever.passage_contriever.", str(retriever_folder))
        else:
            released.fill(retriever.query, "retriever.contriever.", str(retriever_folder))
            if untied:
                released.fill(retriever.passage, "retriever.contriever.", str(retriever_folder))
    if reader_folder is not None:
        reader = readers.empty_reader(reader_folder)
        if "reader.lm_head.weight" in released.weights:  # transformers ties every T5's head to its embedding
            reader.lm_head.weight = torch.nn.Parameter(torch.empty_like(reader.lm_head.weight))
        released.fill(reader, "reader.", str(reader_folder))
    return retriever, reader
