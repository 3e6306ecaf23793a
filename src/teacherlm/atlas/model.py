"""Load retriever, reader and their tokenizers onto this worker's device, and load or make the index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas import checkpoints, contents, workers
from teacherlm.atlas import reader as readers
from teacherlm.atlas import retriever as retrievers
from teacherlm.atlas.flags import AtlasFlags
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index, Vectors, compress, embed_rows
from teacherlm.atlas.passages import Passages, converted
from teacherlm.atlas.reader import Reader
from teacherlm.atlas.retriever import Retriever
from teacherlm.atlas.saved_index import describe_index, load_index, save_index
from teacherlm.catalog.models import describe_model, find_model, local_folder, small_files
from teacherlm.core import manifests
from teacherlm.core.terminal import plural
from teacherlm.runtime.loading import load_tokenizer
from teacherlm.runtime.packed_linear import pack_linears

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Model:
    reader: Reader | None
    retriever: Retriever | None
    retriever_tokenizer: Any
    reader_tokenizer: Any
    encoder: str | None
    """Fingerprint of the passage encoder and of its inputs' format. It does not depend on the run's precision."""


def load_model(flags: AtlasFlags, device: torch.device, precision: str, trains: bool = False) -> Model:
    """Load the models that the run needs: retriever, reader or both.

    Only the reader uses fp16. With fp16 the retriever stays in float32, as in the reference.

    Args:
        trains: whether the models will learn. If not, a CPU packs their weights for its kernels.

    Raises:
        UserError: a model cannot be found or loaded.
    """
    dtype = DTYPES[precision]
    path = None if flags.model_path == "none" else Path(flags.model_path)
    kind = path and checkpoints.checkpoint_kind(path)
    reads, retrieves = not flags.retrieve_only, flags.retrieves
    untied = flags.query_side_retriever_training
    retriever = reader = None
    if kind == "own":
        reader_folder, retriever_folder = path / "reader", path / "retriever"
    else:
        find = small_files if kind == "released" else folder_of
        reader_folder = find(flags.reader_model_type)
        retriever_folder = find(flags.retriever_model_path) if retrieves else None
    if kind == "released":
        file = path / checkpoints.RELEASED
        wanted = reader_folder if reads else None
        retriever, reader = checkpoints.load_released(file, wanted, retriever_folder, untied)
        tokenizer = load_tokenizer(retriever_folder) if retrieves else None
    else:
        retriever, tokenizer = retrievers.load_retriever(retriever_folder, untied) if retrieves else (None, None)
        reader = readers.load_reader(reader_folder) if reads else None
    reader_tokenizer = load_tokenizer(reader_folder)
    encoder = None
    if retriever is not None:
        encoder = retrievers.fingerprint(retriever, flags.retriever_format, flags.text_maxlength)
        retriever.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
    if reader is not None:
        reader = Reader(reader.to(device, dtype).eval(), reader_tokenizer, flags.text_maxlength)
    if device.type == "cpu" and not trains:
        for module in filter(None, (retriever, reader and reader.model)):
            pack_linears(module)
    return Model(reader, retriever, tokenizer, reader_tokenizer, encoder)


def folder_of(name: str) -> Path:
    return local_folder(find_model(name))


def step_of(flags: AtlasFlags) -> int:
    """The step with which a run begins: that of this project's checkpoint, or 0, also for a released checkpoint, as in
    the reference."""
    path = Path(flags.model_path)
    own = flags.model_path != "none" and checkpoints.checkpoint_kind(path) == "own"
    return checkpoints.saved_step(path) if own else 0


def describe_sources(flags: AtlasFlags, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Digests of the inputs of predictions except the questions: the model, and the passages or the index.

    Args:
        known: earlier descriptions; unchanged files are not read again.
    """
    found = {}
    if flags.model_path != "none":
        found["model"] = manifests.describe(Path(flags.model_path), known.get("model"))
    else:
        found["reader"] = describe_model(folder_of(flags.reader_model_type), known.get("reader"))
        if flags.retrieves:
            found["retriever"] = describe_model(folder_of(flags.retriever_model_path), known.get("retriever"))
    if flags.load_index_path:
        found["index"] = describe_index(flags.load_index_path, flags.save_index_n_shards)
    elif flags.retrieves:
        for number, file in enumerate(flags.passages):
            found[f"passages {number}"] = contents.describe(file)
    return found


def make_index(flags: AtlasFlags, model: Model, device: torch.device, trained: bool = False) -> Index:
    """Load the index, or make it from the passages and save it if a path is given. All workers call this together.

    On a GPU, passages are embedded in float16, as in the reference. On a CPU, they are embedded in the run's precision.

    Args:
        trained: whether the passage encoder may have learned since the index was made, so that it may not fit.
    """
    retriever = model.retriever
    if flags.load_index_path:
        place, kind, code_size = flags.load_index_path, flags.compressed, flags.faiss_code_size
        encoder = None if trained else model.encoder
        return load_index(place, kind, code_size, encoder, retriever.dimension, device, flags.save_index_n_shards)
    passages = Passages(Path(workers.from_first(lambda: str(converted(flags.passages, flags.max_passages)))))
    workers.say(f"index: {plural(len(passages), 'passage')} to embed with {plural(workers.size(), 'worker')}")
    vectors = embed_passages(flags, model, passages)
    index = Index(passages, vectors, retriever.dimension, model.encoder)
    if flags.save_index_path:
        save_index(flags.save_index_path, index, flags.save_index_n_shards, flags.compressed, flags.faiss_code_size)
    return index


def embed_passages(flags: AtlasFlags, model: Model, passages: Passages) -> Vectors:
    """The vectors of this worker's part of the passages, by the current passage encoder. All workers call this."""
    kind = next(model.retriever.parameters()).device.type
    with torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
        vectors_ND = workers.each(
            lambda: embed_rows(
                passages,
                model.retriever,
                model.retriever_tokenizer,
                flags.retriever_format,
                flags.text_maxlength,
                flags.per_gpu_embedder_batch_size,
            )
        )
    if flags.compressed:
        return compress(vectors_ND, len(passages), flags.compressed, flags.faiss_code_size)
    return FlatVectors([vectors_ND], workers.rows_of(len(passages))[0])
