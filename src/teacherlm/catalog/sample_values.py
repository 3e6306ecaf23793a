"""What a template of a prompt set knows of a sample, and what the sample asks for.

It is known from a question (catalog/prompts.py), or is read back from a training record. Records of questions without
choices, and those of benchmarks with rules of their own for finding an answer, have the field ASKED, because their
field `text` does not say everything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherlm.catalog.answers import Asked, gold_values, require_rule
from teacherlm.catalog.prompts import ANSWER_BEGINS, LETTERS, Question, split_answer, split_choices, split_question
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.terminal import shown

ASKED = "asked"
"""The field of a record that says what its question asks for: {"kind": "number", "answers": ["72"], "extract": [...]}.
`extract` is there if the benchmark has rules of its own."""


def field_of(asked: Asked) -> dict[str, Any]:
    """The content of the field ASKED."""
    rules = {"extract": list(asked.rules)} if asked.rules else {}
    return {"kind": asked.kind, "answers": list(asked.golds), **rules}


def asked_of(record: Mapping[str, Any], where: str = "") -> Asked | None:
    """What the question of a training record asks for; None if the record does not say its right answer.

    Args:
        where: the record's place, for the message.

    Raises:
        UserError: data_prepare.py did not write the field ASKED.
    """
    text, said = record.get("text"), record.get(ASKED)
    if not isinstance(text, str):
        return None
    _, choices = split_question(text)
    if said is not None:
        try:
            if is_asked(said):
                choices = choices if said["kind"] == "letter" else ()
                asked = Asked(said["kind"], tuple(said["answers"]), choices, tuple(said.get("extract") or ()), where)
                gold_values(asked)
                for rule in asked.rules:
                    require_rule(rule, asked.kind)
                return asked
        except ValueError:
            pass
        place = f"{where}: " if where else ""
        raise UserError(f"{place}the field {ASKED!r} is {shown(said)}; data_prepare.py did not write it")
    _, mark, after = split_answer(text)
    if mark == ANSWER_BEGINS:
        return Asked("text", (open_answer(after),))
    return Asked("letter", (after[0],), choices) if after else None


def is_asked(said: Any) -> bool:
    """Whether a value has the form of the field ASKED."""
    if not isinstance(said, Mapping) or said.get("kind") not in ("letter", "number", "text"):
        return False
    answers, rules = said.get("answers"), said.get("extract") or []
    return bool(answers) and all(
        isinstance(some, list) and all(isinstance(one, str) for one in some) for some in (answers, rules)
    )


def are_open(records: Path) -> bool:
    """Whether the questions of a file's records have no choices. The first record says it."""
    first = next((record for _, record in read_records(records)), {})
    asked = asked_of(first, f"{records}, line 1")
    return asked is not None and asked.kind != "letter"


def open_answer(after: str) -> str:
    """The answer in what follows ` A: The answer is`."""
    return after.strip().removesuffix(".")


def values_of(question: Question, sample: Record) -> dict[str, Any]:
    """What the templates know of a sample. An open question has no `letter`."""
    answers = [question.choices[question.gold]] if question.choices else list(question.answers)
    return {
        "text": question.text,
        "preamble": question.preamble,
        "question": question.with_choices,
        "choices": list(question.choices),
        **({"letter": LETTERS[question.gold]} if question.choices else {}),
        "answer": answers[0],
        "answers": answers,
        "sample": sample,
    }


def values_of_text(record: Record) -> dict[str, Any]:
    """What the templates know of a sample whose question is read from its field `text`."""
    before, mark, after = split_answer(record["text"])
    preamble, _, question = before.partition("Q: ")
    values = {"text": record["text"], "preamble": preamble, "question": question, "sample": record}
    said = record.get(ASKED)
    known = said["answers"] if isinstance(said, Mapping) and is_asked(said) and said["kind"] != "letter" else None
    if known or mark == ANSWER_BEGINS:
        answers = known or [open_answer(after)]
        return {**values, "choices": [], "answer": answers[0], "answers": answers}
    _, choices = split_choices(question)
    gold = LETTERS.find(after[:1])
    answer = choices[gold] if 0 <= gold < len(choices) else ""
    return {**values, "choices": list(choices), "letter": after[:1], "answer": answer, "answers": [answer]}
