"""Which model a result's name belongs to, so that no two models ever share one.

A model's results lie in OUTPUT/NAME/. The name is short (`final`, `run/checkpoint-30`), so another model may have the
same one. The file `.model` in the folder says which model the name belongs to; any other model is refused there.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from teacherlm.errors import UserError
from teacherlm.files import whole_file
from teacherlm.lock import one_writer
from teacherlm.manifests import NAME, read_manifest
from teacherlm.models import Model

OWNER = ".model"


def file_name(task: str) -> str:
    """A task's name as that of a file: `math/algebra` is `math%2Falgebra`."""
    return re.sub(
        r"[^\w .,()+=@~-]|^\.|\.(?=manifest$)", lambda mark: quote(mark[0], safe="").replace(".", "%2E"), task
    )


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


def take_name(results: Path, owner: str, folder: Path, digest: str) -> None:
    """Make sure that a folder of results is this model's; a new one becomes so.

    It is this model's if it belongs to the same identity, if all results in it are of the same weights, or if it belongs
    to a folder that is gone and lay at the same place relative to it: both may have been moved together.

    Args:
        results: OUTPUT/NAME.
        owner: see `identity`.
        folder, digest: of the model.

    Raises:
        UserError: it belongs to another model.
    """
    place = os.path.relpath(folder.resolve(), results.resolve())
    with one_writer(results / OWNER):
        models = scored_models(results)
        known = read_owner(results) or (models[0] if models else None)
        if known is None:
            with whole_file(results / OWNER) as file:
                file.write(json.dumps({"model": owner, "place": place}) + "\n")
            return
    moved = known.get("place") == place and not Path(known["model"]).exists()
    same_weights = {model["sha256"] for model in models} == {digest}
    if known["model"] != owner and not moved and not same_weights:
        raise UserError(
            f"{results} has the results of another model of this name, {known['model']}; "
            f"give another --output_path for those of {owner}"
        )


def read_owner(results: Path) -> dict[str, Any] | None:
    """Which model a folder's name belongs to; None: nothing says it."""
    try:
        return json.loads((results / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def scored_models(results: Path) -> list[dict[str, Any]]:
    """The models that the results in a folder were scored with, as their manifests have them."""
    found = [(read_manifest(path) or {}).get("inputs", {}).get("model") for path in sorted(results.glob(f"*.{NAME}"))]
    return [{"model": str(Path(model["path"]).resolve()), "sha256": model["sha256"]} for model in found if model]
