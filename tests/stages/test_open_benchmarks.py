"""Benchmarks without choices from their files to the results: GSM8K (numbers) and NQ-open (texts), with made-up samples
in the form of the authors' files."""

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.files import read_lines
from support.finetuning import weights
from support.programs import ROOT, only_error, warm_python
from support.teacher_server import Answer, serve
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.core import manifests
from teacherlm.core.records import write_records

TRAIN, TEST = 24, 6


def problem(number: int) -> dict[str, str]:
    """A problem about 1,000 + 20 x NUMBER apples, in GSM8K's form."""
    apples = 20 * number
    solution = f"The bags have 20*{number}=<<20*{number}={apples}>>{apples} apples.\nWith the others it is more.\n"
    question = f"Ann has 1000 apples and gets {number} bags of 20. How many apples has she then, in week {number}?"
    return {"question": question, "answer": f"{solution}#### {1000 + apples:,}"}


def gold(number: int) -> str:
    return f"{1000 + 20 * number:,}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "grade-school-math"
    folder.mkdir()
    write_records(folder / "train.jsonl", map(problem, range(TRAIN)))
    write_records(folder / "test.jsonl", map(problem, range(TRAIN, TRAIN + TEST)))
    return folder


@pytest.fixture
def prepare(data: Path, tmp_path: Path, inside: Callable) -> Callable[..., subprocess.CompletedProcess]:
    """Prepare GSM8K, or with the flags given do its next step."""

    def run(*more: object) -> subprocess.CompletedProcess:
        places = ["--data", data, "--output_dir", tmp_path, "--test_dir", tmp_path / "tests"]
        return inside("data_prepare", "--benchmark", "gsm8k", *places, *more)

    return run


@pytest.fixture
def explained(prepare: Callable, tmp_path: Path) -> Path:
    """The dataset of the prepared samples, whose chains of thought have their numbers."""
    assert prepare().returncode == 0
    cots = []
    for number, record in enumerate(read_lines(tmp_path / "GSM8K.jsonl")):
        text = f" There are 20 in a bag, and {number} bags. {'The answer is 7.' if number == 3 else ''}"
        cots.append({**record, "cot": text, "all": record["cot_text"] + text})
    write_records(tmp_path / "GSM8K_cot.jsonl", cots)
    done = prepare("--post_process")
    assert done.returncode == 0, done.stderr
    return tmp_path / "GSM8K"


def test_the_answer_is_in_every_text_of_a_sample(explained: Path, tmp_path: Path) -> None:
    rows = datasets.load_from_disk(str(explained)).to_list()
    for number, row in enumerate(rows):
        asked = problem(number)["question"]
        assert row["text"] == f"Q: {asked} A: The answer is {gold(number)}."
        assert row["asked"] == {"kind": "number", "answers": [gold(number)]}
        assert row["cot_tail"].startswith(f"{row['text']} Let's think step by step. There are 20")
        assert row["cot_first"].startswith(f"Q: {asked} A: There are 20 in a bag")
        assert row["cot_first"].endswith(f" The answer is {gold(number)}.")
    others = [int(re.search(r"(\d+) bags\. ?", row["cot_shuffled"].partition("bag, and ")[2])[1]) for row in rows]
    assert sorted(others) == list(range(TRAIN)) and all(other != own for own, other in enumerate(others))
    arguments = manifests.read_manifest(explained / "manifest.json")["arguments"]
    assert arguments["shuffled"] == "any other sample"
    flags = [line["flags"].get("cot", []) for line in read_lines(tmp_path / "GSM8K_quality.jsonl")]
    assert [number for number, found in enumerate(flags) if "contradicts" in found] == [3]

    tests = datasets.load_from_disk(str(tmp_path / "tests" / "gsm8k"))
    assert tests[0]["answer"] == gold(TRAIN) and tests[0]["question"] == problem(TRAIN)["question"]


