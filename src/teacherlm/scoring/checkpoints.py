"""The checkpoints of a finetuning: which exist, which are complete, and what the others lack."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, reason
from teacherlm.core.json_files import load_object
from teacherlm.core.names import plain_name
from teacherlm.core.programs import print_error
from teacherlm.scoring.flags import EvaluateFlags

WATCH_SECONDS = 30
STEP = re.compile(r"checkpoint-\d+")


def skip(name: str, fault: str, broken: list[str]) -> None:
    """Print in one line that a model is not scored, and why."""
    print_error(UserError(f"{name} is not scored: {fault}"))
    broken.append(name)


def checkpoints(flags: EvaluateFlags, broken: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield (RUN/checkpoint-N, its folder) for each complete checkpoint of the run, in the order of the steps.

    With --watch, this waits for new checkpoints until finetune.py has written the run's manifest. Until then an
    incomplete checkpoint may still become complete.

    Args:
        broken: the names of checkpoints that stay incomplete are appended to this list.
    """
    run = flags.checkpoints
    if run is None:
        return
    seen: set[Path] = set()
    while True:
        last = not flags.watch or manifests.manifest_of(run).exists()  # checked first: then all checkpoints exist
        found = [path for path in run.glob("checkpoint-*") if STEP.fullmatch(path.name)]
        for path in sorted(set(found) - seen, key=step):
            fault = what_is_missing(path)
            if fault and not last:
                continue
            seen.add(path)
            if not fault:
                yield label(path), path
            elif not flags.list_missing:
                skip(label(path), f"it is incomplete: {fault}", broken)
        if last:
            break
        time.sleep(WATCH_SECONDS)
    if not seen:
        raise UserError(f"{run}: no checkpoint-N there; finetune.sh makes them")


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be loaded: a file is missing or too short; None if the checkpoint is complete."""
    from safetensors import SafetensorError, safe_open

    if not (checkpoint / "config.json").is_file() and not (checkpoint / "adapter_config.json").is_file():
        return "no config.json"
    for name in ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json"):
        if fault := broken_json(checkpoint / name):
            return f"{name}: {fault}"
    index = checkpoint / "model.safetensors.index.json"
    files = set(checkpoint.glob("*.safetensors"))
    if index.is_file():
        try:
            files |= {checkpoint / plain_name(name, index.name) for name in load_object(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name}: it names no files"
        except UserError as error:
            return str(error)
    if not files and not list(checkpoint.glob("*.bin")):
        return "no weights"
    for file in sorted(files):
        try:
            safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {reason(error)}"
    return None


def broken_json(file: Path) -> str | None:
    """Why a file is not a JSON object; None if it is one, or if it does not exist."""
    try:
        load_object(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def label(checkpoint: Path) -> str:
    """The name of a checkpoint in the results, RUN/checkpoint-N, whatever path the user gave."""
    return f"{checkpoint.resolve().parent.name}/{checkpoint.name}"


def step(path: Path) -> int:
    return int(path.name.split("-")[1])
