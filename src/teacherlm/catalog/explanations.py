"""Several explanations of a sample: the texts in an enhanced record, the settings of EXPLANATIONS, and where a text's
score is measured.

An enhanced record has the texts of the kind `cot` in the list `cot_completions` if the teacher wrote several of them.
An item of the list is a text, or an object with the field `text`.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherlm.catalog.prompts import ANSWER_BEGINS, LETTERS, full_stop, split_answer
from teacherlm.core.errors import UserError

if TYPE_CHECKING:  # the chain imports this module, also in a Python without packages
    from teacherlm.catalog.prompt_sets import PromptSet
    from teacherlm.core.records import Record

SETTINGS = ("first", "all", "best", "each_epoch")
OF_A_TEXT = ("ended", "thinking", "source", "attempts", "top_logprobs")
"""Fields `KIND_...` of a record that belong to one text."""


@dataclass(frozen=True)
class Explanations:
    """Which of a sample's texts a dataset has.

    Attributes:
        setting: `first`: the first text; `all` and `each_epoch`: a row per text; `best`: the text with the highest
            score.
        scorer: the name of the model whose scores `best` reads.
    """

    setting: str = "first"
    scorer: str = ""

    @property
    def label(self) -> str:
        """The ending of the dataset's name, which no other setting has."""
        return "" if self.setting == "first" else f"_{self.setting}" + (f"_{self.scorer}" if self.scorer else "")

    @property
    def has_every_text(self) -> bool:
        return self.setting in ("all", "each_epoch")


FIRST = Explanations()


def scores_file(enhanced: Path, scorer: str) -> Path:
    """The file with the scores of an enhanced file's texts: CREAK_cot.jsonl -> CREAK_cot_scores_SCORER.jsonl."""
    return enhanced.with_name(f"{enhanced.stem}_scores_{scorer}.jsonl")


def texts_of(record: "Record", kind: str, where: str) -> list[dict[str, Any]]:
    """The texts of a record, each as an object with the field `text`.

    Raises:
        UserError: the list of texts has another form.
    """
    listed = record.get(f"{kind}_completions")
    if listed is None:
        listed = [record.get(kind)]
    found = [{"text": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else []
    if not found or not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in found):
        raise UserError(
            f"{where}: the field {kind!r} is not a text, or {f'{kind}_completions'!r} is not a list of texts; "
            "enhance.py did not write this file"
        )
    return found


def with_text(record: "Record", kind: str, texts: list[dict[str, Any]], index: int) -> "Record":
    """A record with one of its texts in the field KIND, and without the list of texts."""
    made = {name: value for name, value in record.items() if name != f"{kind}_completions"}
    if index:
        text = texts[index]
        for suffix in OF_A_TEXT:
            made.pop(f"{kind}_{suffix}", None)
            if suffix in text and text[suffix] != "stop":  # `ended` is only in records whose text did not stop
                made[f"{kind}_{suffix}"] = text[suffix]
        made |= {kind: text["text"], "all": f"{record.get(f'{kind}_text')}{text['text']}"}
    return made


def split_at_answer(prompts: "PromptSet", record: "Record", kind: str, text: str, where: str) -> tuple[str, str]:
    """The field KIND_first of a text, up to the right answer, and the right answer: `... The answer is (` and `B`.

    The answer begins where the field changes when another answer is the right one. The answer to an open question is
    ` 72`, with the space before it.

    Raises:
        UserError: the sample has no right answer, or the field has no answer.
    """

    from teacherlm.catalog.sample_values import values_of_text

    def field(of: "Record") -> str:
        values = {**values_of_text(of), "prompt": of[f"{kind}_text"], "explanation": text}
        return prompts.cleaned(prompts.render(f"{kind} first", values, where))

    right, other = field(record), field(with_other_answer(record, kind, where))
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(right, other)))
    known = values_of_text(record)
    if "letter" in known:
        while start and right[start - 1].isalnum():
            start -= 1
        answer = re.match(r"\w+", right[start:])
    else:
        start -= right[:start].endswith(" ")
        answer = re.match(rf" ?{re.escape(known['answer'])}", right[start:])
    if answer is None or right == other:
        raise UserError(
            f"{where}: the template {kind} first of {prompts.path.name} has no answer after the explanation"
        )
    return right[:start], answer[0]


def with_other_answer(record: "Record", kind: str, where: str) -> "Record":
    """A record in which another answer is the right one: another choice, or a text that begins otherwise."""
    from teacherlm.catalog.sample_values import ASKED, is_asked, values_of_text

    before, mark, after = split_answer(record["text"])
    if not after or (mark != ANSWER_BEGINS and after[0] not in LETTERS):
        raise UserError(f"{where}: the field 'text' has no right answer; enhance.py did not write this file")
    known, more = values_of_text(record), {}
    if "letter" not in known:
        answer = "no" if known["answer"].startswith("y") else "yes"
        changed = f"{before}{mark} {full_stop(answer)}"
        more = {ASKED: {**record[ASKED], "answers": [answer]}} if is_asked(record.get(ASKED)) else {}
    else:
        others = [letter for letter in LETTERS[: max(2, len(known["choices"]))] if letter != after[0]]
        changed = f"{before}{mark}{others[0]}{after[1:]}"
    return {**record, **more, "text": changed, f"{kind}_text": record[f"{kind}_text"].replace(record["text"], changed)}
