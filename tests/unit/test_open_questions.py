"""Benchmarks without choices: their YAML, their texts, and what templates and quality checks know of them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.new_benchmarks import mistake

from teacherlm.catalog import text_parts
from teacherlm.catalog.answers import Asked
from teacherlm.catalog.benchmarks import Benchmark, load_benchmark
from teacherlm.catalog.conclusions import conclusion
from teacherlm.catalog.explanations import split_at_answer
from teacherlm.catalog.prompt_sets import load_prompts, names
from teacherlm.catalog.prompts import completion_start, contexts_digest, split_answer, split_question
from teacherlm.catalog.sample_values import asked_of, values_of_text
from teacherlm.core.records import Record
from teacherlm.dataset.quality import contradicts
from teacherlm.finetune.sets import question_and_answer
from teacherlm.report.sample_browser import new_row, question_key

SOLUTION = "In May she sold 48/2=<<48/2=24>>24 clips.\nThat is 48+24=<<48+24=1072>>1072 together.\n#### 1,072"
PROBLEM = {"question": "How many clips did she sell? ", "answer": SOLUTION}
TEXT = "Q: How many clips did she sell? A: The answer is 1,072."
TOWN = "title: Town\nsplits: {train: train, test: test}\nquestion: '{{ q }}'\n"


def benchmark_of(tmp_path: Path, more: str) -> Benchmark:
    path = tmp_path / "town.yaml"
    path.write_text(TOWN + more)
    return load_benchmark(str(path))


def prepared(sample: Record = PROBLEM, benchmark: str = "gsm8k", prompts: str = "teacherlm") -> Record:
    return load_benchmark(benchmark).prepare(sample, "line 1", load_prompts(prompts))


# ---------------------------------------------------------------------------------------------------------- the YAML


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("answer: '{{ a }}'\n", "choices: 2 to 26 templates were expected, found 0 (questions without choices need"),
        ("answer: '{{ a }}'\nanswer_is: index\n", "(questions without choices need `answer_is: number or text`)"),
        ("choices: [x]\nanswer: '{{ a }}'\nanswer_is: text\n", "choices: 2 to 26 templates were expected, found 1"),
        ("answer_is: number\n", "the field 'answer' is missing, or `answers` with the name of a list"),
        ("choices: [x, y]\n", "the field 'answer' is missing"),
        ("answer: '{{ a }}'\nanswer_is: text\nlabels: {x: A}\n", "labels: they are letters of choices"),
        ("choices: [x, y]\nanswer: '{{ a }}'\nanswer_is: number\n", "answer_is: letter, index or text was expected"),
        ("choices: [x, y]\nanswer: a\nanswers: b\n", "answers: several right answers are only possible without"),
        (
            "answers: '{{ a }}'\nanswer_is: text\n",
            "answers: the name of a list (answers, or answers.text) was expected",
        ),
        ("answer: a\nanswer_is: number\nextract: [conclusion]\n", "extract, 1. rule: conclusion finds no number"),
        ("answer: a\nanswer_is: number\nextract: [last_number, '(']\n", "extract, 2. rule: '('"),
        ("answer: a\nanswer_is: text\nextract: ['[a-z]+']\n", "a pattern with a group around the answer"),
        ("answer: a\nanswer_is: text\nextract: first_line\n", "extract: a list was expected, found 'first_line'"),
    ],
)
def test_a_mistake_in_the_yaml_is_one_line(tmp_path: Path, more: str, said: str) -> None:
    message = mistake(lambda: benchmark_of(tmp_path, more))
    assert said in message and message.startswith(str(tmp_path)) and "\n" not in message


@pytest.mark.parametrize(
    ("more", "sample", "said"),
    [
        ("answer: '{{ a }}'\nanswer_is: number\n", {"a": "many"}, "the field 'a' is 'many'; a number was expected"),
        ("answer: '{{ a }}'\nanswer_is: number\n", {"a": "3 or 4"}, "(answer_is of town.yaml is number)"),
        (
            "answer: '{{ a }}'\nanswer_is: text\n",
            {"a": "?!"},
            "the field 'a' is '?!'; a text with letters or digits was",
        ),
        ("answers: a\nanswer_is: text\n", {"a": []}, "the field 'a' is empty; a list of right answers was expected"),
        ("answers: a.b\nanswer_is: text\n", {"a": {"c": 1}}, "the field 'a.b' is 'None'; a list of right answers was"),
        ("answers: a\nanswer_is: text\n", {"a": [{"b": 1}]}, "the field 'a' is"),
        ("answers: a\nanswer_is: number\n", {"a": ["3", "x"]}, "the field 'a' is 'x'; a number was expected"),
        ("answers: a\nanswer_is: text\n", {}, "the field 'a' is missing; Town needs q, a"),
        ("answers: a\nanswer_is: text\n", {"a": ["so A: The answer is x"]}, "has the words ` A: The answer is`"),
    ],
)
def test_a_right_answer_of_another_form_is_named(tmp_path: Path, more: str, sample: Record, said: str) -> None:
    benchmark = benchmark_of(tmp_path, more)
    message = mistake(lambda: benchmark.ask({"q": "Where?", **sample}, "train.jsonl, line 7"))
    assert said in message and message.startswith("train.jsonl, line 7: ") and "\n" not in message


@pytest.mark.parametrize(
    ("more", "sample", "expected"),
    [
        ("answers: a\n", {"a": ["Rome", "the city of  Rome", "Rome"]}, ("Rome", "the city of Rome")),
        ("answers: a.text\n", {"a": {"text": ["Rome"], "answer_start": [3]}}, ("Rome",)),
        (
            "answer: '{{ a.value }}'\nanswers: a.aliases\n",
            {"a": {"value": "Rome", "aliases": ["Roma"]}},
            ("Rome", "Roma"),
        ),
        ("answers: a\n", {"a": "Rome"}, ("Rome",)),
        ("answers: a\n", {"a": [1990, "MCMXC"]}, ("1990", "MCMXC")),
        ("answer: ' {{ a }}\n'\n", {"a": "New\nYork"}, ("New York",)),
    ],
)
def test_right_answers_are_read_from_a_text_or_a_list(
    tmp_path: Path, more: str, sample: Record, expected: tuple[str, ...]
) -> None:
    asked = benchmark_of(tmp_path, f"{more}answer_is: text\n").ask({"q": "Where?", **sample}, "")
    assert asked.answers == expected
    assert (asked.with_choices, asked.answer, asked.choices) == ("Where?", expected[0], ())


def test_a_test_sample_says_what_it_asks_for(tmp_path: Path) -> None:
    gsm8k = load_benchmark("gsm8k")
    sample = gsm8k.test_sample(PROBLEM, "")
    assert (sample["question"], sample["answer"]) == ("How many clips did she sell?", "1,072")
    assert sample["origin_answer"] == SOLUTION and "answers" not in sample
    assert gsm8k.asked(sample) == Asked("number", ("1,072",))

    town = benchmark_of(tmp_path, "answers: answers\nanswer_is: text\nextract: ['in (.+)', first_line]\n")
    sample = town.test_sample({"q": "Where?", "answers": ["Rome", "Roma"]}, "")
    assert (sample["answer"], sample["answers"]) == ("Rome", ["Rome", "Roma"])
    assert town.asked(sample) == Asked("text", ("Rome", "Roma"), (), ("in (.+)", "first_line"))


def test_a_benchmark_with_choices_may_have_rules_too(tmp_path: Path) -> None:
    more = "choices: ['yes', 'no']\nanswer: '{{ a }}'\nextract: ['^([AB])', conclusion]\n"
    benchmark = benchmark_of(tmp_path, more)
    sample = benchmark.test_sample({"q": "Is it so?", "a": "B"}, "")
    assert benchmark.asked(sample) == Asked("letter", ("B",), ("yes", "no"), ("^([AB])", "conclusion"))
    record = benchmark.prepare({"q": "Is it so?", "a": "B"}, "", load_prompts())
    assert asked_of(record) == benchmark.asked(sample)
    assert "asked" not in load_benchmark("creak").prepare({"sentence": "x", "label": "true"}, "", load_prompts())


# ---------------------------------------------------------------------------------------------------------- the texts


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("72", "72."),
        ("Washington D.C.", "Washington D.C."),
        ("(B) or not", "(B) or not."),
        ("Who's Afraid?", "Who's Afraid?"),
    ],
)
def test_the_answer_follows_the_mark_and_is_found_again(tmp_path: Path, answer: str, written: str) -> None:
    benchmark = benchmark_of(tmp_path, "answers: a\nanswer_is: text\npreamble: 'On towns. '\n")
    record = benchmark.prepare({"q": "Which (A) of (B) them?", "a": [answer]}, "", load_prompts())
    assert record["text"] == f"On towns. Q: Which (A) of (B) them? A: The answer is {written}"
    values = values_of_text(record)
    assert (values["preamble"], values["question"], values["choices"]) == ("On towns. ", "Which (A) of (B) them?", [])
    assert values["answer"] == answer and "letter" not in values


def test_a_completion_begins_with_the_space_before_the_answer() -> None:
    for text in (TEXT, f"{TEXT} Let's think. Q: Another? A: The answer is (B)."):
        assert text[completion_start(text) :].startswith(" 1,072.")
    assert split_answer(TEXT) == ("Q: How many clips did she sell?", " A: The answer is", " 1,072.")
    assert split_question("Q: Is (A) or (B) right? A: The answer is both.") == ("Is (A) or (B) right?", ())
    assert question_and_answer(TEXT)[1] == "1,072"


def test_the_page_shows_the_right_answer() -> None:
    row = new_row("train", 1, TEXT)
    assert (row["q"], row["c"], row["g"], row["r"]) == ("How many clips did she sell?", (), -1, "1,072")
    assert "r" not in new_row("train", 1, "Q: Is it so? (A) yes (B) no A: The answer is (B).")
    assert question_key(TEXT) == question_key("Q: How many clips did she sell? A:")


FIRST = "Q: How many clips did she sell? A: Because. The answer is 1,072."


@pytest.mark.parametrize("name", [name for name in names() if name != "judge"])
def test_every_prompt_set_reads_well_without_choices(name: str) -> None:
    prompts = load_prompts(name)
    record = prepared(prompts=name)
    assert not any(
        "(" in text for field, text in record.items() if field.endswith(("_text", "_hint")) and field != "text"
    )
    made = prompts.training_texts(record, {kind: " Because." for kind in prompts.kinds}, "")
    assert {made[f"{kind}_first"] for kind in prompts.kinds} == {FIRST}
    shuffled = prompts.shuffled_texts({**record, **made}, {kind: " Others do." for kind in prompts.kinds}, "")
    first = next(iter(prompts.kinds))
    assert shuffled[f"{first}_shuffled"].endswith("Others do.") and TEXT in shuffled[f"{first}_shuffled"]


def test_prompts_say_the_right_answer_or_do_not() -> None:
    assert "The right answer is 1,072.\n" in prepared(prompts="instruct")["cot_text"]
    reason = prepared(prompts="reason_first")
    assert "1,072" not in reason["reason_text"] and "Hint: the right answer is 1,072." in reason["reason_hint"]
    assert reason["reason_text"].endswith("End with one line: The answer is X, where X is the answer alone.")


def test_a_template_that_needs_a_letter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kinds: {rule: {prompt: 'It is ({{ letter }}).'}}")
    message = mistake(lambda: prepared(prompts=str(path)))
    assert "a question without choices has no letter; write {% if choices %}" in message and "\n" not in message


def test_the_parts_of_a_text_are_known() -> None:
    prompts = load_prompts()
    record = prepared()
    made = prompts.training_texts(record, {"cot": " Because."}, "")
    spans = json.loads(made[text_parts.COLUMN])
    whole = {**record, **made}
    expected = {
        "text": ["Q: How many clips did she sell? A: The answer is", " 1,072."],
        "cot_tail": [
            "Q: How many clips did she sell? A: The answer is",
            " 1,072.",
            " Let's think step by step. Because.",
        ],
        "cot_first": ["Q: How many clips did she sell? A: ", "Because. The answer is ", "1,072."],
    }
    kinds = {"text": "qa", "cot_tail": "qae", "cot_first": "qea"}
    for field, texts in expected.items():
        ends = [0, *(end for _, end in spans[field])]
        assert [whole[field][start:end] for start, end in itertools.pairwise(ends)] == texts
        assert [part[0] for part, _ in spans[field]] == list(kinds[field])


def test_solutions_are_shown_without_what_is_for_a_calculator() -> None:
    prompts = load_prompts("solutions")
    made = prompts.training_texts(prepared(prompts="solutions"), {"solution": f" {SOLUTION}"}, "")
    said = "In May she sold 48/2=24 clips.\nThat is 48+24=1072 together."
    assert made["solution_first"] == f"Q: How many clips did she sell? A: {said} The answer is 1,072."
    assert made["solution_tail"] == f"{TEXT} {said}"
    assert [part for part, _ in json.loads(made["parts"])["solution_first"]] == ["question", "explanation", "answer"]


def test_the_score_of_a_text_is_that_of_the_whole_answer() -> None:
    before, answer = split_at_answer(load_prompts(), prepared(), "cot", " 1,072 is it.", "")
    assert (before, answer) == ("Q: How many clips did she sell? A: 1,072 is it. The answer is", " 1,072")


def test_earlier_outputs_of_benchmarks_with_choices_keep_matching() -> None:
    """What is said of open questions is not in the digests of the others, which are those of version 1.0."""
    digests = {name: load_prompts(name).digest()["sha256"][:8] for name in names() if name != "solutions"}
    assert digests == {"instruct": "276361c7", "judge": "31931773", "reason_first": "e5db694b", "teacherlm": "aaf090eb"}
    assert contexts_digest()["sha256"][:8] == "daf22387" != contexts_digest(is_open=True)["sha256"][:8]
    assert all(load_prompts(name).digest() != load_prompts(name).digest(is_open=True) for name in digests)


def test_what_is_said_of_open_questions_is_in_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    said = []
    for word in ("Answer", "Reply"):
        path.write_text(f"kinds: {{rule: {{prompt: '{{% if choices %}}Choose{{% else %}}{word}{{% endif %}}'}}}}")
        said.append((load_prompts(str(path)).digest(), load_prompts(str(path)).digest(is_open=True)))
    assert said[0][0] == said[1][0] and said[0][1] != said[1][1]


# ------------------------------------------------------------------------------------------------- conclusions, quality


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2 is 24. So 3.5 is wrong. The answer is 72.", ("48/2 is 24. So 3.5 is wrong.", "72")),
        ("48/2 is 24.\n#### 72", ("48/2 is 24.", "72")),
        ("As 3.5 is half, the answer is 72", ("", "72")),
        ("The answer is 70. No! The answer is $72.00.", ("The answer is 70. No!", "72")),
        ("48+24 is 72.", None),  # a text that was cut may end with any number
        ("The answer is unknown.", None),
    ],
)
def test_a_text_is_kept_up_to_the_sentence_of_its_conclusion(text: str, expected: tuple[str, str] | None) -> None:
    assert conclusion(text, Asked("number", ("72",))) == expected


def test_a_benchmarks_rules_find_the_conclusion() -> None:
    asked = Asked("number", ("72",), (), (r"in total (\d+)", "last_number"))
    assert conclusion("48 and 24. That is in total 72 clips.", asked) == ("48 and 24.", "72")
    assert conclusion("48 and 24, so 72.", asked) == ("48 and 24, so 72.", "72")


@pytest.mark.parametrize(
    ("asked", "text", "expected"),
    [
        (Asked("number", ("72", "72.5")), "So the answer is 70.", True),
        (Asked("number", ("72", "72.5")), "So the answer is 72.50.", False),
        (Asked("number", ("72",)), "First 70, then 71.", False),
        (Asked("text", ("Barack Obama",)), "The answer is Bush.", True),
        (Asked("text", ("Barack Obama",)), "The answer is president Obama.", False),
        (Asked("text", ("Barack Obama",)), "He was the 44th.", False),
        (None, "The answer is 70.", False),
    ],
)
def test_a_text_contradicts_if_it_concludes_otherwise(asked: Asked | None, text: str, expected: bool) -> None:
    assert contradicts(text, (), asked) is expected


@pytest.mark.parametrize(
    "said",
    [
        *(3, "72", {}),
        {"kind": "sum", "answers": ["72"]},
        *({"kind": "number", "answers": answers} for answers in ([], ["x"], [72], "72")),
        *({"kind": "number", "answers": ["72"], "extract": rules} for rules in (["("], "x", ["conclusion"])),
    ],
)
def test_a_damaged_record_is_refused(said: Any) -> None:
    message = mistake(lambda: asked_of({"text": TEXT, "asked": said}, "GSM8K.jsonl, line 3"))
    assert message.startswith("GSM8K.jsonl, line 3: the field 'asked' is ") and "\n" not in message
