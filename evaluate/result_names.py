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

    It is this model's if it belongs to the same identity, to the same weights, or to a folder that is gone and lay at
    the same place relative to it: both may have been moved together.

    Args:
        results: OUTPUT/NAME.
        owner: see `identity`.
        folder, digest: of the model.

    Raises:
        UserError: it belongs to another model.
    """
    mine = {"model": owner, "place": os.path.relpath(folder.resolve(), results.resolve()), "sha256": digest}
    with one_writer(results / OWNER):
        known = read_owner(results)
        if known and not is_same(known, mine):
            raise UserError(
                f"{results} has the results of another model of this name, {known['model']}; "
                f"give another --output_path for those of {owner}"
            )
        if not known or known.get("model") == owner:
            with whole_file(results / OWNER) as file:
                file.write(json.dumps(mine) + "\n")


def is_same(known: dict[str, Any], mine: dict[str, Any]) -> bool:
    moved = known.get("place") == mine["place"] and not Path(known["model"]).exists()
    return moved or any(known.get(key) == mine[key] for key in ("model", "sha256"))


def read_owner(results: Path) -> dict[str, Any] | None:
    """Whose results are in a folder; of one without `.model`, that of its first result. None: nobody's yet."""
    try:
        return json.loads((results / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    for path in sorted(results.glob(f"*.{NAME}")):
        model = (read_manifest(path) or {}).get("inputs", {}).get("model")
        if model:
            return {"model": str(Path(model["path"]).resolve()), "sha256": model["sha256"]}
    return None
