"""A checkpoint that somebody else could write to: its pickles are data, and what is damaged is named."""

import json
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.files import contents
from support.finetuning import EPOCHS, STEPS, flags
from support.pickles_with_code import Evil
from support.programs import STAGES, only_error

from teacherlm.runtime.pickles import without_code


@pytest.fixture(scope="module")
def run(tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after its first epoch."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patched:
        command = [*flags(tiny_llama, prepared / "SAMPLE", folder), "--num_train_epochs", 1]
        patched.setattr(sys, "argv", [str(STAGES["finetune"]), *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(STAGES["finetune"]), run_name="__main__")
    assert ended.value.code == 0
    return folder


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run") / f"checkpoint-{STEPS}"


def legacy(value: object, file: Path) -> None:
    torch.save(value, file, _use_new_zipfile_serialization=False)


def bare(value: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(value))


def by_name_on_the_stack(value: object, file: Path) -> None:
    """A pickle of protocol 4 that composes names on the stack, where a search for names does not find them."""
    torch.save(value, file, pickle_protocol=4)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("write", [torch.save, legacy, bare, by_name_on_the_stack])
def test_a_planted_pickle_does_not_run_when_training_goes_on(
    write: Callable, name: str, checkpoint: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    write({"state": Evil(tmp_path / "evil")}, checkpoint / name)
    before = contents(checkpoint)
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", checkpoint.parent)))
    assert f"{checkpoint / name}: refused" in error
    assert "training resumes from the one before" in error
    assert not (tmp_path / "evil").exists()
    assert contents(checkpoint) == before


def test_what_passes_the_look_for_names_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """The search only gives a message. This prevents code from running, whoever calls torch.load with any arguments."""
    torch.save({"state": Evil(tmp_path / "evil")}, tmp_path / "states.pt")
    with without_code(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "states.pt", weights_only=False)
    assert not (tmp_path / "evil").exists()
    torch.load(tmp_path / "states.pt", weights_only=False)  # the pickle is a real one
    assert (tmp_path / "evil").exists()


def test_a_checkpoint_goes_on_as_before_and_holds_no_arguments(
    checkpoint: Path, tiny_llama: Path, prepared: Path, inside: Callable
) -> None:
    result = inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", checkpoint.parent))
    assert result.returncode == 0, result.stderr
    assert f"resuming from {checkpoint}" in result.stdout
    assert not list(checkpoint.parent.rglob("training_args.bin"))


KEPT = '{"global_step": 6, "epoch": 1, "stateful_callbacks": {"RunningLoss": %s}}'


def make_former(checkpoint: Path, total: float | None = None, since: int | None = None) -> None:
    """Convert a checkpoint to the form of earlier versions, which kept the running loss in a separate file."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    kept = state["stateful_callbacks"].pop("RunningLoss")["args"]
    file.write_text(json.dumps(state))
    kept = {"sum": kept["total"] if total is None else total, "since": kept["since"] if since is None else since}
    (checkpoint / "running_loss.json").write_text(json.dumps(kept))


def test_a_checkpoint_of_an_earlier_version_goes_on_with_its_running_loss(
    checkpoint: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    """The checkpoint says that two steps with a loss of 5 each followed the last line of the log."""
    folders = [checkpoint.parent, shutil.copytree(checkpoint.parent, tmp_path / "other")]
    make_former(checkpoint)
    make_former(folders[1] / checkpoint.name, total=10.0, since=STEPS - 2)
    lines = []
    for folder in folders:
        result = inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", folder))
        assert result.returncode == 0, result.stderr
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        lines.append([entry["loss"] for entry in log if entry["step"] > STEPS])
        saved = [json.loads(file.read_text()) for file in folder.glob("checkpoint-*/trainer_state.json")]
        assert sum("RunningLoss" in state["stateful_callbacks"] for state in saved) == EPOCHS - 1
    plain, carried = lines
    assert carried[0] == pytest.approx((10 + 2 * plain[0]) / 4)
    assert carried[1:] == plain[1:]


def test_a_checkpoint_without_a_running_loss_is_one_line(
    checkpoint: Path, tiny_llama: Path, prepared: Path, inside: Callable
) -> None:
    make_former(checkpoint)
    (checkpoint / "running_loss.json").unlink()
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", checkpoint.parent)))
    assert f"{checkpoint / 'running_loss.json'}: no such file" in error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", "[1]"),
        ("trainer_state.json", "[" * 100_000),
        ("trainer_state.json", '{"global_step": "six", "epoch": 1}'),
        ("trainer_state.json", KEPT % '[{"args": {"total": 1.5, "since": 4}}]'),
        ("trainer_state.json", KEPT % '{"args": {"total": NaN, "since": 4}}'),
        ("running_loss.json", '{"sum": null, "since": 0}'),
        ("running_loss.json", "\\udcff"),
    ],
)
def test_a_damaged_state_is_one_line(
    name: str, content: str, checkpoint: Path, tiny_llama: Path, prepared: Path, inside: Callable
) -> None:
    if name == "running_loss.json":
        make_former(checkpoint)
    (checkpoint / name).write_text(content)
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", checkpoint.parent)))
    assert f"{checkpoint / name}: cannot be read" in error


def test_a_cut_off_state_is_one_line(checkpoint: Path, tiny_llama: Path, prepared: Path, inside: Callable) -> None:
    os.truncate(checkpoint / "optimizer.pt", 1000)
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", checkpoint.parent)))
    assert f"{checkpoint / 'optimizer.pt'}: refused or damaged" in error
