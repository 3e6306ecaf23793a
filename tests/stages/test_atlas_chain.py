"""The experiments: as scripts by hand, as chains on this machine, and what is said before jobs are submitted."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.atlas_models import SUBJECTS, make_passages, make_small_mmlu, make_tiny_bert, make_tiny_t5, write_lines
from support.files import read_lines
from support.programs import ROOT, warm_python


@pytest.fixture(scope="module")
def place(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MMLU, passages, and tiny models."""
    folder = tmp_path_factory.mktemp("chain")
    make_tiny_t5(folder / "t5")
    make_tiny_bert(folder / "bert")
    write_lines(folder / "passages.jsonl", make_passages(40))
    make_small_mmlu(folder / "mmlu", shared_data / "mmlu")
    return folder


def environment(place: Path, data: Path, **more: object) -> dict[str, str]:
    settings = {
        "DATA_DIR": data,
        "MMLU_DATA": place / "mmlu",
        "SIZE": "tiny",
        "MODEL_PATH": "none",
        "READER": place / "t5",
        "RETRIEVER": place / "bert",
        "PASSAGES": place / "passages.jsonl",
        "PRECISION": "fp32",
        "FLAGS": "--n_context 2 --text_maxlength 128 --generation_max_length 4 --per_gpu_batch_size 8",
        "PYTHON": warm_python(),
        "LAUNCHER": "local",
        "RUNS": data / "runs",
        "TEACHERLM_CACHE": data / "cache",
        **more,
    }
    return os.environ | {name: str(value) for name, value in settings.items()}


def test_the_chain_ends_with_the_table_and_twice_does_nothing(place: Path, tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), "atlas-zeroshot"]
    done = subprocess.run(command, env=environment(place, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("==")] == [
        "== prepare",
        "== evaluate",
        "== score",
        "== report",
    ]
    assert "category" in done.stdout and last_score(done).split()[0] == "all"
    assert (tmp_path / "experiments" / "report" / "index.html").is_file()
    results = tmp_path / "experiments" / "tiny-mmlu-zeroshot"
    assert len(read_lines(results / "combined_test-step-0.jsonl")) == 16
    assert len(read_lines(results / "combined_valid-step-0.jsonl")) == 4
    again = subprocess.run(command, env=environment(place, tmp_path), capture_output=True, text=True)
    assert again.stdout.count("done already") == 4
    assert last_score(again) == last_score(done)


def last_score(done: subprocess.CompletedProcess) -> str:
    """The last line of the table, before the lines of the report."""
    return done.stdout.partition("\n\n== report\n")[0].splitlines()[-1]


TRAIN = "--retriever_n_context 3 --total_steps 4 --warmup_steps 1 --eval_freq 2 --per_gpu_batch_size 2 --dropout 0"


@pytest.mark.parametrize("setting", ["5-shot-multi", "full"])
def test_one_model_for_all_domains(place: Path, tmp_path: Path, setting: str) -> None:
    settings = environment(place, tmp_path)
    settings["FLAGS"] += " " + TRAIN
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), f"atlas-{setting}"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "experiments" / f"tiny-mmlu-{setting}"
    assert len(read_lines(results / "combined_test-step-4.jsonl")) == 16
    chosen = re.search(r"predictions for \S+, step (\d)", done.stdout)[1]
    assert chosen in "24" and "step 4: " in done.stdout
    assert last_score(done).split()[0] == "all"


def test_a_model_for_each_domain(place: Path, tmp_path: Path) -> None:
    """Each model trains two steps. Another test shows which of several steps is chosen."""
    settings = environment(place, tmp_path)
    settings["FLAGS"] += f" {TRAIN} --total_steps 2"
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), "atlas-5-shot"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "experiments" / "tiny-mmlu-5-shot"
    for domain in SUBJECTS:
        assert len(read_lines(results / domain / f"{domain}.test-step-2.jsonl")) == 4
    assert last_score(done).split()[0] == "all"
    again = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert again.stdout.count("train: done already") == 4


def test_by_hand_from_its_folder_in_two_processes(place: Path, tmp_path: Path) -> None:
    settings = environment(place, tmp_path, NUM_GPUS=2, EXPERIMENT_NAME="mine")
    prepare = [warm_python(), "preprocessing/prepare_mmlu.py", "--output_directory", str(tmp_path)]
    atlas = {"cwd": ROOT / "atlas", "env": settings, "capture_output": True, "text": True}
    done = subprocess.run([*prepare, "--data_directory", str(place / "mmlu")], **atlas)
    assert done.returncode == 0, done.stderr
    script = ["bash", "examples/mmlu/mmlu-zeroshot.sh", *settings["FLAGS"].split()]
    done = subprocess.run(script, **atlas)
    assert done.returncode == 0, done.stderr
    assert "with 2 workers" in done.stdout
    predictions = tmp_path / "experiments" / "mine" / "combined_test-step-0.jsonl"
    gold = tmp_path / "data" / "mmlu_data" / "5-shot-multitask" / "combined_test.jsonl"
    assert [line["metadata"]["question"] for line in read_lines(predictions)] == [
        q["question"] for q in read_lines(gold)
    ]
    score = [warm_python(), "evaluation_scripts/evaluate_mmlu_predictions.py"]
    done = subprocess.run([*score, "--predictions_path", predictions, "--gold_path", gold], **atlas)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said_before_anything_is_submitted(place: Path, tmp_path: Path) -> None:
    """On a login node, the checkpoint must already exist, because jobs have no internet."""
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("squeue", "sbatch"):
        (fake / name).write_text("#!/bin/sh\n")
        (fake / name).chmod(0o755)
    path = {"PATH": f"{fake}:{os.environ['PATH']}", "LAUNCHER": "slurm", "MODEL_PATH": ""}
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), "atlas-zeroshot"]
    result = subprocess.run(command, env=environment(place, tmp_path, **path), capture_output=True, text=True)
    assert result.returncode == 2
    assert f"{tmp_path}/models/atlas/tiny is missing, and jobs have no internet" in result.stderr
    result = subprocess.run(command, env=environment(place, tmp_path, DATA_DIR=""), capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("DATA_DIR is not set")) == (2, 1)
