"""ATLAS on a GPU: the vectors, the neighbours, the reader's logits and the losses that a CPU computes in float32."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.atlas_models import make_passages, make_questions, make_small_atlas, make_tiny_t5
from support.atlas_words import words
from support.files import read_lines
from support.on_gpu import KIND, needs_gpu, needs_units_for_bfloat16
from support.programs import ROOT

from teacherlm.atlas import reader as readers
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index
from teacherlm.atlas.model import embed_passages
from teacherlm.atlas.passages import Passages, write_passages
from teacherlm.atlas.retriever import load_retriever
from teacherlm.atlas.saved_index import load_index, save_index
from teacherlm.runtime.loading import load_tokenizer

pytestmark = pytest.mark.gpu
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    questions = {"test": make_questions(9), "valid": make_questions(3, seed=5), "train": make_questions(9, seed=3)}
    return make_small_atlas(tmp_path_factory.mktemp("atlas"), 60, **questions)


@pytest.mark.parametrize("values", [3, 100])
@pytest.mark.parametrize("queries", [1, 7, 300])
def test_the_neighbours_are_those_of_sorting_all_scores(values: int, queries: int) -> None:
    """Whole numbers, whose sums are exact in any order; with many equal scores, of which the first rows count."""
    torch.manual_seed(0)
    vectors = torch.randint(-values, values + 1, (5003, 24)).half()
    asked = torch.randint(-values, values + 1, (queries, 24)).float()
    segments = [part.to(KIND) for part in vectors.split(2000)]
    scores, rows = FlatVectors(segments, 10).search(asked.to(KIND), 33)
    expected = torch.sort(asked @ vectors.float().T, dim=1, descending=True, stable=True)
    assert torch.equal(scores.cpu(), expected.values[:, :33])
    assert torch.equal(rows.cpu(), expected.indices[:, :33] + 10)


def test_products_are_in_float32_and_not_in_tensorfloat32() -> None:
    torch.manual_seed(0)
    vectors, asked = torch.randn(20_000, 384).half(), torch.randn(64, 384)
    scores, _ = FlatVectors([vectors.to(KIND)], 0).search(asked.to(KIND), 5)
    expected = (asked.double() @ vectors.double().T).topk(5).values
    torch.testing.assert_close(scores.cpu().double(), expected, atol=1e-3, rtol=0)


def test_passages_are_embedded_in_float16_as_in_float32(place: Path, tmp_path: Path) -> None:
    write_passages(tmp_path / "all.arrow", [{"section": "", **passage} for passage in make_passages(60)])
    asked = SimpleNamespace(
        retriever_format="{title} {text}", text_maxlength=96, per_gpu_embedder_batch_size=16, compressed=None
    )
    found = []
    for kind in (KIND, "cpu"):
        retriever, tokenizer = load_retriever(place / "bert", untied=False)
        model = SimpleNamespace(retriever=retriever.to(kind).eval(), retriever_tokenizer=tokenizer)
        with torch.no_grad():
            vectors = embed_passages(asked, model, Passages(tmp_path / "all.arrow"))
        found.append(torch.cat([segment.cpu() for segment in vectors.segments]).float())
    torch.testing.assert_close(*found, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_index_is_loaded_onto_the_device(shards: int, tmp_path: Path) -> None:
    write_passages(tmp_path / "all.arrow", [{"section": "", **passage} for passage in make_passages(60)])
    torch.manual_seed(0)
    vectors = torch.randn(60, 32).half()
    made = Index(Passages(tmp_path / "all.arrow"), FlatVectors([vectors.to(KIND)], 0), 32, None)
    save_index(tmp_path / "index", made, shards, None, None)
    found = load_index(tmp_path / "index", None, None, None, 32, torch.device(KIND), shards)
    assert {segment.device.type for segment in found.vectors.segments} == {KIND}
    assert torch.equal(torch.cat([segment.cpu() for segment in found.vectors.segments]), vectors)
    asked = torch.randn(5, 32)
    _, rows = found.vectors.search(asked.to(KIND), 3)
    assert torch.equal(rows.cpu(), (asked @ vectors.float().T).topk(3).indices)


@pytest.mark.parametrize(
    ("dtype", "apart"),
    [("float32", 1e-3), ("float16", 0.1), pytest.param("bfloat16", 0.8, marks=needs_units_for_bfloat16)],
)
@pytest.mark.parametrize("gated", [True, False])
def test_the_reader_has_the_logits_of_float32(gated: bool, dtype: str, apart: float, tmp_path: Path) -> None:
    """With questions of several passages each, of other lengths."""
    folder = make_tiny_t5(tmp_path / "t5", gated=gated)
    asked = [[f"question {n} {passage['text']}" for passage in make_passages(n + 1, seed=n)] for n in range(4)]
    found = []
    for kind, precision in ((KIND, dtype), ("cpu", "float32")):
        model = readers.load_reader(folder).to(kind, getattr(torch, precision)).eval()
        reader = readers.Reader(model, load_tokenizer(folder), 64)
        with torch.no_grad():
            encoded = readers.encode(reader, asked)
            logits = readers.decode(reader, encoded, readers.make_target(reader, list("ABCD"), 8)).logits
            texts = readers.generate(reader, encoded, 6)
        found.append((logits.float().cpu(), texts))
    torch.testing.assert_close(found[0][0], found[1][0], atol=apart, rtol=apart)
    if dtype == "float32":
        assert found[0][1] == found[1][1]


def run(script: str, place: Path, flags: list[str], on_gpu: bool) -> None:
    """A program of atlas/ in its own process, on the GPU or without one."""
    environment = {**os.environ, "TEACHERLM_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT / "src")}
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(ROOT / "atlas" / script), *map(str, flags)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 2e-2), pytest.param("fp16", 0.2, marks=needs_gpu)])
def test_evaluation_predicts_what_a_cpu_predicts(precision: str, apart: float, place: Path, tmp_path: Path) -> None:
    predictions = []
    for name, how in {"gpu": precision, "cpu": "fp32"}.items():
        more = ["--passages", place / "passages.jsonl", "--precision", how]
        run("evaluate.py", place, words(place, tmp_path / name, *more), on_gpu=name == "gpu")
        predictions.append(read_lines(tmp_path / name / "run" / "test-step-0.jsonl"))
    alike = 0
    for one, other in zip(*predictions, strict=True):
        assert one["metadata"] == other["metadata"]
        for asked, before in zip(one["permutations"], other["permutations"], strict=True):
            # Passages are embedded in float16 on a GPU: those that are nearly as near may change places.
            if [p["id"] for p in asked["passages"]] == [p["id"] for p in before["passages"]]:
                alike += 1
                assert asked["choice_logits"] == pytest.approx(before["choice_logits"], abs=apart)
    assert alike > 9 * 4 * 0.7


@pytest.mark.parametrize(
    ("precision", "apart"), [("fp32", 0.05), pytest.param("bf16", 0.1, marks=needs_units_for_bfloat16)]
)
def test_reader_and_retriever_learn_what_they_learn_on_a_cpu(
    precision: str, apart: float, place: Path, tmp_path: Path
) -> None:
    losses = []
    for name, how in {"gpu": precision, "cpu": "fp32"}.items():
        flags = ["--reader_model_type", place / "t5", "--retriever_model_path", place / "bert", "--name", "run"]
        flags += ["--checkpoint_dir", tmp_path / name, "--train_data", place / "train.jsonl", "--text_maxlength", 96]
        flags += ["--eval_data", place / "valid.jsonl", "--passages", place / "passages.jsonl", "--n_context", 2]
        flags += ["--retriever_n_context", 3, "--target_maxlength", 16, "--generation_max_length", 4, "--log_freq", 1]
        flags += ["--per_gpu_batch_size", 2, "--total_steps", STEPS, "--warmup_steps", 2, "--lr", 1e-4]
        flags += ["--lr_retriever", 1e-5, "--train_retriever", "--temperature_gold", 0.1, "--temperature_score", 0.1]
        flags += ["--precision", how, "--eval_freq", STEPS]
        run("train.py", place, flags, on_gpu=name == "gpu")
        (log,) = (tmp_path / name).rglob("log.jsonl")
        losses.append([line["reader_loss"] for line in read_lines(log) if "reader_loss" in line])
    assert len(losses[0]) == STEPS
    assert losses[0][0] == pytest.approx(losses[1][0], rel=apart)
    # A passage that is nearly as near may take another's place, and a single step then has another loss.
    assert sum(losses[0]) == pytest.approx(sum(losses[1]), rel=apart)
