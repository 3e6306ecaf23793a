"""Proofs on all of the real test sets, hours on two cores: `make prove` runs them, `make test` does not."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from test_evaluate import read_lines, reference_likelihoods, words

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("task", "letters"), [("creak", "AB"), ("ecqa", "ABCDE"), ("strategy_qa", "AB")])
def test_every_sample_of_the_reference_s_test_sets(
    task: str, letters: str, smollm2: Path, shared_data: Path, tmp_path: Path, inside: Callable
) -> None:
    """The reference's loop in float64: the same choice for every sample, log-likelihoods within 1e-4."""
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
    smollm2: Path, shared_data: Path, tmp_path: Path, stage: Callable, inside: Callable
) -> None:
    """14,042 questions in 57 subjects: the same rows and averages, the same choices but for ties."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from teacherlm.loading import load_model, load_tokenizer

    tests = tmp_path / "tests"
    prepared = ["--benchmark", "mmlu", "--test_only", "--data", shared_data / "mmlu", "--test_dir", tests]
    assert stage("data_prepare", *prepared).returncode == 0
    result = inside("evaluate", *words("smollm2-135m", "mmlu", tests, tmp_path, "--joint_tokenization"))
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "smollm2-135m" / "mmlu.json").read_text())
    samples = read_lines(tmp_path / "smollm2-135m" / "mmlu_samples.jsonl")
    assert (written["n"], len(written["tasks"])) == (14_042, 57)
    theirs = HFLM(pretrained=load_model(smollm2), tokenizer=load_tokenizer(smollm2), batch_size=8, device="cpu")
    pairs = [(sample["prompt"], letter) for sample in samples for letter in "ABCD"]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("", 0, 1)) for pair in pairs]
    values = iter(theirs.loglikelihood(asked, disable_tqdm=True))
    right: dict[str, list[bool]] = {}
    for sample in samples:
        expected = {letter: next(values)[0] for letter in "ABCD"}
        assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert expected[sample["choice"]] == pytest.approx(max(expected.values()), abs=1e-4)
        right.setdefault(sample["task"], []).append(max(expected, key=expected.get) == sample["gold"])
    assert {row["task"]: row["value"] for row in written["tasks"]} == pytest.approx(
        {task: sum(values) / len(values) for task, values in right.items()}, abs=0.011
    )
    assert written["value"] == pytest.approx(sum(map(sum, right.values())) / 14_042, abs=2e-4)
