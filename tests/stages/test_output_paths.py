"""Output paths that cannot be written in UTF-8 are refused before any work; without a home folder, one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.atlas_models import run_script
from support.programs import ROOT, only_error

from teacherlm.core.errors import UserError
from teacherlm.core.places import cache_folder, in_home

BAD = os.fsdecode(b"run\xff")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / BAD


def words_of(stage: str, place: Path, model: Path, records: Path, dataset: Path) -> list[object]:
    finetune = ["--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", place]
    evaluate = ["--model", "hf", "--model_args", f"pretrained={model}", "--tasks", "sample", "--output_path", place]
    return {
        "data_prepare": ["--benchmark", "sample", "--output_dir", place, "--test_dir", place.parent / "tests"],
        "enhance": ["--name", model, "--input", records, "--output", place / "o.jsonl", "--task_type", "cot_text"],
        "merge": ["--input", records, "--output", place / "o.jsonl", "--shards", 2],
        "finetune": [*finetune, "--task_type", "cot_text", "--max_source_length", 64],
        "evaluate": evaluate,
    }[stage]


@pytest.mark.parametrize("stage", ["data_prepare", "enhance", "merge", "finetune", "evaluate"])
def test_an_output_that_is_no_utf_8_is_refused_at_once(
    stage: str, place: Path, inside: Callable, tiny_llama: Path, prepared: Path
) -> None:
    """Otherwise its manifest or a library's file could not be written at the end."""
    words = words_of(stage, place, tiny_llama, prepared / "SAMPLE.jsonl", prepared / "SAMPLE")
    message = only_error(inside(stage, *words))
    assert "run\\udcff" in message and "this path is not valid UTF-8" in message
    assert not place.exists()


@pytest.mark.parametrize("name", ["train", "evaluate", "preprocessing/prepare_mmlu", "preprocessing/download_model"])
def test_atlas_refuses_such_an_output_too(name: str, place: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.touch()
    run = ["--reader_model_type", tmp_path, "--closed_book", "--checkpoint_dir", place]
    words = {
        "train": [*run, "--train_data", questions],
        "evaluate": [*run, "--eval_data", questions],
        "preprocessing/prepare_mmlu": ["--output_directory", place, "--data_directory", tmp_path],
        "preprocessing/download_model": ["--model", "models/atlas/base", "--output_directory", place],
    }[name]
    assert "path is not valid UTF-8" in only_error(run_script(ROOT / "atlas" / f"{name}.py", [*map(str, words)], {}))


def test_a_place_for_the_index_is_tried_before_the_passages_are_embedded(place: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.touch()
    words = ["--reader_model_type", tmp_path, "--passages", questions, "--eval_data", questions]
    words += ["--checkpoint_dir", tmp_path, "--save_index_path", place]
    assert "path is not valid UTF-8" in only_error(run_script(ROOT / "atlas" / "evaluate.py", [*map(str, words)], {}))


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none_is_one_line(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    for name in ("TEACHERLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no home folder for ~/.cache/teacherlm .* set HOME, or TEACHERLM_CACHE"):
        cache_folder()
    assert in_home("/models/mine", "HOME") == Path("/models/mine")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user whom the system does not know")
def test_a_user_whom_the_system_does_not_know_gets_one_line() -> None:
    """This is the case in a container that runs with any user id. HOME is not set."""
    program = "from teacherlm.core.programs import run\n"
    program += "from teacherlm.core.places import cache_folder\nimport os; os.setuid(54321); run(cache_folder)"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "TEACHERLM_CACHE")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "HOME is not set" in only_error(done)
