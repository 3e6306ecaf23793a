"""What the tests share: tiny models made on the spot, the small real one, the real data, and how a script is run."""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from warm_python import WarmPython

if TYPE_CHECKING:
    from slurm_cluster import Cluster

# One thread: sums have one order in every process, and threads of tiny models only wait for one another, for a hundred
# times the work's own time when other work runs beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several processes on few cores must not spin for one another

os.environ["WANDB_MODE"] = "disabled"  # its own tests switch it on

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
STAGES = {
    "data_prepare": ROOT / "enhance" / "data_prepare.py",
    "enhance": ROOT / "enhance" / "enhance.py",
    "merge": ROOT / "enhance" / "merge.py",
    "finetune": ROOT / "finetune" / "finetune.py",
    "evaluate": ROOT / "evaluate" / "main.py",
}
"""The scripts of the stages."""
COMMANDS = ("table", "report", "compare", "steer", "site")
"""Programs that have no script: `python -m teacherlm NAME`."""


def program(name: str) -> list[str]:
    """The words after `python` that start a program."""
    return [str(STAGES[name])] if name in STAGES else ["-P", "-m", "teacherlm", name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that start daemons as root, or need an image, run when they are asked for, never along with the others."""
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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real CREAK, StrategyQA, MMLU and the reference's test sets, which lies beside the checkout."""
    if not SHARED.is_dir():
        message = f"{SHARED} is missing: real data is read there"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return SHARED


@functools.cache
def warm_python() -> str:
    """An executable that takes the words of `python` and has the libraries loaded, see warm_python.py."""
    started = WarmPython()
    started.__enter__()
    atexit.register(started.__exit__)
    return str(started.executable)


@pytest.fixture
def stage() -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage's script to its end: stage("enhance", "--name", folder, ...); stdout and stderr are kept as text."""

    def run(name: str, *words: object, **options: object) -> subprocess.CompletedProcess:
        python = sys.executable if "env" in options else warm_python()  # libraries may read it when they are imported
        command = [python, *program(name), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, **options)

    return run


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage's script to its end like `stage`, but in this process, which has torch loaded already."""

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


def only_error(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a stage that a user's mistake ended."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def read_lines(path: Path) -> list[Any]:
    """The records of JSON lines; not by splitlines(), which splits at U+0085 and U+2028 too (MMLU has them)."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes and when it was written."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data_prepare.py makes of `sample`: SAMPLE.jsonl, SAMPLE/ (24 training samples) and tests/sample (80)."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [warm_python(), STAGES["data_prepare"], "--benchmark", "sample", "--limit", "24"]
    subprocess.run([*command, "--output_dir", folder, "--test_dir", folder / "tests"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Real weights: SmolLM2-135M-Instruct in the user's cache, made from the package that ships them."""
    from teacherlm.catalog.models import find_model, local_folder

    return local_folder(find_model("smollm2-135m"))


@pytest.fixture(scope="session", params=["bloom", "opt", "llama"])
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each class with its tokenizer, some 100 kB."""
    return make_tiny_model(request.param, tmp_path_factory.mktemp("models") / f"tiny-{request.param}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model, where its class does not matter."""
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


def make_tiny_model(family: str, folder: Path) -> Path:
    import torch
    from tiny_architectures import make_tokenizer
    from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, OPTConfig

    tokenizer = make_tokenizer(sample["sentence"] for sample in sample_claims())
    size = len(tokenizer)
    common = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    configs = {
        "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **common),
        "opt": lambda: OPTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
            **common,
        ),
        "llama": lambda: LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            **common,
        ),
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configs[family]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sample_claims(split: str = "train") -> Iterator[dict]:
    for line in (ROOT / "benchmarks" / "sample" / f"{split}.json").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A real Slurm with three nodes, for all tests that are marked with `cluster`."""
    from slurm_cluster import start

    yield from start(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def local_chain(cluster: "Cluster") -> subprocess.CompletedProcess:
    """The chain as the local launcher runs it, without Slurm, in RUNS=here."""
    result = cluster.make("here", LAUNCHER="local")
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    """A folder like CREAK's own: train.json with 12 claims, dev.json with 8."""
    folder = tmp_path / "claims"
    folder.mkdir()
    for name, count in (("train", 12), ("dev", 8)):
        lines = [json.dumps(claim) for claim in sample_claims(name)][:count]
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
