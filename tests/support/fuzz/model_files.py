"""Models' YAML files, as the stages and the shell of the chain read them."""

import random
import shutil
from pathlib import Path

from support.fuzz.benchmark_files import BOMBS
from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one
from support.programs import ROOT

from teacherlm.catalog import models
from teacherlm.core.errors import UserError

NUMBERS = ("enhance.batch", "enhance.num_tokens", "finetune.batch", "finetune.accumulation", "finetune.learning_rate")
NUMBERS += tuple(f"slurm.{stage}.{name}" for stage in ("enhance", "finetune", "evaluate") for name in ("nodes", "gpus"))
ARITHMETIC = [
    b'"BASH_VERSINFO[$(id)]"',
    b'"a[$(touch victim)]"',
    b"1+1",
    b"0x10",
    b"-1",
    b"1e3",
    b'"1; id"',
    b"08",
    b"''",
]
NAMES = ("bloomz-7b1", "smollm2-135m")


def example(folder: Path) -> None:
    (folder / "models").mkdir()
    for name in NAMES:
        shutil.copyfile(ROOT / "models" / f"{name}.yaml", folder / "models" / f"{name}.yaml")


def damage(files: Files, draw: random.Random) -> Files:
    name = draw.choice(sorted(files))
    action = draw.random()
    if action < 0.8:
        return damage_one(files, draw)
    if action < 0.9:
        return files | {name: draw.choice([files[name], b""]) + draw.choice(BOMBS)}
    field = draw.choice(
        [b"nodes: 1", b"gpus: 1", b"gpus: 8", b"cpus: 8", b"batch: 8", b"accumulation: 1", b"memory: 16G"]
    )
    return files | {name: files[name].replace(field, field.split(b" ")[0] + b" " + draw.choice(ARITHMETIC))}


def read(place: Path) -> None:
    """Check that every number for a shell is one: in `$(( ))` a name or an index would be evaluated."""
    models.FOLDER = place / "models"
    for name in NAMES:
        if not (models.FOLDER / f"{name}.yaml").is_file():
            raise UserError(f"{models.FOLDER}: one was removed")
        model = models.find_model(name)
        for dotted in NUMBERS:
            said = models.for_shell(model.recommended(dotted))
            assert float(said) >= 0 and not {*said} - {*"0123456789.e-+"}, (dotted, said)
        for stage in ("enhance", "finetune", "evaluate"):
            for field in ("cpus", "memory", "time"):
                said = models.for_shell(model.recommended(f"slurm.{stage}.{field}"))
                assert said.isprintable() and not {*said} & {*"$`;&|<>()[]{} '\"\\"}, (stage, field, said)


SUBJECT = Subject("model_files", example, read, damage)
