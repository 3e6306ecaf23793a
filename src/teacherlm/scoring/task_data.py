"""Load the samples of an old task from a local folder, a loading script, or the hub.

In lm-eval 0.3, `datasets.load_dataset(DATASET_PATH, DATASET_NAME)` loaded a task's samples, and DATASET_PATH was a
folder, a name on the hub, or a loading script in `lm_eval/datasets/`. Today's `load_dataset` refuses loading scripts
and folders from `save_to_disk`. This module loads all of these.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets

from teacherlm.core.errors import UserError
from teacherlm.core.places import require_hub_cache
from teacherlm.core.saved_datasets import load_saved

HOW_TO = "put the samples there (by save_to_disk, or as JSON lines: test.jsonl, validation.jsonl, train.jsonl)"


def load_samples(path: str | None, name: str | None, **kwargs: Any) -> Any:
    """The samples of a DATASET_PATH and a DATASET_NAME, as `datasets.load_dataset` gives them.

    Args:
        kwargs: data_dir, cache_dir and download_mode of `datasets.load_dataset`.

    Raises:
        UserError: there are no such samples. (The library's errors are passed on.)
    """
    if not path:
        raise UserError("DATASET_PATH is empty: set it to a folder, or to the name of a dataset on the hub")
    place = Path(path)
    if place.suffix == ".py":
        if place.is_file():
            return run_script(place, name, kwargs.get("data_dir"), kwargs.get("cache_dir"))
        if not place.parent.is_dir():
            raise UserError(
                f"neither the loading script {place} nor the folder of its samples, {place.parent}, exists; {HOW_TO}"
            )
        place = place.parent
    if place.is_dir():
        return load_folder(place, name, **kwargs)
    if place.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"no such folder: {path}; {HOW_TO}")
    require_hub_cache()
    return datasets.load_dataset(path, name, **kwargs)


def load_folder(folder: Path, name: str | None, **kwargs: Any) -> Any:
    """The samples in a local folder, from `save_to_disk` or as JSON lines, CSV or Parquet files.

    The name may be that of a subfolder or of a configuration. Any other name is ignored, as the library did at the time
    of lm-eval 0.3.
    """
    if name and (folder / name).is_dir():
        return load_folder(folder / name, None, **kwargs)
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return load_saved(folder)
    if name and name not in datasets.get_dataset_config_names(str(folder)):
        name = None
    loaded = datasets.load_dataset(str(folder), name, **kwargs)
    for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
        part.data.validate(full=True)  # the Parquet reader does not check that texts are UTF-8
    return loaded


def run_script(path: Path, name: str | None, data_dir: str | None, cache_dir: str | None) -> Any:
    """The samples that a loading script of the user makes."""
    builders = [value for value in vars(script_module(path)).values() if is_builder(value)]
    if not builders:
        raise UserError(f"{path}: no class that is derived from datasets.GeneratorBasedBuilder")
    builder = builders[-1](config_name=name, data_dir=data_dir, cache_dir=cache_dir)
    builder.download_and_prepare(
        download_mode="reuse_cache_if_exists"
    )  # the samples are made again, because the library's cache does not notice changed data
    return builder.as_dataset()


def is_builder(value: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, datasets.DatasetBuilder)
        and not value.__module__.startswith("datasets.")
    )


def script_module(path: Path) -> ModuleType:
    """The module of a loading script."""
    name = f"lm_eval.datasets.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
