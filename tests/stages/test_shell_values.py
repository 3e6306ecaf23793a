"""A value that reaches a shell is a number, a name or a quoted word: nothing in it is executed or taken for another."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import ROOT, only_error, warm_python

CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh"), "sample"]
FINETUNE = ["bash", str(ROOT / "finetune/finetune.sh"), "/no/model", "/no/data", "8", "1", "1e-5", "1", "text", "run"]
FINETUNE += ["store", "test"]
EVALUATE = ["bash", str(ROOT / "evaluate" / "run_hf.sh"), "/no/model", "sample"]
NUMBERS = ("LIMIT", "EPOCHS", "SEED", "NUM_TOKENS", "MAX_FAILURES", "SHARDS", "BATCH", "ACCUMULATION")


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    def run(command: list[str], **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHON": warm_python(), "LAUNCHER": "local", "RUNS": str(tmp_path / "runs")}
        environment |= variables
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def refused(call: Callable, tmp_path: Path) -> Callable[..., None]:
    """Check that a call ends with one line that names the variable, and that it executed and created nothing."""

    def run(command: list[str], name: str, value: str) -> None:
        error = only_error(call(command, **{name: value}))
        assert name in error, error
        assert "\x1b" not in error
        assert list(tmp_path.iterdir()) == []

    return run


@pytest.mark.parametrize("name", [*NUMBERS, "TEMPERATURE", "LEARNING_RATE", "TASK", "FILTER", "TOKENIZATION"])
@pytest.mark.parametrize("value", ["a[$(touch ran)]", "\x1b[2J/../up *"])
def test_a_variable_of_the_chain_is_what_it_should_be(refused: Callable, name: str, value: str) -> None:
    refused(CHAIN, name, value)


@pytest.mark.parametrize("value", ["08", "-1", "1.5", "1e3", "99999999999999999999", " 8", "8\n9"])
def test_a_number_is_a_plain_one(refused: Callable, value: str) -> None:
    refused(CHAIN, "EPOCHS", value)


@pytest.mark.parametrize(
    ("command", "name"), [(FINETUNE, "NUM_GPUS"), (EVALUATE, "NUM_GPUS"), (FINETUNE, "SLURM_NNODES")]
)
@pytest.mark.parametrize("value", ["a[$(touch ran)]", "08", "-1", "2 2"])
def test_numbers_of_processes(refused: Callable, command: list[str], name: str, value: str) -> None:
    refused(command, name, value)


def test_the_number_of_an_array_s_task(call: Callable, tmp_path: Path) -> None:
    script = ["bash", str(ROOT / "atlas" / "examples" / "mmlu" / "mmlu-5-shot.sh")]
    result = call(script, DATA_DIR=str(tmp_path), SLURM_ARRAY_TASK_ID="a[$(touch ran)]", NUM_GPUS="0")
    assert "SLURM_ARRAY_TASK_ID" in only_error(result)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["SIGNAL_SECONDS='a[$(touch ran)]'", "SIGNAL_SECONDS=0", "SIGNAL_SECONDS=3m"])
def test_a_number_of_the_site_s_file(call: Callable, tmp_path: Path, content: str) -> None:
    (tmp_path / "site.env").write_text(content + "\n")
    assert "SIGNAL_SECONDS" in only_error(call(CHAIN, SITE=str(tmp_path / "site.env"), LAUNCHER="slurm"))
    assert [path.name for path in tmp_path.iterdir()] == ["site.env"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the test's models/."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("benchmarks", "enhance", "models", "prompts", "slurm", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site.env"))
    return folder


VALUES = {
    "nodes": ["'BASH_VERSINFO[$(touch ran)]'", "08x", "0", "-1", "1.5", "9999999999", "[1]", "0x1", "'1\n2'"],
    "gpus": ["'a[$(touch ran)]'", "-1", "1e99"],
    "cpus": ["$(touch ran)", "0"],
    "memory": ["'48G --wrap=id'", '"48G\\n--wrap=id"', "lots", "'a[$(touch ran)]'", "48GB"],
    "time": ["'1:00 --wrap=id'", '"1:00\\n--wrap=id"', "soon", "'a[$(touch ran)]'"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in VALUES for value in VALUES[field]])
def test_a_model_s_yaml_has_numbers_where_a_job_wants_them(
    checkout: Path, tmp_path: Path, field: str, value: str
) -> None:
    """A dry run reads these numbers too. Without a dry run, nothing is submitted before they are read."""
    (checkout / "models" / "evil.yaml").write_text(
        f"hub: some/one\nslurm:\n  evaluate:\n    {field}: {value}\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHON": warm_python(), "RUNS": str(tmp_path / "runs"), "LAUNCHER": "local"}
    environment |= {"PYTHONPATH": str(checkout / "src"), "STUDENT": "evil", "TASK": "text"}
    command = ["bash", str(checkout / "slurm" / "chain.sh"), "sample"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    error = only_error(result)
    assert f"evil.yaml: slurm: evaluate: {field}: " in error or "not valid YAML" in error
    assert list(tmp_path.iterdir()) == []


def request(checkout: Path, text: str, *words: str) -> list[str]:
    (checkout / "models" / "mine.yaml").write_text(f"hub: some/one\nslurm: {{finetune: {{{text}}}}}\n")
    command = [sys.executable, "-P", "-m", "teacherlm.catalog.models", "request", "mine", "finetune", *words]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus: 0", "--nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --mem=48G --time=24:00:00"),
        ("gpus: 2", "--nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --mem=48G --time=24:00:00 --gres=gpu:a100:2"),
        (
            "nodes: 2, gpus: 4, cpus: 16, memory: 0, time: 1-12:00",
            "--nodes=2 --ntasks-per-node=4 --cpus-per-task=4 --mem=0 --time=1-12:00 --gres=gpu:a100:4",
        ),
        ("nodes: 2, gpus: 0", "--nodes=2 --ntasks-per-node=1 --cpus-per-task=8 --mem=48G --time=24:00:00"),
        (
            "nodes: 2, gpus: 8, cpus: 4",
            "--nodes=2 --ntasks-per-node=8 --cpus-per-task=1 --mem=48G --time=24:00:00 --gres=gpu:a100:8",
        ),
    ],
)
def test_what_a_job_asks_slurm_for(checkout: Path, text: str, words: str) -> None:
    assert request(checkout, text, "--gpu_type=a100") == words.split()


def test_a_name_with_a_line_break_shifts_no_other_value(call: Callable, tmp_path: Path) -> None:
    """The shell reads one value per line, so the rest of the name would become the batch size."""
    model = tmp_path / "models" / "tiny\n4"
    model.mkdir(parents=True)
    error = only_error(call(CHAIN, STUDENT=str(model), TASK="text"))
    assert "this name has a line break" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["my-claims_2", "3d", "naïve", "a[$(touch ran)]", "a b"])
def test_a_benchmark_s_name_becomes_a_variable_s(name: str, tmp_path: Path) -> None:
    from teacherlm.chain.settings import data_variable

    variable = data_variable(name)
    assert re.fullmatch(r"[A-Z_][A-Z0-9_]*_DATA", variable)
    script = f'{variable}=/x; printf %s "${variable}"'  # a shell takes it for the name of a variable
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "/x"
    assert list(tmp_path.iterdir()) == []
