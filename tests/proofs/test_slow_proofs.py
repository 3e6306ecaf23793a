"""Proofs on all real test sets, which take hours on two cores. `make prove` runs them, `make test` does not."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import datasets
import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.programs import ROOT
from support.scoring import reference_likelihoods, words
from support.transformers_server import Server

from teacherlm.core.files import whole_file
from teacherlm.core.places import cache_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(24 * 3600)]


@pytest.fixture
def kept() -> Path:
    """A folder that stays after the test, so that an interrupted test continues. Changed code gets a new folder."""
    rooms = ("core", "catalog", "runtime", "dataset", "scoring")
    code = [file for room in rooms for file in sorted((ROOT / "src" / "teacherlm" / room).rglob("*.py"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in code) + version("lm_eval").encode()).hexdigest()
    return cache_folder() / "proofs" / digest[:16]


@pytest.mark.parametrize(("task", "letters"), [("creak", "AB"), ("ecqa", "ABCDE"), ("strategy_qa", "AB")])
def test_every_sample_of_the_reference_s_test_sets(
    task: str, letters: str, smollm2: Path, shared_data: Path, tmp_path: Path, inside: Callable
) -> None:
    """Compared with the reference's loop in float64: the same choice for every sample, log-likelihoods within 1e-4."""
    tests = shared_data / "teacherlm_eval"
    assert inside("evaluate", *words("smollm2-135m", task, tests, tmp_path)).returncode == 0
    samples = read_lines(tmp_path / "smollm2-135m" / f"{task}_samples.jsonl")
    rows = datasets.load_from_disk(str(tests / task))
    prompts = [f"Q: {row['question']} A: The answer is (" for row in rows]
    assert [sample["prompt"] for sample in samples] == prompts
    theirs = reference_likelihoods(smollm2, prompts, list(letters))
    right = 0
    for sample, expected, row in zip(samples, theirs, rows, strict=True):
        assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert sample["choice"] == max(expected, key=expected.get)
        right += f"({sample['choice']})" == row["answer"]
    assert json.loads((tmp_path / "smollm2-135m" / f"{task}.json").read_text())["correct"] == right


def test_all_of_mmlu_is_what_lm_eval_s_own_model_says(
    smollm2: Path, shared_data: Path, kept: Path, stage: Callable, inside: Callable
) -> None:
    """For 14,042 questions in 57 subjects, the rows, the averages, and the choices except ties are the same."""
    tests = kept / "tests"
    prepared = ["--benchmark", "mmlu", "--test_only", "--data", shared_data / "mmlu", "--test_dir", tests]
    assert stage("data_prepare", *prepared).returncode == 0
    result = inside("evaluate", *words("smollm2-135m", "mmlu", tests, kept, "--joint_tokenization"))
    assert result.returncode == 0, result.stderr
    written = json.loads((kept / "smollm2-135m" / "mmlu.json").read_text())
    samples = defaultdict(list)
    for sample in read_lines(kept / "smollm2-135m" / "mmlu_samples.jsonl"):
        samples[sample["task"]].append(sample)
    assert (written["n"], len(written["tasks"]), len(samples)) == (14_042, 57, 57)
    right = {}
    for task, of_task in samples.items():
        theirs = likelihoods_of_lm_eval(
            smollm2, [sample["prompt"] for sample in of_task], kept / f"lm-eval-{task}.json"
        )
        for sample, expected in zip(of_task, theirs, strict=True):
            assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
            assert expected[sample["choice"]] == pytest.approx(max(expected.values()), abs=1e-4)
        right[task] = [max(e, key=e.get) == s["gold"] for s, e in zip(of_task, theirs)]
    assert {row["task"]: row["value"] for row in written["tasks"]} == pytest.approx(
        {task: sum(values) / len(values) for task, values in right.items()}, abs=0.011
    )
    assert written["value"] == pytest.approx(sum(map(sum, right.values())) / 14_042, abs=2e-4)


def likelihoods_of_lm_eval(model: Path, prompts: list[str], file: Path) -> list[dict[str, float]]:
    """The log-likelihoods of the four letters after each prompt from lm-eval's HFLM, kept in a file."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from teacherlm.runtime.loading import load_model, load_tokenizer

    if not file.is_file():
        theirs = HFLM(pretrained=load_model(model), tokenizer=load_tokenizer(model), batch_size=8, device="cpu")
        pairs = [(prompt, letter) for prompt in prompts for letter in "ABCD"]
        asked = [Instance("loglikelihood", {}, pair, 0, metadata=("", 0, 1)) for pair in pairs]
        values = [value for value, _ in theirs.loglikelihood(asked, disable_tqdm=True)]
        with whole_file(file) as out:
            json.dump([dict(zip("ABCD", values[start : start + 4])) for start in range(0, len(values), 4)], out)
    return json.loads(file.read_text())


def test_a_chat_server_s_texts_are_those_of_the_same_weights_here(
    smollm2: Path, tmp_path: Path, inside: Callable
) -> None:
    """SmolLM2 with its own chat template, greedily: through `transformers serve`, and in this process."""
    server = Server(smollm2, tmp_path / "log.txt")
    server.start()
    try:
        server.wait()
        records = prompts(tmp_path / "SAMPLE.jsonl", 24)
        flags = ["--input", records, "--task_type", "cot_text", "--num_tokens", 64, "--temperature", 0]
        flags += ["--dtype", "float32", "--batch_size", 2, "--chat", "true"]
        for name, output in ((server.url, "theirs"), (smollm2, "ours")):
            result = inside("enhance", "--name", name, "--output", tmp_path / f"{output}.jsonl", *flags)
            assert result.returncode == 0, result.stderr
    finally:
        server.kill()
    assert (tmp_path / "theirs.jsonl").read_bytes() == (tmp_path / "ours.jsonl").read_bytes()
    assert len({record["cot"] for record in read_lines(tmp_path / "ours.jsonl")}) > 12
