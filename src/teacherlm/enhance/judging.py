"""Decide what happens with a text that a teacher wrote: it is kept, asked for again, or given up.

A teacher that does not see the answer (`sees_answer: false` in prompts/NAME.yaml) may reach another conclusion. Its
text counts only if the conclusion is the right answer. When all attempts fail, the teacher is asked once more with the
answer as a hint (rationalization: Zelikman et al. 2022, arXiv 2203.14465).
"""

from dataclasses import dataclass, field
from typing import Any

from teacherlm.catalog.answers import Asked, gold_values
from teacherlm.catalog.conclusions import conclusion
from teacherlm.catalog.prompt_sets import Kind
from teacherlm.catalog.sample_values import asked_of
from teacherlm.core.records import Record
from teacherlm.core.terminal import cut

EMPTY_ATTEMPTS = 3
"""Total number of attempts for an empty sampled completion. Each attempt has other random numbers."""


@dataclass
class Question:
    """What is known of a sample while its explanation is asked for.

    Attributes:
        prompt: the text of the record's prompt field.
        asked: what an answer is, and which ones are right; None if the record does not say it.
        hint: the prompt with the right answer; "" if there is none.
        attempts: the number of earlier attempts.
        conclusions: the conclusions of the texts so far, or "none".
        hinted: whether the teacher is being asked with the hint.
    """

    prompt: str
    asked: Asked | None
    hint: str
    attempts: int = 0
    conclusions: list[str] = field(default_factory=list)
    hinted: bool = False


def question_of(record: Record, kind: str, where: str) -> Question:
    """The question of a record, for the texts of a kind.

    Args:
        where: the record's place, for messages.
    """
    hint = record.get(f"{kind}_hint")
    return Question(record[f"{kind}_text"], asked_of(record, where), hint if isinstance(hint, str) else "")


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
    asked = question.asked
    found = conclusion(text, asked) if asked else None
    if asked and found and found[1] in gold_values(asked) and found[0].strip():
        source = "rationalized" if question.hinted else "accepted"
        about = {"source": source, "attempts": question.attempts + 1}
        return Verdict(kept={"text": found[0].strip(), "whole": text, **about})
    said = "an empty text" if found and not found[0].strip() else written(found and found[1], asked)
    question.conclusions.append(said)
    if not question.hinted:
        if sampled and question.attempts + 1 < kind.attempts:
            return Verdict(again=question.prompt)
        if question.hint:
            question.hinted = True
            return Verdict(again=question.hint)
    said = ", ".join(question.conclusions)
    gold = written(asked.golds[0], asked) if asked else "unknown"
    return Verdict(dropped=f"the answer is {gold}, and the conclusions were: {said}")


def written(answer: str | None, asked: Asked | None) -> str:
    """An answer in the list of dropped samples: a letter in brackets, or the beginning of another answer."""
    if answer is None or asked is None:
        return "none"
    return f"({answer})" if asked.kind == "letter" else cut(answer, 60)
