"""The checkpoints of a finetuning: which there are, which of them are whole, and what the others lack."""

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
    """Say in one line that a model is not scored, and why."""
    print_error(UserError(f"{name} is not scored: {fault}"))
    broken.append(name)


def checkpoints(flags: EvaluateFlags, broken: list[str]) -> Iterator[tuple[str, Path]]:
    """(RUN/checkpoint-N, its folder) for each whole checkpoint of the run, in the order of their steps.

    With --watch new ones too, until finetune.py has written the run's manifest; one that is not whole may still be on
    its way until then.

    Args:
        broken: gets the names of those that are not whole in the end.
    """
    run = flags.checkpoints
    if run is None:
        return
    seen: set[Path] = set()
    while True:
        last = not flags.watch or manifests.manifest_of(run).exists()  # asked first: what it lists is there then
        found = [path for path in run.glob("checkpoint-*") if STEP.fullmatch(path.name)]
        for path in sorted(set(found) - seen, key=step):
            fault = what_is_missing(path)
            if fault and not last:
                continue
            seen.add(path)
            if not fault:
                yield label(path), path
            elif not flags.list_missing:
                skip(label(path), f"it is not whole: {fault}", broken)
        if last:
            break
        time.sleep(WATCH_SECONDS)
    if not seen:
        raise UserError(f"{run}: no checkpoint-N there; finetune.sh makes them")


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be loaded: a file that is not there or shorter than it says; None when it is whole."""
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
    """Why a file is no JSON object; None when it is one, or is not there."""
    try:
        load_object(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def label(checkpoint: Path) -> str:
    """RUN/checkpoint-N, as its results are called, however it was named."""
    return f"{checkpoint.resolve().parent.name}/{checkpoint.name}"


def step(path: Path) -> int:
    return int(path.name.split("-")[1])
