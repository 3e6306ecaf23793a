"""A result's name belongs to one model: another model of the same name is refused and nothing is lost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.files import contents
from support.programs import only_error
from support.scoring import words
from transformers import AutoModelForCausalLM


@pytest.fixture
def run(prepared: Path, tmp_path: Path, inside: Callable) -> Callable:
    def run(model: Path, *more: object) -> subprocess.CompletedProcess:
        return inside("evaluate", *words(model, "sample", prepared / "tests", tmp_path / "out", "--limit", 2, *more))

    return run


def copy(model: Path, folder: Path, seed: int | None = None) -> Path:
    """A copy of a model's folder. With a seed, the copy gets different weights."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    if seed is not None:
        torch.manual_seed(seed)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        torch.nn.init.normal_(loaded.get_input_embeddings().weight)
        loaded.save_pretrained(folder)
    return folder


def test_two_folders_of_one_name(tiny_llama: Path, tmp_path: Path, run: Callable) -> None:
    one, two = (copy(tiny_llama, tmp_path / name / "final", seed) for seed, name in enumerate("ab"))
    assert run(one).returncode == 0
    before = contents(tmp_path / "out")
    error = only_error(run(two))
    assert f"{tmp_path / 'out' / 'final'} has the results of another model of this name, {one}; " in error
    assert f"use another --output_path for the results of {two}" in error
    assert contents(tmp_path / "out") == before
    assert run(two, "--output_path", tmp_path / "other").returncode == 0
    assert json.loads((tmp_path / "out" / "final" / "sample.json").read_text())["path"] == str(one)


def test_checkpoints_of_two_runs_of_one_name_in_one_call(tiny_llama: Path, tmp_path: Path, run: Callable) -> None:
    one, two = (copy(tiny_llama, tmp_path / name / "run" / "checkpoint-2", seed) for seed, name in enumerate("ab"))
    error = only_error(run(one, "--checkpoints", two.parent))
    assert (
        f"{tmp_path / 'out' / 'run' / 'checkpoint-2'} has the results of another model of this name, {one}; " in error
    )
    assert json.loads((tmp_path / "out" / "run" / "checkpoint-2" / "sample.json").read_text())["path"] == str(one)
    again = run(one, "--checkpoints", one.parent)  # the same one twice
    assert again.stdout.count("done already, nothing to do") == 2


def test_a_model_that_was_made_anew_or_moved_with_its_results_keeps_its_name(
    tiny_llama: Path, tmp_path: Path, run: Callable
) -> None:
    model = copy(tiny_llama, tmp_path / "runs" / "final", 0)
    out = ["--output_path", tmp_path / "runs" / "out"]
    assert run(model, *out).returncode == 0
    first = (tmp_path / "runs" / "out" / "final" / "sample_samples.jsonl").read_text()
    copy(tiny_llama, model, 1)
    assert "done already" not in run(model, *out).stdout
    second = (tmp_path / "runs" / "out" / "final" / "sample_samples.jsonl").read_text()
    assert second != first
    (tmp_path / "runs").rename(tmp_path / "moved")
    model, out = tmp_path / "moved" / "final", ["--output_path", tmp_path / "moved" / "out"]
    assert "done already" in run(model, *out).stdout
    copy(tiny_llama, model, 2)
    done = run(model, *out)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "moved" / "out" / "final" / "sample_samples.jsonl").read_text() != second


def test_results_from_before_names_were_kept_are_not_overwritten(
    tiny_llama: Path, tmp_path: Path, run: Callable
) -> None:
    one, two = (copy(tiny_llama, tmp_path / name / "final", seed) for seed, name in enumerate("ab"))
    assert run(one).returncode == 0
    path = tmp_path / "out" / "final" / "sample.manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["inputs"]["model"]["identity"], manifest["inputs"]["model"]["place"]
    path.write_text(json.dumps(manifest))
    assert f"another model of this name, {one}" in only_error(run(two))
    assert "done already" in run(one).stdout


def test_a_name_in_models_and_a_folder_of_that_name(
    tiny_llama: Path, tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teacherlm.catalog import models

    one, two = (copy(tiny_llama, tmp_path / name / "final", seed) for seed, name in enumerate("ab"))
    (tmp_path / "final.yaml").write_text(f"family: llama\npath: {one}\n")
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    assert run(Path("final")).returncode == 0
    assert "done already" in run(one).stdout  # the same model by another name
    assert f"another model of this name, {one}" in only_error(run(two))


TAKE = """
import sys
from pathlib import Path
from teacherlm.scoring.result_names import take_name
from teacherlm.core.errors import UserError
try:
    take_name(Path(sys.argv[1]), {"identity": sys.argv[2], "place": sys.argv[2]}, sys.argv[2])
except UserError as error:
    sys.exit(str(error))
"""


def test_of_many_processes_at_once_one_has_the_name(tmp_path: Path) -> None:
    owners = [str(tmp_path / name / "final") for name in "abcd"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(tmp_path / "out"), owner],
            stderr=subprocess.PIPE,
            text=True,
        )
        for owner in owners
    ]
    errors = [process.communicate()[1] for process in running]
    [winner] = [owner for owner, process in zip(owners, running) if process.returncode == 0]
    losers = [error for error in errors if error]
    assert len(losers) == 3
    assert all(f"has the results of another model of this name, {winner}; " in error for error in losers)
    assert json.loads((tmp_path / "out" / ".model").read_text())["identity"] == winner
