"""Prompt sets: the YAML files of the project, mistakes in others, and the conclusion of a teacher's text."""

from pathlib import Path

import pytest

from teacherlm.catalog.answers import Asked
from teacherlm.catalog.conclusions import conclusion
from teacherlm.catalog.prompt_sets import load_prompts, names
from teacherlm.catalog.prompts import Question
from teacherlm.core.errors import UserError

CLAIM = Question("Bees fly.", ("True", "False"), gold=1, preamble="On insects. ")


def test_the_project_has_four_sets_for_teachers_and_one_for_judges() -> None:
    assert names() == ["instruct", "judge", "reason_first", "solutions", "teacherlm"]


def test_a_teacher_that_reasons_first_is_not_told_the_answer() -> None:
    made = load_prompts("reason_first").prompt_fields(CLAIM, {}, "")
    assert list(made) == ["text", "reason_text", "reason_hint"]
    assert made["reason_text"].startswith("On insects. Question: Bees fly. (A) True (B) False\n\nThink step by step.")
    assert "(B)." not in made["reason_text"] and "Hint: the right answer is (B)." in made["reason_hint"]


@pytest.mark.parametrize("name", ["teacherlm", "instruct", "reason_first"])
def test_every_field_that_can_be_trained_on_is_made_or_is_in_the_records(name: str) -> None:
    prompts = load_prompts(name)
    record = prompts.prompt_fields(CLAIM, {}, "")
    made = prompts.training_texts(record, {kind: f"about {kind}" for kind in prompts.kinds}, "")
    made |= prompts.shuffled_texts({**record, **made}, {kind: f"else {kind}" for kind in prompts.kinds}, "")
    assert list(made) == prompts.made_fields(prompts.kinds)
    assert {"parts", *prompts.training_fields} == {"text", "all", *prompts.kinds, *made}
    assert {*record, *made} - {"text"} < set(prompts.reserved)
    first = next(iter(prompts.kinds))
    assert made[f"{first}_first"] == f"On insects. Q: Bees fly. (A) True (B) False A: about {first} The answer is (B)."


def test_a_new_kind_is_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        'kinds: {rule_of_thumb: {prompt: "{{ question }} Name a rule (the answer is {{ answer }}; {{ sample.id }})."}}'
    )
    prompts = load_prompts(str(path))
    record = prompts.prompt_fields(CLAIM, {"id": 7}, "")
    assert record["rule_of_thumb_text"] == "Bees fly. (A) True (B) False Name a rule (the answer is False; 7)."
    made = prompts.training_texts(record, {"rule_of_thumb": "Wings."}, "")
    assert made["rule_of_thumb_tail"] == CLAIM.text + " Wings."
    assert prompts.training_fields["rule_of_thumb_first"] == ("rule_of_thumb",)


def test_the_digest_depends_on_the_texts_and_not_on_the_place(tmp_path: Path) -> None:
    source = (Path(load_prompts().path)).read_text()
    same, other = tmp_path / "teacherlm.yaml", tmp_path / "other" / "teacherlm.yaml"
    same.write_text(source)
    other.parent.mkdir()
    other.write_text(source.replace("step by step", "slowly"))
    assert load_prompts(str(same)).digest() == load_prompts().digest()
    assert load_prompts(str(other)).digest() != load_prompts().digest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kinds: {}", "kinds: at least one kind"),
        ("kinds: {cot: {}}", "kinds: cot: the field 'prompt' is missing"),
        ("kinds: {cot: {promt: x}}", "kinds: cot: unknown field 'promt'; known: prompt, system"),
        ("kinds: {Cot: {prompt: x}}", "kinds: Cot: a name of small letters"),
        ("kinds: {text: {prompt: x}}", "kinds: text: the field 'text' is already made by the pipeline"),
        (
            "kinds: {a: {prompt: x}, a_tail: {prompt: x}}",
            "kinds: a_tail: the field 'a_tail' is already made by the kind a",
        ),
        (
            "kinds: {a: {prompt: x}}\nfields: {a_text: x}",
            "fields: a_text: the field 'a_text' is already made by the kind a",
        ),
        ("kinds: {a: {prompt: '{{ letter }}', sees_answer: false}}", "reads 'letter'; it knows preamble"),
        ("kinds: {a: {prompt: '{{ letter }}', sees_answer: false}}", "the teacher does not see the answer"),
        ("kinds: {a: {prompt: '{{ nonesuch }}'}}", "the template a prompt reads 'nonesuch'"),
        ("kinds: {a: {prompt: '{{ text '}}", "the template a prompt is not valid Jinja2"),
        ("kinds: {a: {prompt: x, hint: y}}", "kinds: a: a hint needs `sees_answer: false`"),
        ("kinds: {a: {prompt: x, sees_answer: false, attempts: 0}}", "attempts: a number from 1 to 100"),
        ("kinds: {a: {prompt: x, examples: [{prompt: y}]}}", "the field 'completion' is missing"),
        ("kinds: {a: {prompt: x}}\nfields: {b: '{{ c }}'}", "the template b reads 'c'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_prompts(str(path))
    assert str(caught.value).startswith(str(path)) and said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_set_lists_the_near_ones() -> None:
    with pytest.raises(UserError, match="no prompts 'teacherml'; did you mean teacherlm"):
        load_prompts("teacherml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bees have wings. The answer is (B).", ("Bees have wings.", "B")),
        ("Bees have wings.\nThe answer is (B)", ("Bees have wings.", "B")),
        ("Wings! So the final answer is **B**.", ("Wings!", "B")),
        ("Wings. Answer: B", ("Wings.", "B")),
        ("The answer is (A)? No. It flies. The answer is (B).", ("The answer is (A)? No. It flies.", "B")),
        ("The answer is (B).", ("", "B")),
        ("The answer is Bees.", None),
        ("The answer is a bee.", None),
        ("Bees have wings.", None),
        ("", None),
    ],
)
def test_a_conclusion_is_the_last_answer_that_a_text_names(text: str, expected: tuple[str, str] | None) -> None:
    assert conclusion(text, Asked("letter", ("B",), ("True", "False"))) == expected
