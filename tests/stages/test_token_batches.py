"""--tokens_per_batch: a step has the same samples and the same loss, however its batches are filled."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.finetuning import flags, read_log, weights
from support.programs import only_error
from support.two_processes import EPOCHS, finetune

from teacherlm.finetune.launch import tokens_per_batch
from teacherlm.finetune.token_batches import best_fit, packed_cost, padded_cost

STEP, SAMPLES = 6, 20  # an epoch ends with a step of two samples


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose texts have very different lengths."""
    folder = tmp_path_factory.mktemp("uneven") / "SAMPLE"
    rows = []
    for number in range(SAMPLES):
        question = f"Q: Is {number} odd? (A) yes (B) no A: The answer is ("
        tail = f"{question}{'BA'[number % 2]}).{' It is so.' * (number * 7 % 11 + 1)}"
        parts = [["question", len(question)], ["answer", len(question) + 3], ["explanation", len(tail)]]
        rows.append({"cot_text": tail, "parts": json.dumps({"cot_text": parts})})
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def train(inside: Callable, model: Path, dataset: Path, output: Path, *more: object) -> list[dict[str, Any]]:
    words = [*flags(model, dataset, output), "--num_train_epochs", 2, "--logging_steps", 1]
    done = inside("finetune", *words, "--per_device_train_batch_size", STEP, *more)
    assert done.returncode == 0, done.stderr
    return read_log(output)


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for name in expected[0].keys() & {"loss", "grad_norm", "answer_loss", "explanation_loss", "epoch", "step"}:
        assert [one[name] for one in found] == pytest.approx([one[name] for one in expected], abs=2e-5), name


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--packing", "false"),
        ("--loss_weights", "answer:0.5,explanation:0.5"),
        ("--loss_average", "sample"),
        ("--peft", "lora"),
    ],
    ids=str,
)
def test_a_step_learns_the_same(
    more: tuple[object, ...], tiny_llama: Path, uneven: Path, tmp_path: Path, inside: Callable
) -> None:
    expected = train(inside, tiny_llama, uneven, tmp_path / "expected", *more)
    assert len(expected) == 8
    for number, most in enumerate((130, 5000)):
        found = train(inside, tiny_llama, uneven, tmp_path / str(number), *more, "--tokens_per_batch", most)
        assert_same(found, expected)


def test_accumulated_batches_are_one_step(tiny_llama: Path, uneven: Path, tmp_path: Path, inside: Callable) -> None:
    """The samples of all accumulated batches are divided together."""
    cut = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 3)
    expected = train(inside, tiny_llama, uneven, tmp_path / "expected", *cut)
    for most in (130, 5000):
        found = train(inside, tiny_llama, uneven, tmp_path / str(most), *cut, "--tokens_per_batch", most)
        assert_same(found, expected)


def test_another_number_of_tokens_goes_on_with_the_run(
    tiny_llama: Path, uneven: Path, tmp_path: Path, inside: Callable
) -> None:
    expected = train(inside, tiny_llama, uneven, tmp_path / "expected")
    train(inside, tiny_llama, uneven, tmp_path / "run", "--tokens_per_batch", 150, "--num_train_epochs", 1)
    found = train(inside, tiny_llama, uneven, tmp_path / "run", "--tokens_per_batch", 400)
    assert_same(found, expected)


def test_a_run_that_is_resumed_ends_with_the_same_bytes(
    tiny_llama: Path, uneven: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ("--tokens_per_batch", 200, "--save_strategy", "steps", "--save_steps", 3)
    train(inside, tiny_llama, uneven, tmp_path / "run", *words)
    expected = weights(tmp_path / "run")
    for number in (6, 8):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{number}")
    (tmp_path / "run" / "manifest.json").unlink()
    train(inside, tiny_llama, uneven, tmp_path / "run", *words)
    assert weights(tmp_path / "run") == expected


def test_two_processes_have_the_same_number_of_batches(tiny_llama: Path, uneven: Path, tmp_path: Path) -> None:
    logs = []
    for processes, more in ((1, []), (2, ["--deepspeed", "zero2"]), (2, ["--deepspeed", "none"])):
        store = tmp_path / f"{processes}{len(logs)}"
        more += ["--tokens_per_batch", 130] if processes == 2 else []
        done = finetune(tiny_llama, uneven, store, processes, "--num_train_epochs", min(EPOCHS, 2), *more)
        assert done.returncode == 0, done.stderr[-2000:]
        logs.append(read_log(store / "run"))
    for log in logs[1:]:
        assert_same(log, logs[0])


def test_mistakes_are_one_line(tiny_llama: Path, uneven: Path, tmp_path: Path, inside: Callable) -> None:
    words = flags(tiny_llama, uneven, tmp_path / "run")
    error = only_error(inside("finetune", *words, "--tokens_per_batch", 20))
    assert "--tokens_per_batch 20: the longest sample has" in error and "give at least that" in error
    error = only_error(inside("finetune", *words, "--tokens_per_batch", 500, "--loss_average", "batch"))
    assert "--loss_average batch is the mean of batches of samples" in error
    assert "--tokens_per_batch" in only_error(inside("finetune", *words, "--tokens_per_batch", 0))


@pytest.mark.parametrize("cost", [packed_cost, padded_cost])
def test_batches_are_full_and_have_each_sample_once(cost: Callable) -> None:
    draws = random.Random(0)
    for _ in range(200):
        lengths = [draws.randint(1, 60) for _ in range(draws.randint(1, 40))]
        most = draws.randint(60, 300)
        batches = best_fit(lengths, most, cost)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        costs = [cost([lengths[index] for index in batch]) for batch in batches]
        assert max(costs) <= most
        if cost is packed_cost:
            assert len(batches) <= 1 + 11 / 9 * sum(lengths) / most + 6 / 9  # best-fit decreasing (Johnson 1973)
            assert sum(one <= most / 2 for one in costs) <= 1  # two such batches would be one
    assert best_fit([3, 9, 1, 4, 2], 10, packed_cost) == [[1, 2], [0, 3, 4]]
    assert best_fit([3, 9, 1, 4, 2], 10, padded_cost) == [[1], [0, 3], [2, 4]]


def test_the_launcher_reads_the_number_of_tokens() -> None:
    assert tokens_per_batch(["--seed", "1"]) is None
    assert tokens_per_batch(["--tokens_per_batch", "400", "--tokens-per-batch=200"]) == 200
