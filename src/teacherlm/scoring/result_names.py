"""Which model a result's name belongs to, so that no two models ever share one.

A model's results lie in OUTPUT/NAME/. The name is short (`final`, `run/checkpoint-30`), so another model may have the
same one. The manifests in the folder say which model the name belongs to, and until there is one, the file `.model`
does. Any other model is refused there.
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
"""In a folder of results that has none yet: the model that is being scored."""
OWNED = {"identity": str, "place?": str, "sha256?": str}
"""What is in that file."""
SCORED = {"path": str, "identity?": str, "place?": str}
"""What a result's manifest says of its model."""


def identity(model: Model | None, folder: Path) -> str:
    """What tells a model from all others, whatever its weights are at the moment.

    Args:
        model: as it was asked for; None: as a folder.
        folder: where it lies.
    """
    if model is not None and model.hub:
        return f"{model.hub}@{model.revision}"
    if model is not None and model.package:
        return f"package {json.dumps(dict(model.package), sort_keys=True)}"
    return str(folder.resolve())


def owner_of(model: Model | None, folder: Path, results: Path) -> dict[str, str]:
    """What a result's manifest says of its model: its identity, and where it lies relative to the results."""
    return {"identity": identity(model, folder), "place": os.path.relpath(folder.resolve(), results.resolve())}


def require_name(results: Path, owner: Mapping[str, str], digest: str) -> None:
    """Make sure that a folder of results is nobody's yet, or this model's.

    It is this model's if it belongs to the same identity, if all results in it are of the same weights, or if it
    belongs to a folder that is gone and lay at the same place relative to it: both may have been moved together.

    Args:
        results: OUTPUT/NAME.
        owner: see `owner_of`.
        digest: of the model.

    Raises:
        UserError: it belongs to another model.
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
            f"give another --output_path for those of {owner['identity']}"
        )


def take_name(results: Path, owner: Mapping[str, str], digest: str) -> None:
    """Make a folder of results this model's, before the first result is there.

    Raises:
        UserError: it belongs to another model.
    """
    with one_writer(results / OWNER):
        require_name(results, owner, digest)
        if not scored_models(results):
            with whole_file(results / OWNER) as file:
                file.write(json.dumps({**owner, "sha256": digest}) + "\n")


def owner_at_work(results: Path) -> dict[str, Any] | None:
    """The model that took a folder of results and has none there yet."""
    try:
        owner = load_object(results / OWNER)
    except (OSError, ValueError):
        return None
    return None if flaw_of_shape(owner, OWNED) else owner


def scored_models(results: Path) -> list[dict[str, Any]]:
    """The models that the results in a folder were scored with, as their manifests have them."""
    found = [(read_manifest(path) or {}).get("inputs", {}).get("model") for path in sorted(results.glob(f"*.{NAME}"))]
    known = [model for model in found if flaw_of_shape(model, SCORED) is None]
    return [{"identity": str(Path(model["path"]).resolve()), **model} for model in known]
