"""finetune.py's flags: all of the documented ones are taken, and a wrong one is answered in a line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.finetuning import STEPS, flags, read_log, weights
from support.programs import STAGES, only_error, warm_python


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Path:
    return prepared / "SAMPLE"


@pytest.mark.parametrize("output", ["below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_named(
    output: str, tiny_llama: Path, dataset: Path, prepared: Path, inside: Callable
) -> None:
    folder = prepared / "SAMPLE.jsonl" / "below" if output == "below a file" else Path("/proc/sys/kernel/teacherlm")
    result = inside("finetune", *flags(tiny_llama, dataset, folder / "run"))
    error = only_error(result)
    assert str(folder) in error
    assert "cannot be written" in error


def test_a_missing_student_or_dataset_is_named(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    output = tmp_path / "run"
    assert "bloomz-7b1" in only_error(inside("finetune", *flags(Path("bloomz-7b"), dataset, output)))
    assert "no such dataset" in only_error(inside("finetune", *flags(tiny_llama, tmp_path / "gone", output)))
    assert not output.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--learning_rat", 1),
        ("word",),
        ("--learning_rate", "fast"),
        ("--lr", "bogus"),
        ("--save_strategy", "never"),
        ("--max_source_length", 1),
        ("--per_device_train_batch_size", 0),
        ("--eval_strategy", "epoch"),
    ],
    ids=lambda wrong: " ".join(map(str, wrong)),
)
def test_a_wrong_flag_is_one_line(
    wrong: tuple[object, ...], tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    error = only_error(inside("finetune", *flags(tiny_llama, dataset, tmp_path / "run"), *wrong))
    assert str(wrong[0]).removeprefix("--") in error
    assert not (tmp_path / "run").exists()


def test_every_documented_flag_is_taken_on_a_cpu(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    words = [
        *flags(tiny_llama, dataset, tmp_path / "run"),
        *("--do_train", "--max_source_length", 100, "--report_to", "wandb", "--run_name", "a run", "--fp16"),
        *("--deepspeed", "deepspeed/zero2.json", "--num_train_epochs", 1),
    ]
    command = list(map(str, [warm_python(), STAGES["finetune"], *words]))
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--fp16 and --deepspeed left out" in result.stdout
    assert (tmp_path / "run" / f"checkpoint-{STEPS}").is_dir()


def test_bf16_on_a_cpu_learns_nearly_the_same(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ["--num_train_epochs", 1]
    exact = inside("finetune", *flags(tiny_llama, dataset, tmp_path / "exact"), *words)
    rounded = inside("finetune", *flags(tiny_llama, dataset, tmp_path / "rounded"), *words, "--bf16")
    assert "in float32" in exact.stdout
    assert rounded.returncode == 0, rounded.stderr
    assert "in bfloat16" in rounded.stdout
    losses = [[record["loss"] for record in read_log(tmp_path / name)] for name in ("exact", "rounded")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_the_seed_decides_and_full_determinism_is_taken(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    made = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        words = ["--num_train_epochs", 1, "--seed", seed, "--full_determinism", "true"]
        result = inside("finetune", *flags(tiny_llama, dataset, tmp_path / name), *words)
        assert result.returncode == 0, result.stderr
        made[name] = weights(tmp_path / name)
    torch.use_deterministic_algorithms(False)  # the tests share this process
    assert made["a"] == made["b"] != made["c"]


def test_tensorboard_gets_the_numbers_of_the_log(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    result = inside("finetune", *flags(tiny_llama, dataset, run), "--num_train_epochs", 1, "--report_to", "tensorboard")
    assert result.returncode == 0, result.stderr
    (events,) = run.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events))
    board.Reload()
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    assert shown == pytest.approx({record["step"]: record["loss"] for record in read_log(run)}, rel=1e-6)
