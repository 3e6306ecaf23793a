"""Fixtures that the tests share: tiny models, the small real model, the real data, and functions that run scripts."""

import gc
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.files import SHARED, sample_claims
from support.programs import STAGES, plain_python, program, warm_python
from support.tiny_models import make_tiny_model

if TYPE_CHECKING:
    from support.slurm_cluster import Cluster

# One thread, so that sums have the same order in every process. The threads of tiny models would also mostly wait for
# each other, up to a hundred times as long as they work when the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several processes on few cores must not spin while they wait

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling the package takes a large part of a program's start

os.environ["WANDB_MODE"] = "disabled"  # the tests of wandb enable it

os.environ["TEACHERLM_REVISION"] = "tests"  # otherwise each manifest would call git; one test does

NEED_NONE = [Path(__file__).resolve().parent / name for name in ("unit", "cluster")]


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers share one Python that has the libraries loaded; unit tests and those on a Slurm need none.

    (xdist has made a list of the workers, `tx`, from the number of processes.)
    """
    if hasattr(config, "workerinput"):
        sys.executable = str(Path(sys.prefix) / "bin" / "python")  # it is that of the fork
    several = config.getoption("numprocesses", default=None) and not hasattr(config, "workerinput")
    if several and any(Path(word.partition("::")[0]).resolve() not in NEED_NONE for word in config.args):
        config.option.tx = [f"popen//python={warm_python()}"] * len(config.option.tx)  # the workers are such forks too
        plain_python()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that start daemons as root or need an image run only if they are selected, never with the others."""
    reasons = {
        "cluster": "runs a Slurm of its own, as root: make test-cluster",
        "container": "needs an image: make container-test",
        "gpu": "needs a GPU: make check-gpu",
    }
    for name, reason in reasons.items():
        if name not in config.option.markexpr:
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """What is there now stays: each training collects garbage, and would look through all libraries for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder beside the checkout with the real CREAK, StrategyQA, MMLU and the reference's test sets."""
    if not SHARED.is_dir():
        message = f"{SHARED} is missing: real data is read there"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return SHARED


@pytest.fixture
def stage() -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage's script to its end: stage("enhance", "--name", folder, ...); stdout and stderr are kept as text."""

    def run(name: str, *words: object, **options: object) -> subprocess.CompletedProcess:
        python = plain_python() if "env" in options else warm_python()  # imported libraries may read it
        command = [python, *program(name), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, **options)

    return run


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage's script to its end like `stage`, but in this process, which has already loaded torch."""

    def run(name: str, *words: object) -> subprocess.CompletedProcess:
        start = [str(STAGES[name])] if name in STAGES else ["teacherlm", name]
        monkeypatch.setattr(sys, "argv", [*start, *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            if name in STAGES:
                runpy.run_path(str(STAGES[name]), run_name="__main__")
            else:
                runpy.run_module("teacherlm", run_name="__main__")
        captured = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of data_prepare.py for `sample`: SAMPLE.jsonl, SAMPLE/ (24 training samples), tests/sample (80)."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [warm_python(), STAGES["data_prepare"], "--benchmark", "sample", "--limit", "24"]
    subprocess.run([*command, "--output_dir", folder, "--test_dir", folder / "tests"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Real weights: SmolLM2-135M-Instruct in the user's cache, made from the package that contains them."""
    from teacherlm.catalog.models import find_model, local_folder

    return local_folder(find_model("smollm2-135m"))


@pytest.fixture(scope="session", params=["bloom", "opt", "llama"])
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each class with its tokenizer, about 100 kB each."""
    return make_tiny_model(request.param, tmp_path_factory.mktemp("models") / f"tiny-{request.param}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model, for tests in which its class does not matter."""
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A real Slurm with three nodes, for all tests with the marker `cluster`."""
    from support.slurm_cluster import start

    yield from start(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def local_chain(cluster: "Cluster") -> subprocess.CompletedProcess:
    """Run the chain with the local launcher, without Slurm, in RUNS=here."""
    result = cluster.make("here", LAUNCHER="local")
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    """A folder like CREAK's: train.json with 12 claims, dev.json with 8 claims."""
    folder = tmp_path / "claims"
    folder.mkdir()
    for name, count in (("train", 12), ("dev", 8)):
        lines = [json.dumps(claim) for claim in sample_claims(name)][:count]
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
