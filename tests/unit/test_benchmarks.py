"""The project's benchmarks on the real data: the texts for models equal the reference's, byte for byte."""

import json
import re
from pathlib import Path

import datasets
import pytest

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split
from teacherlm.core.records import Record

ENDINGS = {
    "cot_text": " Let's think step by step.",
    "error_text": " The common mistakes are:",
    "fundamental_text": " The fundamental of this question is:",
}


def training_samples(name: str, data: Path) -> list[Record]:
    benchmark = load_benchmark(name)
    prompts = load_prompts()
    return [benchmark.prepare(sample, where, prompts) for where, sample in read_split(benchmark, "train", data)]


def built_test_set(name: str, data: Path, split: str = "test") -> list[Record]:
    benchmark = load_benchmark(name)
    return [benchmark.test_sample(sample, where) for where, sample in read_split(benchmark, split, data)]


def reference(shared_data: Path, name: str) -> list[Record]:
    """A test set of the TeacherLM reference, as its authors built it."""
    return list(datasets.load_from_disk(str(shared_data / "teacherlm_eval" / name)))


def with_prompts(sample: Record, text: str) -> Record:
    """A second implementation of the rule for prompts."""
    return {**sample, "text": text, **{field: re.sub(" {2}", " ", text + end) for field, end in ENDINGS.items()}}


def test_all_training_samples_of_creak_get_the_four_prompts(shared_data: Path) -> None:
    expected = []
    for line in (shared_data / "creak" / "train.json").read_text(encoding="utf-8").splitlines():
        claim = json.loads(line)
        letter = {"true": "A", "false": "B"}[claim["label"]]
        text = (
            f"Q: Determine the correctness of the following sentence. {claim['sentence']} (A) True (B) False "
            f"A: The answer is ({letter})."
        )
        expected.append(with_prompts(claim, text))
    assert len(expected) == 10_176
    assert training_samples("creak", shared_data / "creak") == expected


def test_the_test_set_of_creak_is_the_references(shared_data: Path) -> None:
    expected = reference(shared_data, "creak")
    assert len(expected) == 1_371
    for sample in expected:
        del sample["analysis"]  # the reference has the explanation under a second name
    assert built_test_set("creak", shared_data / "creak") == expected


def test_the_test_set_of_ecqa_is_the_references(shared_data: Path) -> None:
    """Also if two choices have the same text (30 samples). The reference's questions already begin with `Q: `."""
    ecqa = load_benchmark("ecqa")
    samples = reference(shared_data, "ecqa")
    built = [ecqa.ask({field: sample[field] for field in ecqa.fields}, "ecqa") for sample in samples]
    assert len(built) == 2_194
    expected = [(sample["question"].removeprefix("Q: "), sample["answer"]) for sample in samples]
    assert [(question.with_choices, question.answer) for question in built] == expected


def test_the_test_set_of_strategyqa_is_the_references(shared_data: Path) -> None:
    benchmark = load_benchmark("strategy_qa")
    samples = reference(shared_data, "strategy_qa")
    assert len(samples) == 228
    for number, sample in enumerate(samples, start=1):
        source = {"question": sample["origin_question"], "answer": sample["origin_answer"], "facts": sample["facts"]}
        built = benchmark.test_sample(source, f"sample {number}")
        assert built == {key: sample[key] for key in built}


def test_all_training_samples_of_strategyqa_get_the_four_prompts(shared_data: Path) -> None:
    samples = json.loads((shared_data / "strategyqa" / "train.json").read_text(encoding="utf-8"))
    expected = []
    for sample in samples:
        facts = "".join(f"Fact {number}: {fact} " for number, fact in enumerate(sample["facts"], start=1))
        question = f"{facts}Given these facts above, {sample['question'].strip().lower()}"
        answer = "(A)" if sample["answer"] else "(B)"
        question = re.sub(" {2}", " ", question)
        expected.append(with_prompts(sample, f"Q: {question} (A) True (B) False A: The answer is {answer}."))
    assert len(expected) == 2_061
    assert training_samples("strategy_qa", shared_data / "strategyqa") == expected


def test_facts_in_one_text_are_one_fact() -> None:
    sample = {"facts": "Bats fly. Cats do not. ", "question": "Can a BAT fly? ", "answer": True}
    asked = load_benchmark("strategy_qa").ask(sample, "hub")
    assert asked.question == "Fact 1: Bats fly. Cats do not. Given these facts above, can a bat fly?"


@pytest.fixture(scope="module")
def mmlu(shared_data: Path) -> list[Record]:
    return built_test_set("mmlu", shared_data / "mmlu")


def test_all_of_mmlus_questions_are_there(mmlu: list[Record], shared_data: Path) -> None:
    assert len(mmlu) == 14_042
    assert len({sample["subject"] for sample in mmlu}) == 57
    assert len(built_test_set("mmlu", shared_data / "mmlu", "dev")) == 285


@pytest.mark.parametrize(
    ("beginning", "question", "answer"),
    [
        (
            "The Barr body found",
            "The Barr body found within female mammalian cells' nuclei is an example of. "
            "(A) euchromatin (B) heterochromatin (C) a cistron (D) pseudogenes",
            "(B)",
        ),
        (
            "A cell nucleus contains",
            "A cell nucleus contains which of the following? I. DNA II. Protein III. RNA. "
            "(A) I only (B) II only (C) III only (D) I, II, and III",
            "(D)",
        ),
    ],
    ids=["no full stop", "line breaks"],
)
def test_a_question_of_mmlu_is_that_of_the_paper(
    mmlu: list[Record], beginning: str, question: str, answer: str
) -> None:
    [found] = [sample for sample in mmlu if sample["origin_question"].startswith(beginning)]
    assert {key: found[key] for key in ("task_name", "subject", "preamble", "question", "answer")} == {
        "task_name": "MMLU",
        "subject": "college_biology",
        "preamble": "The following are multiple choice questions (with answers) about college biology. ",
        "question": question,
        "answer": answer,
    }


def test_a_line_break_at_the_end_of_a_question_gets_its_full_stop_first(mmlu: list[Record]) -> None:
    """306 questions about nutrition have it. The reference checks the last character before it replaces line breaks."""
    [found] = [
        sample for sample in mmlu if sample["origin_question"].startswith("Which vitamin is required for vision")
    ]
    assert found["origin_question"] == "Which vitamin is required for vision in dim light?\n"
    assert found["question"] == (
        "Which vitamin is required for vision in dim light? . (A) Vitamin A (B) Vitamin D (C) Vitamin E (D) Vitamin K"
    )


def test_mmlu_on_the_hub_is_mmlu_in_the_archive(mmlu: list[Record]) -> None:
    """On the hub, the answer is an index."""
    own = {"question": mmlu[7]["origin_question"], "choices": mmlu[7]["choices"], "subject": mmlu[7]["subject"]}
    index = "ABCD".index(mmlu[7]["origin_answer"])
    asked = load_benchmark("mmlu").ask({**own, "answer": index}, "hub")
    assert (asked.preamble, asked.with_choices, asked.answer) == (
        mmlu[7]["preamble"],
        mmlu[7]["question"],
        mmlu[7]["answer"],
    )
