"""A folder of checkpoints: whose they are, and the last of them that is whole."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from teacherlm import manifests
from teacherlm.errors import UserError
from teacherlm.files import set_aside, through_links, whole_file

RUN = "run.json"


def claim_folder(folder: Path, arguments: Mapping[str, Any], inputs: Mapping[str, Any], restart: bool) -> Path | None:
    """Make the folder this run's own, and return its last whole checkpoint, or None.

    Args:
        arguments, inputs: what the checkpoints depend on; kept in run.json. The number of epochs is not among it:
            more of them continue the same run.
        restart: a folder of another run is set aside instead of refused.

    Raises:
        UserError: the folder holds another run's checkpoints, or files that are no run's at all.
    """
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    if folder.is_dir() and any(folder.iterdir()):
        run = None
        with contextlib.suppress(OSError, ValueError):
            run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if run is None:
            other = [f"it has no {RUN}, so it is not known what made it"]
        else:
            other = manifests.changes({**run, "outputs": {}}, "finetune", arguments, inputs)
        if other and not restart:
            raise UserError(
                f"{folder}: there is another run here ({'; '.join(other)}); choose another run name, or pass "
                "--restart, which keeps that folder beside"
            )
        if other:
            print(f"finetune: {folder} held another run ({'; '.join(other)}), kept as {set_aside(folder)}")
    through_links(folder).mkdir(parents=True, exist_ok=True)
    run = {"stage": "finetune", "version": manifests.stage_version("finetune")}
    run |= {"arguments": dict(arguments), "inputs": dict(inputs)}
    with whole_file(folder / RUN) as file:
        json.dump(run, file, indent=2)
    last = get_last_checkpoint(str(folder))
    return Path(last) if last else None