@pytest.mark.parametrize("field", ["text", "cot_tail", "cot_first", "cot_shuffled"])
def test_a_student_is_trained(field: str, explained: Path, tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    words = ["--model_name_or_path", tiny_llama, "--dataset_name", explained, "--task_type", field]
    words += ["--num_train_epochs", 1, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "run"]
    part = "answer:0.5" if field == "text" else "answer:0.5,explanation:0.5"
    done = inside("finetune", *words, "--loss_weights", part)
    assert done.returncode == 0, done.stderr
    assert len(weights(tmp_path / "run")) == 1
    last = read_lines(tmp_path / "run" / "log.jsonl")[-1]
    assert math.isfinite(last["answer_loss"])


def test_sets_are_compared_by_question_answer_and_test_set(
    explained: Path, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    """Another set has a question of the first one with another answer, a test question, and questions with letters."""
    texts = [f"Q: {problem(3)['question']} A: The answer is 7.", f"Q: {problem(TRAIN)['question']} A: The answer is 9."]
    texts += [f"Q: Is it {number}? (A) yes (B) no A: The answer is (B)." for number in range(6)]
    for name in ("other", "dev"):
        part = datasets.Dataset.from_list([{"text": text} for text in texts])
        part = datasets.DatasetDict({"validation": part}) if name == "dev" else part
        part.save_to_disk(str(tmp_path / name))
    words = ["--model_name_or_path", tiny_llama, "--dataset_name", f"{explained},{tmp_path / 'other'}"]
    words += ["--task_type", "text", "--num_train_epochs", 1, "--per_device_train_batch_size", 8]
    words += ["--loss_on", "completion", "--test_sets", tmp_path / "tests" / "gsm8k", "--dev_dataset", tmp_path / "dev"]
    done = inside("finetune", *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    again, overlap = read_lines(tmp_path / "run" / "repeated.jsonl")
    assert (again["sample"], again["of"], again["answers"]) == (TRAIN + 1, 4, [gold(3), "7"])
    assert (overlap["sample"], overlap["question"]) == (TRAIN + 2, 0)
    assert math.isfinite(read_lines(tmp_path / "run" / "log.jsonl")[-1]["dev_loss"])


def test_a_completion_is_all_of_the_answer(explained: Path, tiny_llama: Path) -> None:
    """--loss_on completion: the tokens without a loss are those of the text up to `The answer is`."""
    from teacherlm.finetune.fields import parse_fields
    from teacherlm.finetune.samples import tokenize

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = datasets.load_from_disk(str(explained))
    tokens, _ = tokenize(rows, tokenizer, parse_fields("text"), 512, True, 0)
    for number, sample in enumerate(tokens):
        learned = sample["input_ids"][sample["skipped"] :]
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == f"{gold(number)}."


def test_the_score_of_a_text_is_the_likelihood_of_the_answers_tokens(
    explained: Path, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ["--name", tiny_llama, "--input", tmp_path / "GSM8K_cot.jsonl", "--kind", "cot"]
    done = inside("score-texts", *words)
    assert done.returncode == 0, done.stderr
    [file] = tmp_path.glob("GSM8K_cot_scores_*.jsonl")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for row, said in list(zip(datasets.load_from_disk(str(explained)), read_lines(file)))[:4]:
        ids = tokenizer(row["cot_first"].removesuffix("."), return_tensors="pt").input_ids
        start = len(tokenizer(row["cot_first"].rpartition(" The answer is")[0] + " The answer is").input_ids)
        with torch.inference_mode():
            scores_TV = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = sum(float(scores_TV[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
        assert said["scores"][0] == pytest.approx(expected, abs=1e-3)


def test_peoples_solutions_are_explanations(prepare: Callable, tmp_path: Path, inside: Callable) -> None:
    assert prepare("--prompts", "solutions").returncode == 0
    files = ["--input", tmp_path / "GSM8K.jsonl", "--output", tmp_path / "GSM8K_solution.jsonl"]
    done = inside("enhance", "--name", "field:answer", *files, "--task_type", "solution_text", "--prompts", "solutions")
    assert done.returncode == 0, done.stderr
    assert prepare("--prompts", "solutions", "--post_process").returncode == 0
    row = datasets.load_from_disk(str(tmp_path / "GSM8K"))[3]
    said = "The bags have 20*3=60 apples.\nWith the others it is more."
    assert row["solution_first"] == f"Q: {problem(3)['question']} A: {said} The answer is 1,060."
    assert row["solution_tail"] == f"Q: {problem(3)['question']} A: The answer is 1,060. {said}"


# ------------------------------------------------------------------------------- a teacher that does not see the answer


@pytest.fixture
def reasoner() -> Iterator[str]:
    """A teacher's address. Of four samples, the first gets the right answer at once, written in another way, the second
    after a hint, the third gets none, and the fourth another one."""

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        number = int(re.search(r"week (\d+)", body["prompt"])[1])
        right, said = 1000 + 20 * number, "unknown"
        if number % 4 == 0 or (number % 4 == 1 and "Hint: the right answer is" in body["prompt"]):
            said = f"${right}.00"
        elif number % 4 == 3:
            said = f"{right + 1}"
        text = f" A bag has 20, so 1.5 bags have 30. That makes the answer clear. So the answer is {said}."
        answer.send({"choices": [{"text": text, "finish_reason": "stop"}]})

    with serve(respond) as server:
        yield f"{server.address}/model"


def test_only_texts_with_the_right_conclusion_are_kept(
    prepare: Callable, reasoner: str, tmp_path: Path, inside: Callable
) -> None:
    assert prepare("--prompts", "reason_first").returncode == 0
    files = ["--input", tmp_path / "GSM8K.jsonl", "--output", tmp_path / "GSM8K_reason.jsonl"]
    done = inside("enhance", "--name", reasoner, *files, "--task_type", "reason_text", "--prompts", "reason_first")
    assert done.returncode == 0, done.stderr
    quarter = TRAIN // 4
    assert f"{quarter} accepted, {quarter} rationalized, {2 * quarter} dropped" in done.stdout
    kept = read_lines(tmp_path / "GSM8K_reason.jsonl")
    assert {record["reason"] for record in kept} == {"A bag has 20, so 1.5 bags have 30. That makes the answer clear."}
    dropped = read_lines(tmp_path / "GSM8K_reason.dropped.jsonl")
    assert dropped[0]["reason"] == f"the answer is {gold(2)}, and the conclusions were: none, none, none, none, none"
    assert dropped[1]["reason"].startswith(f"the answer is {gold(3)}, and the conclusions were: 1061, 1061")
    assert prepare("--prompts", "reason_first", "--post_process").returncode == 0
    first = datasets.load_from_disk(str(tmp_path / "GSM8K"))["reason_first"][0]
    assert first.endswith(f"That makes the answer clear. The answer is {gold(0)}.")


# ------------------------------------------------------------------------------------------------------------- scoring


def test_letters_are_refused_and_answers_are_scored(
    prepare: Callable, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    assert prepare().returncode == 0
    words = ["--model_args", f"pretrained={tiny_llama}", "--tasks", "gsm8k", "--datasets", tmp_path / "tests"]
    words += ["--output_path", tmp_path / "results", "--num_tokens", 8]
    for asked in ("letter", "both"):
        error = only_error(inside("evaluate", *words, "--answer", asked))
        assert error.endswith(
            f"--answer {asked}: gsm8k has no choices whose letters can be scored; use --answer generate"
        )
    done = inside("evaluate", *words, "--num_fewshot", 2)
    assert done.returncode == 0, done.stderr
    [result] = (tmp_path / "results").glob("*/gsm8k@generate.json")
    assert json.loads(result.read_text())["n"] == TEST
    sample = read_lines(result.with_name("gsm8k@generate_samples.jsonl"))[0]
    assert sample["gold"] == gold(TRAIN)
    shown = "".join(f"Q: {problem(n)['question']} A: The answer is {gold(n)}.\n\n" for n in range(2))
    assert sample["prompt"] == f"{shown}Q: {problem(TRAIN)['question']} A:"


def test_a_chain_from_the_files_to_the_table(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values = {"STUDENT": tiny_llama, "EPOCHS": 1, "BATCH": 8, "GSM8K_DATA": data, "RUNS": tmp_path / "runs"}
    values |= {"TEACHER": "field:answer", "PROMPTS": "solutions", "TASK": "solution_first", "PYTHON": warm_python()}
    values |= {"LAUNCHER": "local", "EVALUATE_FLAGS": "--num_tokens 8"}
    environment = {**os.environ, **{name: str(value) for name, value in values.items()}}
    words = ["bash", ROOT / "slurm" / "chain.sh", "gsm8k"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"accuracy on {TEST} test questions of gsm8k@generate" in done.stdout


# ---------------------------------------------------------------------------------------------------- several answers


def test_a_question_may_have_several_right_answers(tmp_path: Path, inside: Callable) -> None:
    rows = [
        {"question": "who wrote the little book", "answer": ["Ann Lee", "A. Lee"]},
        {"question": "where was it printed", "answer": ["Rome"]},
    ]
    for name in ("train", "dev"):
        write_records(tmp_path / f"NQ-open.{name}.jsonl", rows)
    places = ["--data", tmp_path, "--output_dir", tmp_path / "out", "--test_dir", tmp_path / "tests"]
    done = inside("data_prepare", "--benchmark", "nq_open", *places)
    assert done.returncode == 0, done.stderr
    tests = datasets.load_from_disk(str(tmp_path / "tests" / "nq_open")).to_list()
    assert [(one["question"], one["answer"], one["answers"]) for one in tests] == [
        ("who wrote the little book?", "Ann Lee", ["Ann Lee", "A. Lee"]),
        ("where was it printed?", "Rome", ["Rome"]),
    ]
    record = read_lines(tmp_path / "out" / "NQ-open.jsonl")[0]
    assert record["text"] == "Q: who wrote the little book? A: The answer is Ann Lee."
    assert record["asked"] == {"kind": "text", "answers": ["Ann Lee", "A. Lee"]}


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"answer": "It is many.\n#### many"},
            "the field 'answer' is 'many'; a number was expected (answer_is of gsm8k",
        ),
        ({"answer": None}, "the field 'answer' is null"),
        ({"asked": "me"}, "the field 'asked' is already there, and the pipeline writes it; rename it first"),
    ],
)
def test_a_mistake_in_a_sample_is_named_and_nothing_is_written(
    change: dict[str, Any], said: str, data: Path, prepare: Callable, tmp_path: Path
) -> None:
    write_records(data / "train.jsonl", [problem(0), problem(1), {**problem(2), **change}])
    assert f"{data / 'train.jsonl'}, line 3: {said}" in only_error(prepare())
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "grade-school-math",
        "tests",
    ]


def test_a_damaged_record_stops_a_teacher_that_does_not_see_the_answer(
    prepare: Callable, reasoner: str, tmp_path: Path, inside: Callable
) -> None:
    assert prepare("--prompts", "reason_first").returncode == 0
    records = read_lines(tmp_path / "GSM8K.jsonl")
    records[4]["asked"] = {"kind": "number", "answers": ["many"]}
    write_records(tmp_path / "other.jsonl", records)
    words = ["--input", tmp_path / "other.jsonl", "--output", tmp_path / "GSM8K_reason.jsonl"]
    done = inside("enhance", "--name", reasoner, *words, "--task_type", "reason_text", "--prompts", "reason_first")
    assert f"{tmp_path / 'other.jsonl'}, line 5: the field 'asked' is " in only_error(done)
    assert not (tmp_path / "GSM8K_reason.jsonl").exists()
