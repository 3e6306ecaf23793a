"""Folders of runs for the tests of the report: real files of every stage, with made-up answers of models."""

import json
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from support.files import sample_claims
from support.programs import STAGES, warm_python
from teacherlm.catalog.prompts import test_context
from teacherlm.core import manifests
from teacherlm.core.records import read_records, write_records

STUDENT = "tiny"
DIGEST = "f" * 64


def write_run(
    folder: Path, texts: Mapping[str, Sequence[str]] | None = None, runs: Sequence[str] = ("tiny_text_seed0",)
) -> Path:
    """A run's folder with prepared claims, a teacher's texts, post-processed, and scored finetunings.

    Args:
        texts: maps each kind to the teacher's texts, one per sample; None means only claims, 12 of them.
        runs: the names of the finetunings, with two epochs each.
    """
    count = len(next(iter(texts.values()))) if texts else 12
    data = folder.parent / f"{folder.name}-claims"
    data.mkdir(parents=True)
    for name, split, size in (("train", "train", count), ("dev", "dev", 60)):
        claims = [claim for _, claim in zip(range(size), sample_claims(split))]
        claims += [{**claims[0], "sentence": f"Claim {n} is made up."} for n in range(len(claims), size)]
        write_records(data / f"{name}.json", claims)
    prepare(folder, "--data", data, "--output_dir", folder / "prepare")
    if texts:
        write_texts(folder, texts)
        prepare(folder, "--output_dir", folder / "enhance" / "teacher_seed0", "--post_process")
    write_result(folder, f"{STUDENT}/creak", 0)
    for number, name in enumerate(runs):
        write_finetuning(folder / "finetune" / name, 1e-5 * (number + 1))
        for step in (3, 6):
            write_result(folder, f"{name}/checkpoint-{step}/creak", 100 * number + step)
    return folder


def prepare(folder: Path, *words: object) -> None:
    command = [
        warm_python(),
        STAGES["data_prepare"],
        "--benchmark",
        "creak",
        "--test_dir",
        folder / "prepare" / "test",
    ]
    subprocess.run([*map(str, command), *map(str, words)], check=True, capture_output=True)


def write_texts(folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
    source = folder / "prepare" / "CREAK.jsonl"
    samples = [record for _, record in read_records(source)]
    for kind, written in texts.items():
        path = folder / "enhance" / "teacher_seed0" / f"CREAK_{kind}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [{**s, kind: text, "all": s[f"{kind}_text"] + text} for s, text in zip(samples, written)]
        write_records(path, records)
        finish(path, "enhance", {"records": len(records), "failures": 0, "new_tokens": 400, "seconds": 2.5})


def write_finetuning(folder: Path, rate: float) -> None:
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "steps": 1, "epoch": step / 3, "loss": 3 - step / 10, "learning_rate": rate}
        for step in range(1, 7)
    ]
    write_records(folder / "log.jsonl", lines)
    about = {"arguments": {"task_type": "text"}, "inputs": {"student": {"path": STUDENT, "sha256": DIGEST}}}
    (folder / "run.json").write_text(json.dumps(about))
    for step in (3, 6):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "config.json").write_text("{}")
    finish(folder, "finetune", {"samples": 12, "steps": 6, "processes": 2, "seconds": 36.0}, folder / "log.jsonl")


def write_result(folder: Path, name: str, seed: int, questions: int = 60) -> dict[str, Any]:
    """Write a result and its samples. The seed determines which answers are correct."""
    path = folder / "evaluate" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    samples = []
    for number, claim in zip(range(questions), sample_claims("dev")):
        gold = "A" if claim["label"] == "true" else "B"
        choice = gold if draw.random() < 0.6 else "AB"[gold == "A"]
        prompt = test_context(
            f"Determine the correctness of the following sentence. {claim['sentence']} (A) True (B) False"
        )
        loglikelihoods = {"A": -0.5, "B": -1.0} if choice == "A" else {"A": -1.0, "B": -0.5}
        samples.append(
            {"doc_id": number, "prompt": prompt, "gold": gold, "choice": choice, "loglikelihoods": loglikelihoods}
            | {"acc": float(choice == gold)}
        )
    result = result_of(path.stem, samples)
    path.write_text(json.dumps(result))
    write_records(path.with_name(f"{path.stem}_samples.jsonl"), samples)
    inputs = {"model": {"path": STUDENT, "sha256": DIGEST}} if name.startswith(f"{STUDENT}/") else {}
    finish(path, "evaluate", {"samples": questions, "seconds": 4.0}, inputs=inputs)
    return result


def result_of(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    correct, n = sum(sample["acc"] == 1 for sample in samples), len(samples)
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    shown = {"model": STUDENT, "task": task, "metric": "acc", "value": correct / n, "n": n, "correct": correct}
    return {**shown, "stderr": 0.05, "interval_95": [interval.low, interval.high], "num_fewshot": 0}


def finish(
    path: Path,
    stage: str,
    counts: Mapping[str, Any],
    output: Path | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    outputs = {"made": manifests.describe(output or path)}
    manifests.write_manifest(
        manifests.manifest_of(path),
        stage=stage,
        arguments={"seed": 0},
        inputs=inputs or {},
        outputs=outputs,
        counts=counts,
        started=time.time(),
    )
