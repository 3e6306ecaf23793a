"""Records become a `datasets` folder: streamed, with features that are the same however many samples there are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from teacherlm.errors import UserError
from teacherlm.files import beside
from teacherlm.records import Record

Stream = Callable[[], Iterator[tuple[str, Record]]]
"""Opens the records anew at each call: (where a record stands, the record)."""


def make_dataset(stream: Stream, scratch: Path) -> tuple[Any, Path]:
    """A `datasets.Dataset` of the records, in their order, and the folder of its Arrow file, to be removed once saved.

    Memory does not grow with the number of records.

    Args:
        stream: called twice: for the features, then for the values.
        scratch: the path that the dataset is for; the Arrow file is built beside it.

    Raises:
        UserError: a field has values of types that do not go together (both places are named).
    """
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features.from_arrow_schema(infer_schema(stream))
    names = list(features)

    def rows() -> Iterator[Record]:
        for _, record in stream():
            yield {name: record.get(name) for name in names}

    cache = beside(scratch, "cache")
    return datasets.Dataset.from_generator(rows, features=features, cache_dir=str(cache)), cache


def infer_schema(stream: Stream) -> pa.Schema:
    """The Arrow schema that holds every record: all of them are looked at, none is kept."""
    types: dict[str, pa.DataType] = {}
    first: dict[str, str] = {}
    for where, record in stream():
        for name, value in record.items():
            known = types.get(name)
            if isinstance(value, str) and known == pa.string():
                continue
            try:
                found = pa.infer_type([value])
                types[name] = found if known is None else unify(known, found)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise UserError(
                    f"{where}: the field {name!r} is {str(value)[:40]!r}, which does not go with the {known} "
                    f"that it is elsewhere ({first.get(name, where)}); make it one type"
                ) from error
            if known is None or pa.types.is_null(known):
                first[name] = where
    return pa.schema(list(types.items()))


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both: whole numbers become floats, nulls become anything; a text and a number do not mix."""
    if one == other:
        return one
    schemas = [pa.schema([("field", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("field").type
