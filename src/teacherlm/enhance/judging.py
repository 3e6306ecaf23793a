"""Decide what happens with a text that a teacher wrote: it is kept, asked for again, or given up.

A teacher that does not see the answer (`sees_answer: false` in prompts/NAME.yaml) may reach another conclusion. Its
text counts only if the conclusion is the right answer. When all attempts fail, the teacher is asked once more with the
answer as a hint (rationalization: Zelikman et al. 2022, arXiv 2203.14465).
"""

from dataclasses import dataclass, field
from typing import Any

from teacherlm.catalog.prompt_sets import Kind, conclusion
from teacherlm.catalog.prompts import completion_start
from teacherlm.core.records import Record

EMPTY_ATTEMPTS = 3
"""Total number of attempts for an empty sampled completion. Each attempt has other random numbers."""


@dataclass
class Question:
    """What is known of a sample while its explanation is asked for.

    Attributes:
        prompt: the text of the record's prompt field.
        gold: the letter of the right answer; "" if the record has none.
        hint: the prompt with the right answer; "" if there is none.
        attempts: the number of earlier attempts.
        conclusions: the conclusions of the texts so far, as letters, or "none".
        hinted: whether the teacher is being asked with the hint.
    """

    prompt: str
    gold: str
    hint: str
    attempts: int = 0
    conclusions: list[str] = field(default_factory=list)
    hinted: bool = False


def question_of(record: Record, kind: str) -> Question:
    """The question of a record, for the texts of a kind."""
    text = record.get("text")
    start = completion_start(text) if isinstance(text, str) else None
    hint = record.get(f"{kind}_hint")
    gold = text[start : start + 1] if isinstance(text, str) and start is not None else ""
    return Question(record[f"{kind}_text"], gold, hint if isinstance(hint, str) else "")


@dataclass(frozen=True)
class Verdict:
    """What happens with a text. Exactly one of the attributes is set.

    Attributes:
        kept: the fields of the text that is kept.
        again: the record's prompt or its hint, for the next attempt.
        failed: why the sample has no text. It counts as a failure.
        dropped: why the sample has no text, although the teacher answered as it should. It does not count as a failure.
    """

    kept: dict[str, Any] | None = None
    again: str | None = None
    failed: str | None = None
    dropped: str | None = None


def judge(kind: Kind, question: Question, text: str, sampled: bool) -> Verdict:
    """Decide about a text.

    Args:
        sampled: whether another attempt can have another text.
    """
    if kind.sees_answer:
        if text.strip():
            return Verdict(kept={"text": text})
        more = sampled and question.attempts + 1 < EMPTY_ATTEMPTS
        return Verdict(again=question.prompt) if more else Verdict(failed="the completion is empty")
    found = conclusion(text)
    if found and found[1] == question.gold and found[0].strip():
        source = "rationalized" if question.hinted else "accepted"
        about = {"source": source, "attempts": question.attempts + 1}
        return Verdict(kept={"text": found[0].strip(), "whole": text, **about})
    question.conclusions.append("none" if found is None else f"({found[1]})" if found[0].strip() else "an empty text")
    if not question.hinted:
        if sampled and question.attempts + 1 < kind.attempts:
            return Verdict(again=question.prompt)
        if question.hint:
            question.hinted = True
            return Verdict(again=question.hint)
    said = ", ".join(question.conclusions)
    return Verdict(dropped=f"the answer is ({question.gold}), and the conclusions were: {said}")
