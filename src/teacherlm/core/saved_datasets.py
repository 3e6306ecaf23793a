"""Folders that `save_to_disk` wrote: their files, and their samples after the files were validated.

`datasets` memory-maps the Arrow files of a folder. They contain offsets of values, so a damaged file could crash the
process without a message. Each file is therefore validated before `datasets` maps it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError, reason
from teacherlm.core.json_files import load_object
from teacherlm.core.limits import FIELDS
from teacherlm.core.names import is_plain_name
from teacherlm.core.terminal import shown


def is_saved(data: Path) -> bool:
    """Whether `save_to_disk` wrote a folder, from a DatasetDict or a Dataset."""
    return any((data / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_files(data: Path) -> list[Path]:
    """The files of a saved dataset, without the caches of `datasets` and without this project's files beside them.

    Raises:
        UserError: a file that describes the dataset is missing, unreadable, or names files outside the folder.
    """
    try:
        found = {data / "dataset_dict.json"} if (data / "dataset_dict.json").is_file() else set()
        parts = [data]
        if found:
            splits = load_object(data / "dataset_dict.json")["splits"]
            parts = [data / plain(name) for name in splits]
        for part in parts:
            state = load_object(part / "state.json")
            found |= {part / "state.json", part / "dataset_info.json"}
            found |= {part / plain(file["filename"]) for file in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(data, error) from error
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise broken(data, f"{min(missing)} is missing")
    return sorted(found)


def plain(name: object) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{name!r:.100} is not a plain name of a file in it")
    return str(name)


def broken(data: Path, why: object) -> UserError:
    why = reason(why) if isinstance(why, Exception) else why
    return UserError(f"{data}: cannot be read as a dataset that save_to_disk wrote ({why}); save or copy it again")


def load_saved(data: Path, splits: bool = False) -> Any:
    """The Dataset or the DatasetDict in a folder that `save_to_disk` wrote, with all columns and as Python values.

    Args:
        data: the folder. If it has both, because one was saved over the other, `datasets` loads the Dataset.
        splits: load the DatasetDict.

    Raises:
        UserError: a file of the folder is missing or damaged, or there are no rows.
    """
    import datasets

    for file in saved_files(data):
        if file.suffix != ".json":
            require_sound(data, file)
    try:
        loaded = (datasets.DatasetDict if splits else datasets).load_from_disk(str(data))
        for part in loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]:
            require_plain(part.features, str(data))
        loaded.reset_format()  # the saved format may leave out columns, or return a library's arrays
        return loaded
    except UserError:
        raise
    except IndexError:  # `datasets` raises this if there are no rows
        raise UserError(f"{data}: empty; at least one sample was expected") from None
    except Exception as error:  # for damaged files, the libraries raise errors of a dozen types
        raise broken(data, error) from error


def require_plain(features: Any, where: str) -> None:
    """Refuse a dataset with columns of images, sounds and the like, which are decoded when a sample is read.

    Raises:
        UserError: the message names the column.
    """
    for name, feature in features.items():
        if kind := decoded_kind(feature):
            raise UserError(
                f"{where}: the column {shown(name)} is of the type {kind}; texts and numbers were expected: save the "
                "dataset without it (remove_columns)"
            )


def decoded_kind(feature: Any) -> str | None:
    """The type name of the first part of a feature that `datasets` decodes when a sample is read; None if none is."""
    if isinstance(feature, dict | list):
        parts = feature.values() if isinstance(feature, dict) else feature
        return next(filter(None, map(decoded_kind, parts)), None)
    if hasattr(feature, "decode_example") and type(feature).__name__ != "Json":
        return type(feature).__name__
    return decoded_kind(feature.feature) if hasattr(feature, "feature") else None


def count_fields(types: Iterable[Any]) -> int:
    """The number of object fields and list elements in these Arrow types, at any depth."""
    parts = [[kind.field(number).type for number in range(kind.num_fields)] for kind in types if kind.num_fields]
    return sum(len(part) + count_fields(part) for part in parts)


def require_sound(data: Path, file: Path) -> None:
    """Refuse an Arrow file with invalid buffers, offsets or texts.

    Raises:
        UserError: the message names the file.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
            types = batches.schema.types
            if len(types) + count_fields(types) > FIELDS:
                raise ValueError(f"it has more than {FIELDS:,} fields, including the fields of objects")
            for batch in batches:
                batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise broken(data, f"{file.name}: {reason(error)}") from error
