"""finetune.py: checkpoints, resuming after a kill, and what it answers to a folder or dataset that does not fit."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.finetuning import EPOCHS, STEPS, flags, read_log, weights
from support.programs import ROOT, STAGES, only_error, warm_python
from support.warm_python import kill
from transformers import AutoModelForCausalLM, AutoTokenizer

SH = ["bash", ROOT / "finetune" / "finetune.sh"]


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Path:
    return prepared / "SAMPLE"


def positional(model: Path, dataset: Path, store: Path) -> list[object]:
    return [*SH, model, dataset, 4, 1, 1e-3, EPOCHS, "cot_text", "run", store, "test", "--logging_steps", 4]


def start(command: list[object], **options: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHON": warm_python()}
    return subprocess.Popen(list(map(str, command)), env=environment, text=True, **options)


@pytest.fixture(scope="module")
def done(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STORE_DIR/RUN_NAME of an uninterrupted run."""
    store = tmp_path_factory.mktemp("store")
    command = start(positional(tiny_llama, dataset, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = command.communicate()
    assert command.returncode == 0, errors
    assert "no GPU here: training in one process on the CPU" in output
    return store / "run"


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of `done` that a test may change."""
    return Path(shutil.copytree(done, tmp_path / "store" / "run"))


def test_each_epoch_has_a_checkpoint_with_its_tokenizer(done: Path) -> None:
    folders = sorted(done.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert [path.name for path in folders] == [f"checkpoint-{STEPS * epoch}" for epoch in range(1, EPOCHS + 1)]
    for folder in folders:
        assert AutoTokenizer.from_pretrained(folder)("A moon.").input_ids
    assert len(set(weights(done).values())) == EPOCHS


def test_the_log_accounts_for_every_step(done: Path) -> None:
    log = read_log(done)
    assert [record["step"] for record in log] == [4, 6, 8, 12, 16, 18, 20, 24]
    assert sum(record["steps"] for record in log) == EPOCHS * STEPS
    assert log[-1]["epoch"] == EPOCHS
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_dataset_dict_means_its_train_split(done: Path) -> None:
    assert json.loads((done / "manifest.json").read_text())["counts"]["samples"] == 24


def test_what_is_done_is_not_done_again(tiny_llama: Path, dataset: Path, again: Path, inside: Callable) -> None:
    before = contents(again)
    result = inside("finetune", *flags(tiny_llama, dataset, again))
    assert result.returncode == 0, result.stderr
    assert "done already, nothing to do" in result.stdout
    assert contents(again) == before


@pytest.mark.parametrize("moment", ["between two checkpoints", "while a checkpoint is written"])
def test_killed_it_resumes_and_ends_as_if_it_had_not_been(
    tiny_llama: Path, dataset: Path, done: Path, tmp_path: Path, inside: Callable, moment: str
) -> None:
    folder = tmp_path / "run"
    log, partial = folder / "log.jsonl", folder / ".partial" / f"checkpoint-{3 * STEPS}"
    killed = start([warm_python(), STAGES["finetune"], *flags(tiny_llama, dataset, folder)], stdout=subprocess.PIPE)
    while killed.poll() is None:
        time.sleep(0.001)
        if partial.exists() if moment.startswith("while") else log.exists() and '"step": 16' in log.read_text():
            break
    assert kill(killed) == -signal.SIGKILL
    killed.stdout.close()
    assert not (folder / "manifest.json").exists()
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert read_log(folder)[-1]["step"] > int(last.name.split("-")[1])  # steps that are done again
    finished = inside("finetune", *flags(tiny_llama, dataset, folder))
    assert finished.returncode == 0, finished.stderr
    assert f"resuming from {last}" in finished.stdout
    assert not partial.parent.exists()
    assert read_log(folder) == read_log(done)
    assert weights(folder) == weights(done)


def test_a_checkpoint_that_was_not_whole_is_removed_and_never_resumed_from(
    tiny_llama: Path, dataset: Path, done: Path, again: Path, inside: Callable
) -> None:
    (again / "manifest.json").unlink()
    last = again / f"checkpoint-{EPOCHS * STEPS}"
    (again / ".partial").mkdir()
    last.rename(again / ".partial" / last.name)
    os.truncate(again / ".partial" / last.name / "model.safetensors", 1000)
    finished = inside("finetune", *flags(tiny_llama, dataset, again))
    assert f"resuming from {again / f'checkpoint-{(EPOCHS - 1) * STEPS}'}\n" in finished.stdout
    assert not (again / ".partial").exists()
    assert weights(again) == weights(done)


def test_more_epochs_continue_from_the_last_checkpoint(
    tiny_llama: Path, dataset: Path, done: Path, tmp_path: Path, inside: Callable
) -> None:
    words = flags(tiny_llama, dataset, tmp_path / "run")
    assert inside("finetune", *words, "--num_train_epochs", 2).returncode == 0
    result = inside("finetune", *words)
    assert f"resuming from {tmp_path / 'run' / f'checkpoint-{2 * STEPS}'}\n" in result.stdout
    assert read_log(tmp_path / "run") == read_log(done)
    assert weights(tmp_path / "run") == weights(done)


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--seed", 7, "seed was 42, is 7"),
        ("--learning_rate", 2e-3, "learning_rate was 0.001, is 0.002"),
        ("--task_type", "text", "task_type was 'cot_text', is 'text'"),
    ],
)
def test_another_run_s_folder_is_refused_and_what_differs_is_named(
    flag: str, value: object, named: str, tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    before = contents(again)
    result = inside("finetune", *flags(tiny_llama, dataset, again), flag, value)
    assert f"{again}: there is another run here ({named})" in only_error(result)
    assert contents(again) == before


def test_another_dataset_in_the_same_folder_is_refused(
    tiny_llama: Path, dataset: Path, again: Path, tmp_path: Path, inside: Callable
) -> None:
    import datasets

    datasets.load_from_disk(str(dataset))["train"].select(range(20)).save_to_disk(str(tmp_path / "other"))
    before = contents(again)
    result = inside("finetune", *flags(tiny_llama, tmp_path / "other", again))
    assert "another run here (the dataset changed)" in only_error(result)
    assert contents(again) == before


def test_restart_keeps_the_other_run_beside(tiny_llama: Path, dataset: Path, again: Path, inside: Callable) -> None:
    before = {name: content for name, (content, _) in contents(again).items()}
    words = [*flags(tiny_llama, dataset, again), "--seed", 7, "--num_train_epochs", 1, "--restart"]
    assert inside("finetune", *words).returncode == 0
    (kept,) = again.parent.glob("run.old-*")
    assert {name: content for name, (content, _) in contents(kept).items()} == before
    assert [path.name for path in again.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert weights(again)[f"checkpoint-{STEPS}"] != weights(kept)[f"checkpoint-{STEPS}"]


def test_a_field_that_the_dataset_lacks_lists_those_it_has(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    words = [*flags(tiny_llama, dataset, tmp_path / "run"), "--task_type", "cot_tail"]
    error = only_error(inside("finetune", *words))
    assert "no text field 'cot_tail'; there are: " in error
    assert "text, cot_text, error_text, fundamental_text" in error
    assert not (tmp_path / "run").exists()


def test_each_model_class_trains_and_its_checkpoint_loads(
    tiny_model: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    import torch

    words = [*flags(tiny_model, dataset, tmp_path / "run"), "--num_train_epochs", 1]
    result = inside("finetune", *words)
    assert result.returncode == 0, result.stderr
    before, after = (
        AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model, tmp_path / "run" / f"checkpoint-{STEPS}")
    )
    assert type(after) is type(before)
    assert not torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
