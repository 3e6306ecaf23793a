"""Save and load an index: passages.arrow, embeddings.N.npy in float16 (or FAISS files), and index.json, written last.

The number of workers that load an index may differ from the number that saved it. index.json has a digest of each file,
so a replaced or truncated file is refused. The reference's published indices can be loaded too (published.py).
"""

import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacherlm.atlas import contents, workers
from teacherlm.atlas.compressed_search import CompressedVectors, require_finite_numbers, require_own_rows
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index, compress
from teacherlm.atlas.passages import Passages
from teacherlm.atlas.published import (
    SHARDS,
    check_dimension,
    describe_published,
    is_published,
    load_published,
    require_finite,
)
from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import whole_file, whole_path
from teacherlm.core.json_files import load_json
from teacherlm.core.manifests import sha256
from teacherlm.core.terminal import plural, shown

NAME = "index.json"
PASSAGES = "passages.arrow"
SHARD_FILE = re.compile(r"embeddings\.\d{5,9}\.npy")
FAISS_FILE = re.compile(r"faiss\.[a-z]+(?:_\d+)?\.\d{5,9}\.index")


def compressed_name(kind: str, code_size: int | None) -> str:
    return f"{kind}_{code_size}" if code_size else kind


# --- saving


def save_index(folder: Path, index: Index, n_shards: int, kind: str | None, code_size: int | None) -> None:
    """Save an index. All workers call this together. Only one run at a time writes to a folder; others wait.

    Args:
        folder: the folder of the index; an existing index is replaced, with index.json last.
        n_shards: total number of files with vectors; there is at least one per worker.
        kind, code_size: the kind and code size of a compressed index; a kind of None means a flat index.
    """
    with workers.only_writer(folder):
        workers.from_first(functools.partial(begin_saving, folder, index.passages))
        each = max(1, n_shards // workers.size())
        if kind is None:
            written = save_flat(folder, index.vectors, each)
        else:
            written = save_compressed(folder, index.vectors, compressed_name(kind, code_size))
        shards = [shard for shares in workers.gather(written) for shard in shares]
        described = {
            "format": 2,
            "passages": len(index.passages),
            "passages_sha256": workers.from_first(lambda: sha256(folder / PASSAGES)),
            "dimension": index.dimension,
            "encoder": index.encoder,
            "compressed": kind and compressed_name(kind, code_size),
            "shards": shards,
        }
        if workers.is_first():
            with whole_file(folder / NAME) as file:
                json.dump(described, file, indent=1)
                file.write("\n")
        workers.wait_for_all()


def begin_saving(folder: Path, passages: Passages) -> None:
    """Create the folder, remove the files of an earlier index, and copy the passages into it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).unlink(missing_ok=True)
    for old in (*folder.glob("embeddings.*.npy"), *folder.glob("faiss.*.index")):
        old.unlink()
    if not same_file(passages.path, folder / PASSAGES):
        with whole_path(folder / PASSAGES) as partial:
            shutil.copyfile(passages.path, partial)


def save_flat(folder: Path, vectors: FlatVectors, n_shards: int) -> list[dict[str, Any]]:
    vectors_ND = torch.cat([segment.cpu() for segment in vectors.segments])
    written = []
    for number in range(n_shards):
        start, end = (len(vectors_ND) * n // n_shards for n in (number, number + 1))
        if start == end:
            continue
        file = folder / f"embeddings.{workers.rank() * n_shards + number:05d}.npy"
        save_array(file, vectors_ND[start:end].numpy())
        written.append({"file": file.name, "rows": end - start, "sha256": sha256(file)})
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
    return [{"file": file.name, "rows": len(vectors), "sha256": sha256(file)}]


def same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


# --- loading


def describe_index(folder: Path, n_shards: int = SHARDS) -> dict[str, Any]:
    """The digest of all files of an index (see contents.py).

    Args:
        n_shards: number of shards of an index in the reference's format.

    Raises:
        UserError: the folder has no complete index, or a file has changed since it was saved.
    """
    if not is_own(folder):
        return describe_published(folder, n_shards)
    index = read_description(folder)
    recorded = {PASSAGES: index["passages_sha256"]}
    recorded |= {shard["file"]: shard["sha256"] for shard in index["shards"]}
    described = contents.describe(folder, [folder / name for name in (NAME, *recorded)])
    for name, digest in recorded.items():
        if digest is not None and described["files"][name]["sha256"] != digest:
            raise UserError(
                f"{folder / name}: not the file that {NAME} describes (another SHA-256): truncated, damaged or from "
                "another index; copy or make the index again"
            )
    return described


def is_own(folder: Path) -> bool:
    """Whether a folder has an index of this project; otherwise it has a published one.

    Raises:
        UserError: it has neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; an index was expected (--load_index_path)")
    if not (folder / NAME).is_file() and not is_published(folder):
        raise UserError(f"{folder}: no index there ({NAME} is written last; was saving the index interrupted?)")
    return (folder / NAME).is_file()


def load_index(
    folder: Path,
    kind: str | None,
    code_size: int | None,
    encoder: str | None,
    dimension: int,
    device: torch.device,
    n_shards: int = SHARDS,
) -> Index:
    """Load an index. All workers call this together, and each gets a part of the vectors.

    Args:
        kind, code_size: the kind and code size of the compressed index that is wanted; a kind of None means a flat
            index. If the saved index is flat, it is compressed after loading.
        encoder: the fingerprint of the retriever's passage encoder, which the index must have; None skips the check.
        dimension: dimension of the retriever's vectors.
        device: the device on which a flat index is searched.
        n_shards: number of shards of an index in the reference's format.

    Raises:
        UserError: the folder has no complete index, or another encoder made the index.
    """
    if workers.from_first(lambda: is_own(folder)):
        described = workers.from_first(lambda: describe_index(folder))  # checked before any file is mapped
        index = workers.each(lambda: load_own(folder, kind, code_size, encoder, dimension, device))
        files = [folder / name for name in described["files"]]
        workers.from_first(lambda: contents.require_unchanged(folder, files, described))
    else:
        index = load_published(folder, n_shards, dimension, device)
    if kind is not None and isinstance(index.vectors, FlatVectors):
        vectors_ND = torch.cat(index.vectors.segments)
        index.vectors = compress(vectors_ND, len(index.passages), kind, code_size)
    return index


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of index.json.

    Raises:
        UserError: the contents are not in the form of `save_index`, for example with a file outside of the folder.
    """
    try:
        described = load_json(folder / NAME)
        known = {name: described[name] for name in ("passages", "dimension", "encoder", "compressed", "shards")}
        known["passages_sha256"] = described.get("passages_sha256")  # an index of format 1 has no digests
        known["shards"] = [
            {"file": shard["file"], "rows": shard["rows"], "sha256": shard.get("sha256")} for shard in known["shards"]
        ]
        wrong = flaw_of(known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = repr(error)
    if wrong:
        raise UserError(f"{folder / NAME}: not a valid description of an index ({wrong}); make the index again")
    return known


def flaw_of(known: dict[str, Any]) -> str | None:
    """What is wrong with the values in an index's description; None if they are valid."""
    shards = known["shards"]
    for name, value in (("passages", known["passages"]), *(("rows", shard["rows"]) for shard in shards)):
        if type(value) is not int or value < 0:
            return f"{name}: a number was expected, found {shown(value)}"
    if type(known["dimension"]) is not int or known["dimension"] < 1:
        return f"dimension: a number was expected, found {shown(known['dimension'])}"
    for name in ("encoder", "compressed", "passages_sha256"):
        if not isinstance(known[name], str | None):
            return f"{name}: a text was expected, found {shown(known[name])}"
    pattern = SHARD_FILE if known["compressed"] is None else FAISS_FILE
    for shard in shards:
        if not isinstance(shard["file"], str) or not pattern.fullmatch(shard["file"]):
            return f"file: the name of a shard was expected, found {shown(shard['file'])}"
        if not isinstance(shard["sha256"], str | None):
            return f"sha256: a text was expected, found {shown(shard['sha256'])}"
    if known["compressed"] is not None and not shards:
        return "shards: there are none"
    if known["compressed"] is not None and any(shard["sha256"] is None for shard in shards):
        return "it has no digests, and FAISS files are not read without them"
    return None


def load_own(
    folder: Path, kind: str | None, code_size: int | None, encoder: str | None, dimension: int, device: torch.device
) -> Index:
    described = read_description(folder)
    shards = [(folder / shard["file"], shard["rows"]) for shard in described["shards"]]
    saved_as, count = described["compressed"], described["passages"]
    check_dimension(folder, described["dimension"], dimension)
    if encoder is not None and described["encoder"] not in (None, encoder):
        raise UserError(
            f"{folder}: this index was made by another passage encoder, or with another --retriever_format or "
            "--text_maxlength; make it again with --passages and --save_index_path"
        )
    passages = Passages(folder / PASSAGES)
    if len(passages) != count or sum(rows for _, rows in shards) != count:
        raise UserError(
            f"{folder}: {NAME} says {plural(count, 'passage')}, but {PASSAGES} has {len(passages)}; "
            "copy the index again"
        )
    wanted = kind and compressed_name(kind, code_size)
    if saved_as is not None and saved_as != wanted:
        flag = "--index_mode faiss --faiss_index_type {} --faiss_code_size {}".format(*saved_as.partition("_")[::2])
        raise UserError(f"{folder}: it is a compressed index ({saved_as}); load it with {flag.removesuffix(' ')}")
    if saved_as is not None:
        vectors: Any = load_compressed(shards)
        check_dimension(folder, vectors.index.d, dimension)
    else:
        start, end = workers.rows_of(count)
        segments = list(flat_segments(shards, start, end, dimension))
        if device.type == "cuda":
            segments = [on_device(segments, device)] if segments else []
        vectors = FlatVectors(segments, start)
    return Index(passages, vectors, dimension, described["encoder"])


def on_device(segments: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The segments as one tensor on a device, where nothing but this tensor takes memory for them."""
    whole = segments[0].new_empty(sum(map(len, segments)), segments[0].shape[1], device=device)
    row = 0
    for segment in segments:
        whole[row : row + len(segment)] = segment
        row += len(segment)
    return whole


def flat_segments(shards: list[tuple[Path, int]], start: int, end: int, dimension: int) -> Iterator[torch.Tensor]:
    """Yield the rows from start to before end, memory-mapped from their files."""
    first = 0
    for file, rows in shards:
        low, high = max(start, first), min(end, first + rows)
        if low < high:
            try:
                array = np.load(file, mmap_mode="c")
            except Exception as error:  # numpy raises many kinds of errors for a damaged header
                raise UserError(
                    f"{file}: truncated or damaged ({reason(error)}); copy or make the index again"
                ) from error
            if array.shape != (rows, dimension) or array.dtype != np.float16:
                raise UserError(
                    f"{file}: ({rows}, {dimension}) numbers in float16 were expected, found {array.shape} in "
                    f"{array.dtype}; copy or make the index again"
                )
            segment = torch.from_numpy(array[low - first : high - first])
            require_finite(segment, file, low - first)
            yield segment
        first += rows


def load_compressed(shards: list[tuple[Path, int]]) -> CompressedVectors:
    """This worker's part of the files, merged into one index. All files come from one trained index."""
    import faiss

    if len(shards) < workers.size():
        raise UserError(
            f"{shards[0][0].parent}: each worker needs a FAISS file, but there are {workers.size()} workers and "
            f"{plural(len(shards), 'FAISS file')}; start fewer workers"
        )
    low, high = workers.rows_of(len(shards))
    joined = None
    for file, rows in shards[low:high]:
        try:
            index = faiss.read_index(str(file))
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"{file}: truncated or damaged; copy or make the index again") from error
        if index.ntotal != rows:
            raise UserError(f"{file}: {rows} vectors were expected, found {index.ntotal}; make the index again")
        require_finite_numbers(index, file)
        require_own_rows(index, file)
        if joined is None:
            joined = index
        else:
            joined.merge_from(index, joined.ntotal if hasattr(joined, "nlist") else 0)
    if hasattr(joined, "nlist"):
        joined.nprobe = joined.nlist
    return CompressedVectors(joined, sum(rows for _, rows in shards[:low]))
