"""Records become a `datasets` folder: streamed, with features that are the same however many samples there are."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_object
from teacherlm.core.limits import FIELDS, INNER_FIELDS
from teacherlm.core.records import Record
from teacherlm.core.saved_datasets import count_fields
from teacherlm.core.terminal import shown
from teacherlm.core.trees import files_below

Placed = tuple[str, Record]
"""(where a record stands, the record)."""

Stream = Callable[[], Iterator[Placed]]
"""Opens the records anew at each call. It is called twice: for the features, then for the values."""

TYPE_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)

BATCH_ROWS, BATCH_CELLS, BATCH_LETTERS = 1000, 1_000_000, 16_000_000
"""Records are written in batches of at most so many, so many values and (but for the last record) so much text."""


def write_dataset(stream: Stream, folder: Path) -> int:
    """Write the records, in their order, as `Dataset.save_to_disk` would; returns how many there are.

    Memory does not grow with their number.

    Raises:
        UserError: a field has values of types that do not go together (both places are named), or there are too many.
    """
    empty_dataset(infer_schema(stream)).save_to_disk(str(folder), num_shards=1)
    return fill(folder, stream)


def write_dataset_dict(streams: Mapping[str, Stream], folder: Path) -> dict[str, int]:
    """Like `write_dataset`, for several splits by name, as `DatasetDict.save_to_disk` would."""
    import datasets

    empty = {name: empty_dataset(infer_schema(stream)) for name, stream in streams.items()}
    datasets.DatasetDict(empty).save_to_disk(str(folder), num_shards=dict.fromkeys(empty, 1))
    return {name: fill(folder / name, stream) for name, stream in streams.items()}


def empty_dataset(schema: pa.Schema) -> Any:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features.from_arrow_schema(schema)
    table = datasets.table.InMemoryTable(features.arrow_schema.empty_table())
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint="empty")


def fill(folder: Path, stream: Stream) -> int:
    """Write the records into the Arrow file of an empty dataset's folder; but for its fingerprint, all else is right.

    `datasets` itself takes records only into a cache, which it copies; its pages would count as memory in use.
    """
    (file,) = folder.glob("data-*.arrow")
    with pa.OSFile(str(file)) as source:
        schema = pa.ipc.open_stream(source).schema
    count = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches(stream(), max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, len(schema))))):
            writer.write_batch(to_arrow(batch, schema))
            count += len(batch)
    state = folder / "state.json"
    described = load_object(state)
    described["_fingerprint"] = fingerprint(file)  # it names what `datasets` caches of this content
    state.write_text(json.dumps(described, indent=2), encoding="utf-8")
    return count


def fingerprint(file: Path) -> str:
    return manifests.sha256(file)[:16]


def has_our_fingerprints(folder: Path) -> bool:
    """Whether `fill` wrote every dataset below `folder`: the fingerprints of `datasets` are no digests of its files."""
    states = [file for file in files_below(folder) if file.name == "state.json"]
    try:
        found = [(load_object(state), state.parent) for state in states]
        return bool(found) and all(
            [state["_fingerprint"]] == [fingerprint(place / file["filename"]) for file in state["_data_files"]]
            for state, place in found
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def batches(records: Iterable[Placed], rows: int) -> Iterator[list[Placed]]:
    batch: list[Placed] = []
    letters = 0
    for where, record in records:
        batch.append((where, record))
        letters += count_letters(record)
        if len(batch) == rows or letters > BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def count_letters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(count_letters, value.values()))
    return sum(map(count_letters, value)) if isinstance(value, list) else 8


def to_arrow(batch: list[Placed], schema: pa.Schema) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_pylist([record for _, record in batch], schema=schema)
    except TYPE_ERRORS:
        for where, record in batch:
            for field in schema:
                try:
                    pa.array([record.get(field.name)], field.type)
                except TYPE_ERRORS as error:
                    raise UserError(
                        f"{where}: the field {shown(field.name)} is {shown(record[field.name])}, which does not go "
                        f"with the {field.type} that it is elsewhere; make it one type"
                    ) from error
        raise


def infer_schema(stream: Stream) -> pa.Schema:
    """The Arrow schema that holds every record: all of them are looked at, none is kept."""
    types: dict[str, pa.DataType] = {}
    for _ in gather_types(stream(), types):
        pass
    return pa.schema(list(types.items()))


def gather_types(records: Iterable[Placed], types: dict[str, pa.DataType]) -> Iterator[Record]:
    """Pass records on, and put the Arrow type that holds all values of a field so far into `types`."""
    first: dict[str, str] = {}
    large: dict[str, dict[pa.DataType, Any]] = {}  # of each type of a field one value that no float holds exactly
    for where, record in records:
        for name, value in record.items():
            known = types.get(name)
            if isinstance(value, str) and known == STRING:
                continue
            try:
                found = type_of(value)
                types[name] = found if known is None else unify(known, found)
                if has_large_number(value):
                    large.setdefault(name, {})[found] = value
                    pa.array([value], types[name])
                if name in large and types[name] != known:
                    for kept in large[name].values():
                        pa.array([kept], types[name])
            except TYPE_ERRORS as error:
                other = f"the {known} that it is elsewhere ({first[name]})" if name in first else "itself"
                raise UserError(
                    f"{where}: the field {shown(name)} is {shown(value)}, which does not go with {other}; "
                    "make it one type"
                ) from error
            if known is None or pa.types.is_null(known):
                first[name] = where
            if types[name] != known:
                if len(types) > FIELDS:
                    raise UserError(f"{where}: with it the records have more than {FIELDS:,} fields; leave some out")
                if count_fields([types[name]]) > INNER_FIELDS:
                    raise UserError(
                        f"{where}: with it the objects in the field {shown(name)} have more than {INNER_FIELDS:,} "
                        "fields; make such an object a list, or a text"
                    )
        yield record


def type_of(value: Any) -> pa.DataType:
    """The Arrow type of a value; of a list or an object it is sure that all parts of the value go with it.

    `infer_type` looks at the parts of a list only until it has seen a type.
    """
    return pa.array([value]).type if isinstance(value, list | dict) else pa.infer_type([value])


LARGEST_EXACT = 2**53
"""A float holds all whole numbers up to this one; Arrow makes no floats of larger ones."""


def has_large_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) > LARGEST_EXACT
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(has_large_number, parts))


STRING = pa.string()


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both: whole numbers become floats, nulls become anything; a text and a number do not mix."""
    if one == other:
        return one
    schemas = [pa.schema([("field", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("field").type
