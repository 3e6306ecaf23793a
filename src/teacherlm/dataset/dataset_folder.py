"""Writing records to a `datasets` folder as a stream. The features do not depend on the number of records."""

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
"""(the record's place, for messages; the record)."""

Stream = Callable[[], Iterator[Placed]]
"""Opens the records again at each call. It is called twice: for the features, then for the values."""

TYPE_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)

BATCH_ROWS, BATCH_CELLS, BATCH_CHARACTERS = 1000, 1_000_000, 16_000_000
"""Limits of a batch of records: maximum number of records, of values, and of characters (the last record may exceed
it)."""


def write_dataset(stream: Stream, folder: Path, typed: Stream | None = None) -> int:
    """Write the records in order, in the format of `Dataset.save_to_disk`; return the number of records.

    Memory does not grow with the number of records.

    Args:
        typed: records with the same fields and types, if they are made faster than those of the stream.

    Raises:
        UserError: a field has values of incompatible types (the message names both places), or there are too many
            fields.
    """
    empty_dataset(infer_schema(typed or stream)).save_to_disk(str(folder), num_shards=1)
    return fill(folder, stream)


def write_dataset_dict(streams: Mapping[str, Stream], folder: Path) -> dict[str, int]:
    """Like `write_dataset`, but for several named splits, in the format of `DatasetDict.save_to_disk`."""
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
    """Write the records into the Arrow file of an empty dataset's folder, and update its fingerprint.

    `datasets` would write the records to a cache and copy it, and the cache's mapped pages would count as used memory.
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
    described["_fingerprint"] = fingerprint(file)  # `datasets` names its caches of this content after it
    state.write_text(json.dumps(described, indent=2), encoding="utf-8")
    return count


def fingerprint(file: Path) -> str:
    return manifests.sha256(file)[:16]


def has_our_fingerprints(folder: Path) -> bool:
    """Whether `fill` wrote every dataset below `folder`. The fingerprints of `datasets` are not digests of files."""
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
    characters = 0
    for where, record in records:
        batch.append((where, record))
        characters += count_characters(record)
        if len(batch) == rows or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def count_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(count_characters, value.values()))
    return sum(map(count_characters, value)) if isinstance(value, list) else 8


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
                        f"{where}: the field {shown(field.name)} is {shown(record[field.name])}, which does not fit "
                        f"its type {field.type} in other records; make it one type"
                    ) from error
        raise


def infer_schema(stream: Stream) -> pa.Schema:
    """The Arrow schema that fits all records. Every record is read, and none is kept in memory."""
    types: dict[str, pa.DataType] = {}
    for _ in gather_types(stream(), types):
        pass
    return pa.schema(list(types.items()))


def gather_types(records: Iterable[Placed], types: dict[str, pa.DataType]) -> Iterator[Record]:
    """Yield the records, and set in `types` the Arrow type that fits all values of a field so far."""
    first: dict[str, str] = {}
    large: dict[str, dict[pa.DataType, Any]] = {}  # field -> type -> a value that no float represents exactly
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
                other = f"its type {known} in {first[name]}" if name in first else "a single type"
                raise UserError(
                    f"{where}: the field {shown(name)} is {shown(value)}, which does not fit {other}; make it one type"
                ) from error
            if known is None or pa.types.is_null(known):
                first[name] = where
            if types[name] != known:
                if len(types) > FIELDS:
                    raise UserError(f"{where}: up to here the records have more than {FIELDS:,} fields; remove some")
                if count_fields([types[name]]) > INNER_FIELDS:
                    raise UserError(
                        f"{where}: up to here the objects in the field {shown(name)} have more than {INNER_FIELDS:,} "
                        "fields; make such an object a list or a text"
                    )
        yield record


def type_of(value: Any) -> pa.DataType:
    """The Arrow type of a value. A list or an object is converted completely, which checks all its parts.

    `infer_type` would read the parts of a list only until it finds a type.
    """
    return pa.array([value]).type if isinstance(value, list | dict) else pa.infer_type([value])


LARGEST_EXACT = 2**53
"""A float represents all whole numbers up to this one. Arrow does not convert larger ones to floats."""


def has_large_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) > LARGEST_EXACT
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(has_large_number, parts))


STRING = pa.string()


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that fits both: whole numbers become floats, and null fits any type. Texts and numbers do not mix."""
    if one == other:
        return one
    schemas = [pa.schema([("field", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("field").type
