"""Folders of adapters (peft's format): which base model they belong to, and whether it is still the same."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherlm.errors import UserError
from teacherlm.json_files import load_object

if TYPE_CHECKING:
    from teacherlm.models import Model

CONFIG = "adapter_config.json"
BASE = "base_model.json"
"""File in a checkpoint of adapters: the digest of the model that they were trained on."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters without their base model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_reference(model: "Model", folder: Path) -> tuple[str, str | None]:
    """How adapters name their base model: its hub id and commit, or its absolute path.

    Args:
        model: the base model.
        folder: where it is on this machine; that of a model from the hub is named after its commit.
    """
    if model.hub is None:
        return str(folder.absolute()), None
    return model.hub, folder.name if COMMIT.fullmatch(folder.name) else model.revision


def base_folder(folder: Path) -> Path:
    """The folder of the base model that the adapters in a folder belong to; fetched from the hub where it is there.

    Raises:
        UserError: it cannot be found; the message names it.
    """
    from teacherlm.models import Model, local_folder

    try:
        config = load_object(folder / CONFIG)
        name, revision = config["base_model_name_or_path"], config.get("revision")
        base = Path(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: it does not name the adapters' base model ({error})") from error
    if base.is_dir():
        return base
    if base.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(
            f"{folder}: the base model of these adapters is not there: {name}; put it back, or write where it is now "
            f"as base_model_name_or_path into {CONFIG}"
        )
    try:
        return local_folder(Model(name=base.name, hub=name, revision=revision or "main"))
    except UserError as error:
        raise UserError(
            f"{folder}: the base model of these adapters, {name}, is no folder here, and as a hub id: {error}"
        ) from error


def write_base_digest(folder: Path, digest: str) -> None:
    (folder / BASE).write_text(json.dumps({"sha256": digest}) + "\n", encoding="utf-8")


def check_base_digest(folder: Path, base: Mapping[str, Any]) -> None:
    """Refuse adapters whose base model is not the one that they were trained on, where they say which one that was.

    Args:
        base: description of the base model's folder.

    Raises:
        UserError: it names the base model.
    """
    if not (folder / BASE).is_file():
        return
    try:
        trained = str(load_object(folder / BASE)["sha256"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder / BASE}: a JSON object with sha256 was expected") from error
    if base["sha256"] != trained:
        raise UserError(
            f"{folder}: the base model of these adapters, {base['path']}, changed since they were trained (sha256 "
            f"{trained[:12]}, now {base['sha256'][:12]}); put the former one back, or train them again"
        )
