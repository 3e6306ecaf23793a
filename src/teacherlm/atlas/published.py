"""Load the reference's published indices. A shard is embeddings.N.pt, a tensor (D, n), and passages.N.pt, a pickle.

A folder is an index only if all its shards exist: 128 in a published index, otherwise the number of
--save_index_n_shards. Passages are converted once to an Arrow file in the user's cache. Its name is a digest of the
shards, so that changed shards are converted again.
"""

import functools
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas import contents, workers
from teacherlm.atlas.flat_search import FlatVectors, first_bad_row
from teacherlm.atlas.index import Index
from teacherlm.atlas.passages import Passages, converted_once, passage_of
from teacherlm.core.errors import UserError, reason
from teacherlm.core.records import checked
from teacherlm.core.terminal import plural, shown
from teacherlm.runtime.compat.of_python import PlainUnpickler

SHARDS = 128
"""Number of shards of a published index."""
KINDS = ("embeddings", "passages")
"""The two kinds of files of a shard."""


def is_published(folder: Path) -> bool:
    """Whether a folder has at least one file of such an index, even if others are missing."""
    return any(numbers(folder, kind) for kind in KINDS)


def numbers(folder: Path, kind: str) -> set[int]:
    """The numbers of the existing files of a kind."""
    names = (re.fullmatch(rf"{kind}\.(0|[1-9]\d*)\.pt", path.name) for path in folder.glob(f"{kind}.*.pt"))
    return {int(match[1]) for match in names if match}


def shard_files(folder: Path, count: int) -> list[Path]:
    """All files of an index with `count` shards.

    Raises:
        UserError: a file is missing, or there are more files.
    """
    for kind in KINDS:
        there = numbers(folder, kind)
        if missing := sorted(set(range(count)) - there):
            raise UserError(
                f"{folder / f'{kind}.{missing[0]}.pt'}: this shard is missing; {count - len(missing)} of {count} are "
                "there; download the index again, which gets the missing shards. An index that was saved in another "
                "number of shards needs --save_index_n_shards"
            )
        if extra := sorted(there - set(range(count))):
            raise UserError(
                f"{folder / f'{kind}.{extra[0]}.pt'}: an index of {plural(count, 'shard')} was expected, but this is a "
                "further one; an index that was saved in another number of shards needs --save_index_n_shards"
            )
    return [folder / f"{kind}.{number}.pt" for kind in KINDS for number in range(count)]


def describe_published(folder: Path, count: int) -> dict[str, Any]:
    """The digest of all shards (see contents.py).

    Raises:
        UserError: a file has changed since it was downloaded.
    """
    files = shard_files(folder, count)
    described = contents.describe(folder, files)
    for file in files:
        noted = contents.noted_digest(file)
        if noted is not None and noted != described["files"][file.name]["sha256"]:
            raise UserError(
                f"{file}: not the file that was downloaded (its SHA-256 differs from that in "
                f"{contents.record_of(file).name}); remove both files and download it again"
            )
    return described


def load_published(folder: Path, count: int, dimension: int, device: torch.device) -> Index:
    """Load an index. All workers call this together, and each gets a part of the vectors.

    Args:
        count: number of shards.
        dimension: dimension of the retriever's vectors.
        device: the device on which the index is searched.

    Raises:
        UserError: the index is incomplete, damaged, of another dimension, or has vectors that are not finite.
    """
    described = workers.from_first(functools.partial(describe_published, folder, count))
    files = [folder / f"embeddings.{number}.pt" for number in range(count)]
    tensors = workers.each(lambda: [load_tensor(file, dimension) for file in files])
    counts = [tensor.shape[1] for tensor in tensors]
    passages = Passages(Path(workers.from_first(lambda: str(convert(folder, described, counts)))))
    start, end = workers.rows_of(len(passages))
    segments = workers.each(lambda: list(segments_between(files, tensors, start, end, device)))
    workers.from_first(lambda: contents.require_unchanged(folder, shard_files(folder, count), described))
    return Index(passages, FlatVectors(segments, start), dimension, encoder=None)


def load_tensor(file: Path, dimension: int) -> torch.Tensor:
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch's readers can raise anything
        raise UserError(f"{file}: not a complete tensor of embeddings ({reason(error)}); download it again") from error
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2 or not tensor.is_floating_point():
        raise UserError(f"{file}: a tensor (dimension, passages) was expected; download the index again")
    check_dimension(file, tensor.shape[0], dimension)
    return tensor


def check_dimension(place: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{place}: its vectors have {found} dimensions, but the retriever's have {expected}; another retriever "
            "made this index"
        )


def segments_between(
    files: Sequence[Path], tensors: Sequence[torch.Tensor], start: int, end: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield the vectors of the rows from start to before end, as float16 (n, D) for each shard."""
    first = 0
    for file, tensor in zip(files, tensors):
        low, high = max(start, first) - first, min(end, first + tensor.shape[1]) - first
        if low < high:
            segment = tensor[:, low:high].T.to(device, torch.float16).contiguous()
            require_finite(segment, file, low)
            yield segment
        first += tensor.shape[1]


def require_finite(vectors_ND: torch.Tensor, file: Path, first_row: int) -> None:
    """Refuse vectors with a NaN or an infinity, which would be the best for every query.

    Args:
        first_row: the row in the file of the first vector.
    """
    bad = first_bad_row(vectors_ND)
    if bad is not None:
        raise UserError(
            f"{file}: the vector of row {first_row + bad} has numbers that are not finite (NaN or infinity); download "
            "or make the index again"
        )


def convert(folder: Path, described: dict[str, Any], counts: Sequence[int]) -> Path:
    """The Arrow file with an index's passages. Its name is a digest of the shards and the numbers of vectors."""
    digests = [described["files"][f"passages.{number}.pt"]["sha256"] for number in range(len(counts))]
    key = hashlib.sha256(json.dumps([digests, list(counts)]).encode()).hexdigest()[:32]
    passages = pickled_passages(folder, counts)
    files = shard_files(folder, len(counts))
    return converted_once(key, contents.while_unchanged(folder, files, described, passages))


def pickled_passages(folder: Path, counts: Sequence[int]) -> Iterator[dict[str, str]]:
    """The passages of all shards. Each shard must have as many passages as vectors.

    As in the reference, a passage may have an empty text, because users cannot correct a published file.
    """
    for number, count in enumerate(counts):
        file = folder / f"passages.{number}.pt"
        try:
            passages = PlainUnpickler(io.BytesIO(file.read_bytes())).load()
        except FileNotFoundError as error:
            raise UserError(f"{file}: this shard is missing; download the index again") from error
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{file}: not a pickled list of passages ({reason(error)}); download it again") from error
        if not isinstance(passages, list) or len(passages) != count:
            found = len(passages) if isinstance(passages, list) else type(passages).__name__
            raise UserError(
                f"{file}: a list of {plural(count, 'passage')} was expected, one per vector of embeddings.{number}.pt, "
                f"found {found}"
            )
        for place, passage in enumerate(passages):
            where = f"{file}, passage {place}"
            if not isinstance(passage, dict):
                raise UserError(f"{where}: a mapping {{id, title, text}} was expected, found {shown(passage)}")
            passage = {
                name: value for name, value in passage.items() if name != "section"
            }  # the title already contains it
            yield checked(passage_of(passage, where), where)
