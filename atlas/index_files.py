"""An index on disk: passages.arrow, embeddings.N.npy in float16 (or FAISS files), and index.json, written last.

Another number of workers than wrote it can read it. The reference's published indices (embeddings.N.pt with
passages.N.pt) are read too.
"""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas import workers
from atlas.compressed_search import CompressedVectors
from atlas.flat_search import FlatVectors
from atlas.index import Index
from atlas.passages import Passages, checked, write_passages
from teacherlm.errors import UserError, reason
from teacherlm.files import cache_folder, whole_file, whole_path

NAME = "index.json"
PASSAGES = "passages.arrow"


def compressed_name(kind: str, code_size: int | None) -> str:
    return f"{kind}_{code_size}" if code_size else kind


# --- saving


def save_index(folder: Path, index: Index, n_shards: int, kind: str | None, code_size: int | None) -> None:
    """Save an index; all workers call it together.

    Args:
        folder: it is made; an index that is there is replaced, index.json last.
        n_shards: files of vectors in all, at least one a worker.
        kind, code_size: of a compressed index; None: flat.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if workers.is_first():
        (folder / NAME).unlink(missing_ok=True)
        for old in (*folder.glob("embeddings.*.npy"), *folder.glob("faiss.*.index")):
            old.unlink()
        if not same_file(index.passages.path, folder / PASSAGES):
            with whole_path(folder / PASSAGES) as partial:
                shutil.copyfile(index.passages.path, partial)
    workers.wait_for_all()
    each = max(1, n_shards // workers.size())
    if kind is None:
        written = save_flat(folder, index.vectors, each)
    else:
        written = save_compressed(folder, index.vectors, compressed_name(kind, code_size))
    shards = [shard for shares in workers.gather_objects(written) for shard in shares]
    if workers.is_first():
        described = {
            "format": 1,
            "passages": len(index.passages),
            "dimension": index.dimension,
            "encoder": index.encoder,
            "compressed": kind and compressed_name(kind, code_size),
            "shards": shards,
        }
        with whole_file(folder / NAME) as file:
            json.dump(described, file, indent=1)
            file.write("\n")
    workers.wait_for_all()


def save_flat(folder: Path, vectors: FlatVectors, n_shards: int) -> list[dict[str, Any]]:
    vectors_ND = torch.cat([segment.cpu() for segment in vectors.segments])
    written = []
    for number in range(n_shards):
        start, end = (len(vectors_ND) * n // n_shards for n in (number, number + 1))
        if start == end:
            continue
        file = folder / f"embeddings.{workers.rank() * n_shards + number:05d}.npy"
        save_array(file, vectors_ND[start:end].numpy())
        written.append({"file": file.name, "rows": end - start})
    return written


def save_array(file: Path, array: np.ndarray) -> None:
    with whole_path(file) as partial, open(partial, "wb") as handle:
        np.save(handle, array)


def save_compressed(folder: Path, vectors: CompressedVectors, name: str) -> list[dict[str, Any]]:
    import faiss

    if not len(vectors):
        return []
    file = folder / f"faiss.{name}.{workers.rank():05d}.index"
    with whole_path(file) as partial:
        faiss.write_index(vectors.index, str(partial))
    return [{"file": file.name, "rows": len(vectors)}]


def same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


# --- loading


def load_index(
    folder: Path, kind: str | None, code_size: int | None, encoder: str | None, dimension: int, device: torch.device
) -> Index:
    """Load an index; all workers call it together, each gets its share of the vectors.

    Args:
        kind, code_size: of the compressed index that is wanted; None: flat. One that is not saved is made from the
            embeddings.
        encoder: fingerprint of the retriever's passage encoder and what it is given; None: do not ask.
        dimension: of the retriever's vectors.
        device: where a flat index is searched.

    Raises:
        UserError: the folder has no whole index, or one that another encoder made.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; an index was expected (--load_index_path)")
    if (folder / NAME).is_file():
        index = load_own(folder, kind, code_size, encoder, dimension, device)
    elif (folder / "embeddings.0.pt").is_file():
        index = load_published(folder, dimension, device)
    else:
        raise UserError(f"{folder}: no index there ({NAME} is written last; was its making interrupted?)")
    if kind is not None and isinstance(index.vectors, FlatVectors):
        from atlas.index import compress

        vectors_ND = torch.cat(index.vectors.segments)
        index.vectors = compress(vectors_ND, len(index.passages), kind, code_size)
    return index


def load_own(
    folder: Path, kind: str | None, code_size: int | None, encoder: str | None, dimension: int, device: torch.device
) -> Index:
    try:
        described = json.loads((folder / NAME).read_text(encoding="utf-8"))
        shards = [(folder / shard["file"], shard["rows"]) for shard in described["shards"]]
        saved_as, count = described["compressed"], described["passages"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / NAME}: this is no index's description ({error!r}); make the index again") from error
    check_dimension(folder, described["dimension"], dimension)
    if encoder is not None and described["encoder"] not in (None, encoder):
        raise UserError(
            f"{folder}: this index was made by another passage encoder, or with another --retriever_format or "
            "--text_maxlength; make it anew with --passages and --save_index_path"
        )
    passages = Passages(folder / PASSAGES)
    if len(passages) != count or sum(rows for _, rows in shards) != count:
        raise UserError(f"{folder}: {NAME} says {count} passages, {PASSAGES} has {len(passages)}; copy the index again")
    wanted = kind and compressed_name(kind, code_size)
    if saved_as is not None and saved_as != wanted:
        flag = "--index_mode faiss --faiss_index_type {} --faiss_code_size {}".format(*saved_as.partition("_")[::2])
        raise UserError(f"{folder}: it was saved compressed, as {saved_as}; load it with {flag.removesuffix(' ')}")
    if saved_as is not None:
        vectors: Any = load_compressed(shards)
    else:
        start, end = workers.share_of(count)
        segments = list(flat_segments(shards, start, end, dimension))
        if device.type == "cuda":
            segments = [torch.cat([segment.to(device) for segment in segments])] if segments else []
        vectors = FlatVectors(segments, start)
    return Index(passages, vectors, dimension, described["encoder"])


