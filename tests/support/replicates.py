"""Folders of runs with several seeds: finetunings whose manifests differ in the seed, or in what a test says."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.report_runs import DIGEST, STUDENT, write_result
from teacherlm.core import manifests
from teacherlm.core.records import write_records

ARGUMENTS = {"task_type": "text", "learning_rate": 2e-05, "num_train_epochs": 2.0, "effective_batch": 8}
STEPS = (3, 6)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def described(path: Path | str, text: str) -> dict[str, Any]:
    """What a manifest says of an input or output, with the digest of a text that stands for its content."""
    return {"path": str(path), "sha256": digest(text), "files": {}}


def write_seed(
    folder: Path,
    name: str,
    seed: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    dataset: str = "dataset",
    datasets: Sequence[str] = (),
    student: str = DIGEST,
    questions: int = 60,
    answers: int | None = None,
    scored_as: Mapping[str, Any] | None = None,
) -> None:
    """Write NAME_seedN, a finished finetuning with two scored checkpoints.

    Args:
        arguments: the arguments that differ from those of other runs.
        dataset: a text that stands for the dataset's content.
        datasets: the same for each of several training sets.
        answers: the number that determines which answers are right; by default one that the seed gives.
        scored_as: the arguments of the scoring.
    """
    run = folder / "finetune" / f"{name}_seed{seed}"
    run.mkdir(parents=True)
    log = [{"step": n, "steps": 1, "epoch": n / 3, "loss": 3 - n / 10 - seed / 100} for n in range(1, 7)]
    write_records(run / "log.jsonl", log)
    several = {f"dataset {number}": described("dataset", one) for number, one in enumerate(datasets, 1)}
    sets = several or {"dataset": described("dataset", dataset)}
    inputs = {"student": {"path": STUDENT, "sha256": student}, **sets}
    recorded = {**ARGUMENTS, **(arguments or {}), "seed": seed}
    (run / "run.json").write_text(json.dumps({"arguments": {"task_type": "text"}, "inputs": inputs}))
    for step in STEPS:
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "config.json").write_text(json.dumps({"seed": seed}))
        result = f"{run.name}/checkpoint-{step}/creak"
        write_result(folder, result, 1000 * (answers if answers is not None else seed) + step, questions)
        if scored_as is not None:
            change_manifest(folder / "evaluate" / f"{result}.manifest.json", arguments=dict(scored_as))
    outputs = {f"checkpoint-{step}": manifests.describe(run / f"checkpoint-{step}") for step in STEPS}
    write_manifest(run / manifests.NAME, "finetune", recorded, inputs, outputs, {"steps": 6, "seconds": 36.0})


def write_manifest(
    path: Path,
    stage: str,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"arguments": arguments, "inputs": inputs, "outputs": outputs, "counts": counts or {}}
    manifests.write_manifest(path, stage=stage, started=time.time(), **made)


def write_texts_and_dataset(folder: Path, seed: int, temperature: float = 1.0) -> str:
    """The manifests of a teacher's texts and of the dataset with them. Return the text that stands for the dataset."""
    place = folder / "enhance" / f"teacher_seed{seed}"
    texts, dataset = f"texts of seed {seed} at {temperature}", f"dataset of seed {seed} at {temperature}"
    records = described("CREAK.jsonl", "the prompts")
    asked = {"task_type": "cot_text", "temperature": temperature, "seed": seed, "shard": [0, 1]}
    enhanced = {"enhanced": described(place / "CREAK_cot.jsonl", texts)}
    write_manifest(place / "CREAK_cot.manifest.json", "enhance", asked, {"records": records}, enhanced)
    made = {"dataset": described(place / "CREAK", dataset)}
    cot = {"cot": described("CREAK_cot.jsonl", texts)}
    write_manifest(place / "CREAK" / manifests.NAME, "post_process", {"seed": seed}, cot, made)
    return dataset


def change_manifest(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
