"""Which model a name in the results belongs to, so that two models never share a name.

The results of a model are in OUTPUT/NAME/. The name is short (`final`, `run/checkpoint-30`), so another model may have
the same name. The manifests in the folder say which model owns the name. Before the first manifest is written, the file
`.model` says so. Any other model is refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherlm.catalog.models import Model
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import load_object
from teacherlm.core.lock import one_writer
from teacherlm.core.manifests import NAME, read_manifest
from teacherlm.core.shapes import flaw_of_shape

OWNER = ".model"
"""The file with the model that is being scored, in a folder that has no results yet."""
OWNED = {"identity": str, "place?": str, "sha256?": str}
"""The fields of that file."""
SCORED = {"path": str, "identity?": str, "place?": str}
"""The fields of the model in a result's manifest."""


def identity(model: Model | None, folder: Path) -> str:
    """A text that identifies a model, independently of its current weights.

    Args:
        model: the model that the user named; None for a folder.
        folder: the folder of the model.
    """
    if model is not None and model.hub:
        return f"{model.hub}@{model.revision}"
    if model is not None and model.package:
        return f"package {json.dumps(dict(model.package), sort_keys=True)}"
    return str(folder.resolve())


def owner_of(model: Model | None, folder: Path, results: Path) -> dict[str, str]:
    """What a result's manifest records of its model: its identity, and its path relative to the results."""
    return {"identity": identity(model, folder), "place": os.path.relpath(folder.resolve(), results.resolve())}


def require_name(results: Path, owner: Mapping[str, str], digest: str) -> None:
    """Make sure that a folder of results has no owner yet, or belongs to this model.

    It belongs to this model in three cases: its owner has the same identity; all results in it were made with the same
    weights; or its owner is a folder that no longer exists and that had the same path relative to the results, because
    both may have been moved together.

    Args:
        results: the folder OUTPUT/NAME.
        owner: the result of `owner_of`.
        digest: the model's digest.

    Raises:
        UserError: the folder belongs to another model.
    """
    models = [owner_at_work(results), *scored_models(results)]
    known = next(filter(None, models), None)
    if known is None or known["identity"] == owner["identity"]:
        return
    moved = known.get("place") == owner["place"] and not Path(known["identity"]).exists()
    same_weights = {model.get("sha256") for model in models if model} == {digest}
    if not moved and not same_weights:
        raise UserError(
            f"{results} has the results of another model of this name, {known['identity']}; "
            f"use another --output_path for the results of {owner['identity']}"
        )


def take_name(results: Path, owner: Mapping[str, str], digest: str) -> None:
    """Reserve a folder of results for this model before the first result is written.

    Raises:
        UserError: the folder belongs to another model.
    """
    with one_writer(results / OWNER):
        require_name(results, owner, digest)
        if not scored_models(results):
            with whole_file(results / OWNER) as file:
                file.write(json.dumps({**owner, "sha256": digest}) + "\n")


def owner_at_work(results: Path) -> dict[str, Any] | None:
    """The model that reserved a folder of results, according to the file `.model`; None if there is none."""
    try:
        owner = load_object(results / OWNER)
    except (OSError, ValueError):
        return None
    return None if flaw_of_shape(owner, OWNED) else owner


def scored_models(results: Path) -> list[dict[str, Any]]:
    """The models of the results in a folder, from their manifests."""
    found = [(read_manifest(path) or {}).get("inputs", {}).get("model") for path in sorted(results.glob(f"*.{NAME}"))]
    known = [model for model in found if flaw_of_shape(model, SCORED) is None]
    return [{"identity": str(Path(model["path"]).resolve()), **model} for model in known]