def check_dimension(folder: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{folder}: its vectors have {found} dimensions, the retriever makes {expected}; another made it"
        )


def flat_segments(shards: list[tuple[Path, int]], start: int, end: int, dimension: int) -> Iterator[torch.Tensor]:
    """The rows from start to before end, memory-mapped from the files that hold them."""
    first = 0
    for file, rows in shards:
        low, high = max(start, first), min(end, first + rows)
        if low < high:
            try:
                array = np.load(file, mmap_mode="c")
            except (OSError, ValueError, EOFError) as error:
                raise UserError(
                    f"{file}: cut off or damaged ({reason(error)}); copy or make the index again"
                ) from error
            if array.shape != (rows, dimension) or array.dtype != np.float16:
                raise UserError(
                    f"{file}: ({rows}, {dimension}) numbers in float16 were expected, found {array.shape} in "
                    f"{array.dtype}; copy or make the index again"
                )
            yield torch.from_numpy(array[low - first : high - first])
        first += rows


def load_compressed(shards: list[tuple[Path, int]]) -> CompressedVectors:
    """This worker's share of the files, joined: all were made from one training."""
    import faiss

    if len(shards) < workers.size():
        raise UserError(f"{shards[0][0].parent}: its {len(shards)} FAISS files are for at most as many workers")
    low, high = workers.share_of(len(shards))
    joined = None
    for file, rows in shards[low:high]:
        try:
            index = faiss.read_index(str(file))
        except RuntimeError as error:
            raise UserError(f"{file}: cut off or damaged; copy or make the index again") from error
        if index.ntotal != rows:
            raise UserError(f"{file}: {rows} vectors were expected, found {index.ntotal}; make the index again")
        if joined is None:
            joined = index
        else:
            joined.merge_from(index, joined.ntotal if hasattr(joined, "nlist") else 0)
    if hasattr(joined, "nlist"):
        joined.nprobe = joined.nlist
    return CompressedVectors(joined, sum(rows for _, rows in shards[:low]))


# --- the reference's format


def load_published(folder: Path, dimension: int, device: torch.device) -> Index:
    """An index as the reference publishes it: of each shard a float16 tensor (D, n) and a pickled list of passages."""
    files = sorted(folder.glob("embeddings.*.pt"), key=lambda file: int(file.name.split(".")[1]))
    names = [folder / f"embeddings.{number}.pt" for number in range(len(files))]
    if files != names:
        missing = next(name for name in names if name not in files)
        raise UserError(f"{missing}: this shard is missing; download the index again")
    tensors = [load_tensor(file, dimension) for file in files]
    passages = Passages(published_passages(folder, [tensor.shape[1] for tensor in tensors]))
    start, end = workers.share_of(len(passages))
    segments, first = [], 0
    for tensor in tensors:
        low, high = max(start, first), min(end, first + tensor.shape[1])
        if low < high:
            segments.append(tensor[:, low - first : high - first].to(device).T.contiguous())
        first += tensor.shape[1]
    return Index(passages, FlatVectors(segments, start), dimension, encoder=None)


def load_tensor(file: Path, dimension: int) -> torch.Tensor:
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever torch's readers raise
        raise UserError(f"{file}: no whole tensor of embeddings ({reason(error)}); download it again") from error
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
        raise UserError(f"{file}: a tensor (dimension, passages) was expected; download the index again")
    check_dimension(file, tensor.shape[0], dimension)
    return tensor


def published_passages(folder: Path, counts: list[int]) -> Path:
    """The Arrow file of a published index's passages, made once: in the index's folder, or else in the user's cache."""
    path = folder / PASSAGES
    if not path.is_file():
        path = cache_folder() / "passages" / f"{folder.resolve().as_posix().strip('/').replace('/', '_')}.arrow"
    if workers.is_first() and not path.is_file():
        write_passages(path, pickled_passages(folder, counts))
    workers.wait_for_all()
    return path


def pickled_passages(folder: Path, counts: list[int]) -> Iterator[dict[str, str]]:
    for number, count in enumerate(counts):
        file = folder / f"passages.{number}.pt"
        try:
            passages = PlainUnpickler(io.BytesIO(file.read_bytes())).load()
        except FileNotFoundError as error:
            raise UserError(f"{file}: this shard is missing; download the index again") from error
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{file}: no pickled list of passages ({reason(error)}); download it again") from error
        if not isinstance(passages, list) or len(passages) != count:
            found = len(passages) if isinstance(passages, list) else type(passages).__name__
            raise UserError(f"{file}: {count} passages were expected, as embeddings.{number}.pt has, found {found}")
        for place, passage in enumerate(passages):
            passage = {name: value for name, value in passage.items() if name != "section"}  # in the title already
            yield checked(passage, f"{file}, passage {place}")


class PlainUnpickler(pickle.Unpickler):
    """Of a pickle only what is data: lists, dictionaries, texts and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only texts in lists and dictionaries are read")
