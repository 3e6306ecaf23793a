"""A benchmark is one YAML file. A mistake in it, or in a sample, is one line that says what is wrong and where."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.new_benchmarks import SAMPLE, mistake, written

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split
from teacherlm.core.records import write_records

CLAIM = {"sentence": "Bees live in hives.", "label": "true"}


def test_a_new_benchmark_is_prepared_from_one_yaml(
    tmp_path: Path, stage: Callable[..., subprocess.CompletedProcess]
) -> None:
    others = {"question": "What shines?", "choices": {"text": ["mud", "salt", "the sun"]}, "answerKey": "C"}
    write_records(tmp_path / "train.jsonl", [SAMPLE, others])
    write_records(tmp_path / "dev.jsonl", [others])
    options = {"benchmark": written(tmp_path), "data": tmp_path, "output_dir": tmp_path, "test_dir": tmp_path / "test"}
    done = stage("data_prepare", *(word for name, value in options.items() for word in (f"--{name}", value)))
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "CommonsenseQA.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == [
        "Q: Where do bees live? (A) hive (B) moon (C) soup A: The answer is (A).",
        "Q: What shines? (A) mud (B) salt (C) the sun A: The answer is (C).",
    ]
    [tested] = datasets.load_from_disk(str(tmp_path / "test" / "commonsense_qa"))
    assert (tested["question"], tested["answer"]) == ("What shines? (A) mud (B) salt (C) the sun", "(C)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": None}, "the field 'label' is null"),
        ({"label": "True"}, "the field 'label' is 'True'; expected one of 'true', 'false'"),
        ({"label": "maybe"}, "the field 'label' is 'maybe'; expected one of 'true', 'false'"),
        ({"label": ""}, "the field 'label' is ''; expected one of 'true', 'false'"),
        ({"label": True}, "the field 'label' is 'True'; expected one of 'true', 'false'"),
        ({"text": "mine"}, "the field 'text' is already there"),
        ({"cot": "mine"}, "the field 'cot' is already there"),
        ({"sentence": None}, "the field 'sentence' is null"),
    ],
)
def test_a_mistake_in_a_sample_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_records(tmp_path / "train.json", [CLAIM] * 6 + [{**CLAIM, **change}] + [CLAIM])
    creak = load_benchmark("creak")
    samples = read_split(creak, "train", tmp_path)
    prompts = load_prompts()
    message = mistake(lambda: [creak.prepare(sample, where, prompts) for where, sample in samples])
    assert message.startswith(f"{tmp_path / 'train.json'}, line 7: {words}")


def test_a_missing_field_is_named_with_all_that_are_needed() -> None:
    creak, sample = load_benchmark("creak"), {"claim": "x", "label": "true"}
    message = mistake(lambda: creak.prepare(sample, "train.json, line 7", load_prompts()))
    assert message == "train.json, line 7: the field 'sentence' is missing; CREAK needs sentence, label"


def test_a_value_that_a_template_cannot_read_is_named() -> None:
    sample = {"question": 5, "choices": ["a", "b", "c", "d"], "answer": "A", "subject": "anatomy"}
    message = mistake(lambda: load_benchmark("mmlu").ask(sample, "test.json, line 7"))
    assert message.startswith("test.json, line 7: the template question of mmlu.yaml fails")


def test_a_test_sample_keeps_the_sources_own_question(tmp_path: Path) -> None:
    built = load_benchmark(written(tmp_path)).test_sample(SAMPLE, "dev.jsonl, line 1")
    assert (built["origin_question"], built["choices"]) == (SAMPLE["question"], SAMPLE["choices"])


def test_an_unknown_benchmark_lists_the_near_names() -> None:
    assert "no benchmark 'strategyqa'; did you mean strategy_qa" in mistake(lambda: load_benchmark("strategyqa"))


def test_an_unknown_benchmark_that_is_near_to_none_lists_all() -> None:
    assert "creak, ecqa, gsm8k, mmlu, nq_open, sample, strategy_qa" in mistake(lambda: load_benchmark("zzz"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "promt: x\n", "unknown field 'promt'; known: title, question"),
        ("title: CommonsenseQA", "", "the field 'title' is missing"),
        ("title: CommonsenseQA", "title: [3]", "title: a text was expected, found ['3']"),
        ("title: CommonsenseQA", "title: 'C", "not valid YAML"),
        ('"{{ question }}"', '"{{ question "', "the template question is not valid Jinja2"),
        ('"{{ question }}"', '"{{ question | shout }}"', "No filter named 'shout'"),
        ("[1] }}", "[1] }", "the template choice B is not valid Jinja2"),
        ("", "labels: {true: yes}\n", "labels: 'true': the letter of a choice was expected, found 'yes'"),
        ("", "labels: {yes: A, no: B, yes: C}\n", "not valid YAML, line 8: 'yes' occurs twice"),
        ("", "labels: {true: A, TRUE: B}\n", "labels: TRUE: the same boolean has another letter; put the labels in"),
        ("", "labels: {null: A}\n", "not valid YAML, line 8: null: put it in quotes"),
        ("", "labels: {yes: , no: B}\n", "labels: yes: a text was expected, found nothing"),
        ("", "labels: {[a]: A}\n", "not valid YAML, line 8: a name was expected"),
        ("", "file_field: {{ a }}\n", "not valid YAML, line 8: a text that begins with { needs quotes"),
        ("", "title: Twice\n", "not valid YAML, line 8: 'title' occurs twice"),
        ("", "groups: {stem: anatomy}\n", "groups: stem: a list was expected, found 'anatomy'"),
        ("", "labels: {'true': D}\n", "labels: 'true': the letter of a choice was expected, found 'D'"),
        ("", "labels: {'true': AB}\n", "labels: 'true': the letter of a choice was expected, found 'AB'"),
        ("", "labels: [A, B]\n", "labels: a mapping was expected"),
        ("choices: [", "choices: [] #", "choices: 2 to 26 templates were expected, found 0"),
        ("choices: [", "choices: [one] #", "choices: 2 to 26 templates were expected, found 1"),
        ("choices: [", "choices: [~, No] #", "choices: a text was expected, found nothing (in quotes it is a text)"),
        ("choices: [", "choices: one #", "choices: a list was expected, found 'one'"),
        ("test: validation", "dev: dev", "splits: test missing"),
        ("", "answer_is: number\n", "answer_is: letter, index or text was expected, found 'number'"),
        ("", "file_field: subject\n", "file_field: each file name must have one *"),
    ],
)
def test_a_mistake_in_the_yaml_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = written(tmp_path, old, new)
    message = mistake(lambda: load_benchmark(path))
    assert message.startswith(f"{path}: ")
    assert words in message


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        ("{yes: A, no: B}", {"yes": "A", "no": "B"}),
        ("{Yes: B, No: A}", {"Yes": "B", "No": "A"}),
        ("{on: A, off: B}", {"on": "A", "off": "B"}),
        ("{y: A, n: B}", {"y": "A", "n": "B"}),
        ("{true: A, false: B}", {"true": "A", "false": "B", True: "A", False: "B"}),
        ("{True: A, False: B}", {"True": "A", "False": "B", True: "A", False: "B"}),
        ("{1: A, 0: B}", {"1": "A", "0": "B", 1: "A", 0: "B"}),
        ("{1.50: A, 007: B, 1e3: C}", {"1.50": "A", "007": "B", "1e3": "C"}),
        ("{12:30: A, 2020-01-01: B}", {"12:30": "A", "2020-01-01": "B"}),
        ("{None: A, 0x1F: B}", {"None": "A", "0x1F": "B"}),
    ],
)
def test_labels_without_quotes_are_what_people_wrote(tmp_path: Path, labels: str, answers: dict[object, str]) -> None:
    benchmark = load_benchmark(written(tmp_path, "", f"labels: {labels}\n"))
    for answer, letter in answers.items():
        assert benchmark.ask({**SAMPLE, "answerKey": answer}, "").answer == f"({letter})"


def test_a_boolean_is_no_yes(tmp_path: Path) -> None:
    benchmark = load_benchmark(written(tmp_path, "", "labels: {yes: A, no: B}\n"))
    message = mistake(lambda: benchmark.ask({**SAMPLE, "answerKey": True}, "line 1"))
    expected = "expected one of 'yes', 'no' (the labels of commonsense_qa.yaml)"
    assert message == f"line 1: the field 'answerKey' is 'True'; {expected}"


def test_choices_and_texts_without_quotes_are_what_people_wrote(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(
        "title: 2048\nhub: null\nsplits: {train: on, test: 1}\nquestion: '{{ q }}'\nchoices: [Yes, No, 3, 1.0, N]\n"
        "answer: N\nlabels:\n  N: E\n"
    )
    benchmark = load_benchmark(str(tmp_path / "odd.yaml"))
    assert benchmark.choices == ("Yes", "No", "3", "1.0", "N")
    assert (benchmark.title, benchmark.hub, benchmark.splits) == ("2048", None, {"train": "on", "test": "1"})
    assert type(benchmark.title) is str  # records take no others
    asked = benchmark.ask({"q": "Which?"}, "")
    assert (asked.with_choices, asked.answer) == ("Which? (A) Yes (B) No (C) 3 (D) 1.0 (E) N", "(E)")


def test_a_yaml_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- CREAK\n")
    assert mistake(lambda: load_benchmark(str(path))) == f"{path}: a mapping of names to values was expected"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ question.__class__ }}",
        "{{ question | attr('__class__') }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ choices.text.append('x') }}",
    ],
)
def test_a_template_cannot_reach_into_python(tmp_path: Path, template: str) -> None:
    path = written(tmp_path, "{{ question }}", template)
    said = mistake(lambda: load_benchmark(path).ask(SAMPLE, "train.jsonl, line 7"))
    assert said.startswith(("train.jsonl, line 7: the ", f"{path}: the template "))


@pytest.mark.parametrize(("kind", "answer"), [("letter", "B"), ("index", 1), ("index", "1"), ("text", "moon")])
def test_an_answer_is_a_letter_an_index_or_a_text(tmp_path: Path, kind: str, answer: object) -> None:
    benchmark = load_benchmark(written(tmp_path, "", f"answer_is: {kind}\n"))
    assert benchmark.ask({**SAMPLE, "answerKey": answer}, "").answer == "(B)"


@pytest.mark.parametrize(("kind", "answer"), [("letter", "D"), ("letter", "b"), ("index", 3), ("text", "Moon")])
def test_an_answer_that_is_none_of_the_choices_is_named(tmp_path: Path, kind: str, answer: object) -> None:
    benchmark = load_benchmark(written(tmp_path, "", f"answer_is: {kind}\n"))
    message = mistake(lambda: benchmark.ask({**SAMPLE, "answerKey": answer}, "train.jsonl, line 7"))
    assert message.startswith(f"train.jsonl, line 7: the field 'answerKey' is '{answer}'; expected one of ")
    assert message.endswith(f"(answer_is of commonsense_qa.yaml is {kind}; it can be letter, index or text)")
