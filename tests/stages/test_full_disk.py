"""A disk that is full in the middle: one line, exit 2, earlier results as they were, and the same command goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.files import contents
from support.finetuning import flags
from support.two_processes import finetune

NO_SPACE = "no space is left on the device; free some, then run the same command again: it continues"


class SmallDisk:
    """A file system in memory."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, *options: str) -> None:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", self.folder], text=True)
        if mounted.returncode:
            pytest.skip("a small file system cannot be mounted here (root is needed)")

    def grow(self) -> None:
        self.mount("remount", "size=20m")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 100 kB, which holds some batches but neither a dataset with its files nor a checkpoint."""
    disk = SmallDisk(tmp_path / "disk")
    disk.folder.mkdir()
    disk.mount("size=100k")
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=True)


def check_full(result: subprocess.CompletedProcess) -> None:
    """Check that stderr has one line about it, apart from the progress bar."""
    assert result.returncode == 2, result.stderr
    assert [line for line in result.stderr.splitlines() if "error" in line.lower()] == [result.stderr.splitlines()[-1]]
    assert result.stderr.endswith(f": {NO_SPACE}\n")


def test_data_prepare(disk: SmallDisk, claims: Path, inside: Callable) -> None:
    folder = disk.folder / "prepared"
    sample = ["--benchmark", "sample", "--output_dir", folder, "--test_dir", folder / "tests"]
    check_full(inside("data_prepare", *sample))
    assert not (folder / "SAMPLE").exists()
    assert not list(folder.rglob("*tmp*"))
    disk.grow()
    assert inside("data_prepare", *sample).returncode == 0
    assert "done already" in inside("data_prepare", *sample).stdout


def test_enhance(disk: SmallDisk, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    (disk.folder / "ballast").write_bytes(bytes(92 * 1024))  # what is left holds the lock, and some completions
    command = ["--name", tiny_llama, "--input", prepared / "SAMPLE.jsonl", "--task_type", "cot_text"]
    command += ["--num_tokens", 64, "--batch_size", 2, "--dtype", "float32"]
    outputs = [folder / "SAMPLE_cot.jsonl" for folder in (disk.folder, tmp_path)]
    check_full(inside("enhance", *command, "--output", outputs[0]))
    assert not outputs[0].exists()

    (disk.folder / "ballast").unlink()
    again = inside("enhance", *command, "--output", outputs[0])
    assert again.returncode == 0, again.stderr
    assert "of 24 completions; continuing with the others" in again.stdout
    inside("enhance", *command, "--output", outputs[1])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_finetune(disk: SmallDisk, tiny_llama: Path, prepared: Path, inside: Callable) -> None:
    run = disk.folder / "run"
    command = flags(tiny_llama, prepared / "SAMPLE", run)
    check_full(inside("finetune", *command))
    assert not list(run.glob("checkpoint-*"))
    assert not (run / ".partial").exists()
    disk.grow()
    again = inside("finetune", *command)
    assert again.returncode == 0, again.stderr
    assert len(list(run.glob("checkpoint-*"))) == 4


def test_finetune_in_two_processes(disk: SmallDisk, tiny_llama: Path, prepared: Path) -> None:
    """The process that saves finds the disk full. The other one waits for it and must not wait for ever."""
    words = ["--deepspeed", "zero2"]
    full = finetune(tiny_llama, prepared / "SAMPLE", disk.folder, 2, *words)
    assert full.returncode == 2
    (error,) = [line for line in full.stderr.splitlines() if ": error:" in line]
    assert "Traceback" not in full.stderr
    assert error.endswith(NO_SPACE)
    run = disk.folder / "run"
    assert not list(run.glob("checkpoint-*"))
    disk.grow()
    again = finetune(tiny_llama, prepared / "SAMPLE", disk.folder, 2, *words)
    assert again.returncode == 0, again.stderr
    assert len(list(run.glob("checkpoint-*"))) == 2


def test_evaluate(disk: SmallDisk, tiny_llama: Path, prepared: Path, inside: Callable) -> None:
    command = ["--model_args", f"pretrained={tiny_llama}", "--datasets", prepared / "tests", "--tasks", "sample"]
    command += ["--output_path", disk.folder]
    inside("evaluate", *command, "--limit", 2)
    before = contents(disk.folder)
    (disk.folder / "ballast").write_bytes(bytes(72 * 1024))
    check_full(inside("evaluate", *command))
    after = contents(disk.folder)
    assert {name: after[name] for name in before} == before
    (disk.folder / "ballast").unlink()
    assert inside("evaluate", *command).returncode == 0
