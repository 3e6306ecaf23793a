"""A terminal that lacks printed characters (PYTHONIOENCODING=ascii, LC_ALL=C): no traceback, and the same files."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.finetuning import flags
from support.programs import ROOT, STAGES, only_error
from support.report_runs import write_run
from support.scoring import words as evaluate_words

from teacherlm.core.errors import reason
from teacherlm.core.terminal import printable

ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def ascii_terminal(inside: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`inside`, with streams as PYTHONIOENCODING=ascii makes them."""

    def run(*words: object) -> subprocess.CompletedProcess:
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = io.FileIO(number, "w", closefd=False)
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, "ascii", errors="strict", write_through=True))
        with pytest.raises(UnicodeEncodeError):
            print("é")
        return inside(*words)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name every stage prints."""
    folder = tmp_path / "modèle ± 例"
    folder.mkdir()
    return folder


def test_the_stages_print_to_an_ascii_terminal(
    folder: Path, tiny_llama: Path, prepared: Path, ascii_terminal: Callable
) -> None:
    model = Path(shutil.copytree(tiny_llama, folder / "modèle"))
    dataset = Path(shutil.copytree(prepared / "SAMPLE", folder / "SAMPLE données"))
    texts = ["--task_type", "cot_text", "--num_tokens", 4]
    records = prompts(folder / "SAMPLE.jsonl", 2)
    sample = ["--benchmark", "sample", "--output_dir", folder / "préparé", "--test_dir", folder / "tests"]
    results = evaluate_words(model, "sample", prepared / "tests", folder / "results")
    commands = [
        ["data_prepare", *sample, "--limit", 4],
        ["enhance", "--name", model, "--input", records, "--output", folder / "cot.jsonl", *texts],
        ["finetune", *flags(model, dataset, folder / "run"), "--num_train_epochs", 1],
        ["evaluate", *results, "--limit", 2, "--checkpoints", folder / "run"],
    ]
    for command in commands:
        result = ascii_terminal(*command)
        assert result.returncode == 0, result.stderr
        assert "\\xe8" in result.stdout  # the è of the folder
    assert "\\xb1 0." in result.stdout  # of the table's standard errors
    assert len(read_lines(folder / "cot.jsonl")) == 2
    assert (folder / "results" / "modèle" / "sample.json").is_file()


def test_a_mistake_is_one_line_on_an_ascii_terminal(folder: Path, ascii_terminal: Callable) -> None:
    records = folder / "SAMPLE.jsonl"
    records.write_text('{"ex_id": "例"\n', encoding="utf-8")
    command = ["--name", "field:sentence", "--input", records, "--output", folder / "out.jsonl"]
    error = only_error(ascii_terminal("enhance", *command, "--task_type", "cot_text"))
    assert "mod\\xe8le \\xb1 \\u4f8b/SAMPLE.jsonl, line 1: one JSON object in UTF-8 was expected" in error


def test_reports_print_to_an_ascii_terminal(folder: Path, ascii_terminal: Callable) -> None:
    run = write_run(folder / "creak" / "all", {"cot": ["It is so."] * 12}, ("tiny_text_seed0",))
    assert ascii_terminal("report", run).returncode == 0
    assert ascii_terminal("compare", run, "--output", folder / "compare").returncode == 0
    assert (folder / "compare" / "index.html").is_file()


@pytest.mark.parametrize("environment", [ASCII, C], ids=["PYTHONIOENCODING=ascii", "LC_ALL=C"])
def test_a_process_with_such_a_terminal(environment: dict[str, str], folder: Path) -> None:
    records = prompts(folder / "SAMPLE.jsonl", 2)
    command = [sys.executable, STAGES["enhance"], "--name", "field:sentence", "--input", records, "--output"]
    command += [folder / "cot.jsonl", "--task_type", "cot_text"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()
    assert len(read_lines(folder / "cot.jsonl")) == 2


def test_a_shell_gets_the_bytes_of_a_name(folder: Path, tiny_llama: Path) -> None:
    """The shell uses the output of `teacherlm.catalog.models` as the name of a folder."""
    model = Path(shutil.copytree(tiny_llama, folder / "modèle"))
    ask = [sys.executable, "-m", "teacherlm.catalog.models"]
    for words, expected in ((["folder", model], model), (["get", model, "name"], model.name)):
        done = subprocess.run([*ask, *words], cwd=ROOT, env=os.environ | ASCII, capture_output=True)
        assert (done.returncode, done.stdout) == (0, os.fsencode(str(expected)) + b"\n"), done.stderr


def test_a_name_that_the_locale_has_no_letters_for_is_named(tmp_path: Path) -> None:
    yaml = tmp_path / "mine.yaml"
    text = (ROOT / "benchmarks" / "sample.yaml").read_text(encoding="utf-8")
    text = text.replace("title: SAMPLE", "title: ÉCHANTILLON").replace(
        "local: sample", f"local: {ROOT}/benchmarks/sample"
    )
    yaml.write_text(text, encoding="utf-8")
    command = [sys.executable, STAGES["data_prepare"], "--benchmark", yaml, "--output_dir", tmp_path / "out"]
    command += ["--test_dir", tmp_path / "tests"]
    done = subprocess.run(command, env=os.environ | C, capture_output=True, text=True)
    assert "cannot encode" in only_error(done)
    assert "export LC_ALL=C.UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone\x1b]0;title\x07", "\\x1b[2Jgone\\x1b]0;title\\x07"),
        ("first\r\nsecond\tthird\x0b\x85 fourth", "first second third fourth"),
        ("\x9b31m\x7f\x00\b", "\\x9b31m\\x7f\\x00\\x08"),
        ("abc\u202edcba\u2066\ufeff", "abc\\u202edcba\\u2066\\ufeff"),
        ("\ud800 \udcff \U000e0041", "\\ud800 \\udcff \\U000e0041"),
        ("modèle ± 例 🙂", "modèle ± 例 🙂"),
        ("", ""),
    ],
)
def test_foreign_text_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert reason(ValueError(text)).isprintable()


@pytest.mark.parametrize("text", ["x" * 100_000, "\x1b" * 100_000, "a b\n" * 100_000, "\ud800" * 700])
def test_foreign_text_is_cut_in_its_middle(text: str) -> None:
    shown = printable(f"begin {text} end", 300)
    assert 290 <= len(shown) <= 300
    assert shown.isprintable()
    assert shown.startswith("begin ") and shown.endswith(" end")
