"""Let a language model judge the teacher's texts, for `--explanations best`.

It takes three commands. This program writes a question per text (CREAK_cot_judge.jsonl). enhance.py lets any model
answer the questions, with all its engines, as it lets a teacher explain. Then this program, with --judged, reads the
ratings and writes CREAK_cot_scores_NAME.jsonl with a line per record: {"scores": [7.0, 3.0]}. What the judge is asked
is data: prompts/judge.yaml, or another file with a kind `judge`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from teacherlm.catalog.explanations import scores_file, texts_of
from teacherlm.catalog.prompt_sets import NUMBERS, PromptSet, load_prompts
from teacherlm.catalog.prompts import split_answer
from teacherlm.catalog.sample_values import ASKED, are_open, values_of_text
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.flags import flag, parse
from teacherlm.core.names import plain_name
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural

JUDGE = "judge"
"""The kind of the prompt, and the name of the default prompts."""
UNREADABLE = -1e9
"""The score of a text without a rating that can be read. It is below every rating."""
NUMBER = r"([-+]?(?:\d{1,9}(?:\.\d{1,9})?|\.\d{1,9}))(?![\d.]*\d)"
RATING = re.compile(
    r"\brating\b[\s*_]*(?:[(\[][^)\]\n]{0,40}[)\]])?[\s*_]*(?:[:=]|is\b|of\b)?[\s*_$(\[]*(?:\\boxed\{)?" + NUMBER,
    re.IGNORECASE,
)
ALONE = re.compile(rf"[\s*_(\[]*{NUMBER}[\s*_)\]]*(?:(?:/|out of)\s*\d+[^\n\d]*)?[\s.*_!]*")


@dataclass(frozen=True)
class JudgeFlags:
    """Which texts are judged."""

    input: Path = flag(help="the enhanced file, for example CREAK_cot.jsonl")
    kind: str = flag(help="the kind of its texts, for example cot")
    prompts: str = flag(JUDGE, help="name of a YAML in prompts/ with a kind `judge`, or its path (default: judge)")
    judged: Path | None = flag(
        None, help="the judge's answers, which enhance.py wrote; then the scores are written, else the questions"
    )
    scorer: str = flag("", help="with --judged: the judge's name, which data_prepare.py --scorer takes")


def main() -> None:
    flags = parse(
        JudgeFlags,
        __doc__,
        example="teacherlm judge --input CREAK_cot.jsonl --kind cot --judged CREAK_cot_judged.jsonl --scorer MODEL",
    )
    if bool(flags.judged) != bool(flags.scorer):
        raise UserError("--judged and --scorer belong together: give both, or neither to write the questions")
    prompts = load_prompts(flags.prompts)
    if JUDGE not in prompts.kinds:
        raise UserError(f"--prompts: {prompts.path} has no kind {JUDGE!r}")
    for file in (flags.input, *([flags.judged] if flags.judged else [])):
        if not file.is_file():
            raise UserError(f"{file}: no such file; enhance.py writes it")
    if flags.judged:
        write_scores(flags, flags.judged, plain_name(flags.scorer, "--scorer"))
    else:
        write_questions(flags, prompts)


def write_questions(flags: JudgeFlags, prompts: PromptSet) -> None:
    output = flags.input.with_name(f"{flags.input.stem}_{JUDGE}.jsonl")
    require_writable(output.parent)
    require_file_place(output)
    with StageRun("judge", output) as run:
        inputs = {
            "texts": manifests.describe(flags.input, run.known.get("texts")),
            "prompts": prompts.digest(are_open(flags.input)),
        }
        run.compare({"kind": flags.kind}, inputs)
        if run.is_done:
            run.say_done()
            return
        run.say_again()
        keep_others(run)
        count = write_records(output, questions(flags, prompts))
        run.finish({"questions": output}, {"texts": count})
        print(f"judge: {output} has {plural(count, 'text')}; let a model answer them with enhance.py:")
        print(f"  --input {output} --task_type {JUDGE}_text --prompts {flags.prompts} --temperature 0")


def questions(flags: JudgeFlags, prompts: PromptSet) -> Iterator[Record]:
    """A record per text: the question that the judge is asked, and which text it is about."""
    for number, (line, record) in enumerate(read_records(flags.input), 1):
        where = f"{flags.input}, line {line}"
        for needed in ("text", f"{flags.kind}_text"):
            if not isinstance(record.get(needed), str):
                raise UserError(f"{where}: the field {needed!r} is not a text; enhance.py did not write this file")
        if not split_answer(record["text"])[1]:
            raise UserError(f"{where}: the field 'text' has no right answer")
        for index, text in enumerate(texts_of(record, flags.kind, where), 1):
            about = {**dict(zip(NUMBERS, (number, index))), "text": record["text"], "explanation": text["text"]}
            about |= {ASKED: record[ASKED]} if ASKED in record else {}
            values = values_of_text({**record, **about})
            yield {**about, f"{JUDGE}_text": prompts.cleaned(prompts.render(f"{JUDGE} prompt", values, where))}


def keep_others(run: StageRun) -> None:
    """Rename a file at the output's place that this program did not make."""
    if run.output.exists() and (run.manifest is None or run.manifest["stage"] != "judge"):
        print(f"judge: {run.output} is there already; it is kept as {set_aside(run.output)}")


def rating(text: str) -> float | None:
    """The last rating in an answer: `Rating: 7`, or a number alone (`7`, `7/10`). None if there is none."""
    found = [match[1] for match in RATING.finditer(text)]
    alone = ALONE.fullmatch(text)
    return float(found[-1]) if found else float(alone[1]) if alone else None


def write_scores(flags: JudgeFlags, judged: Path, scorer: str) -> None:
    output = scores_file(flags.input, scorer)
    require_writable(output.parent)
    require_file_place(output)
    with StageRun("judge", output) as run:
        places = {"texts": flags.input, "judged": judged}
        run.compare(
            {"kind": flags.kind}, {name: manifests.describe(path, run.known.get(name)) for name, path in places.items()}
        )
        if run.is_done:
            run.say_done()
            return
        run.say_again()
        keep_others(run)
        counts: Counter[str] = Counter()
        count = write_records(output, scores(flags, judged, counts))
        run.finish({"scores": output}, {"records": count, "texts": counts["texts"], "unreadable": counts["unreadable"]})
        print(
            f"judge: {output} has the scores of {plural(counts['texts'], 'text')} of {plural(count, 'record')}; "
            f"{counts['unreadable']} without a rating that can be read have the score {UNREADABLE:g}"
        )


def scores(flags: JudgeFlags, judged: Path, counts: Counter[str]) -> Iterator[Record]:
    """A line per record of the enhanced file. The judge's answers are in the same order, without those that failed.

    Raises:
        UserError: an answer is about another text.
    """
    answers = read_records(judged)
    line, answer = next(answers, (0, None))
    for number, (place, record) in enumerate(read_records(flags.input), 1):
        found = []
        for index, text in enumerate(texts_of(record, flags.kind, f"{flags.input}, line {place}"), 1):
            said = None
            if answer is not None and [answer.get(name) for name in NUMBERS] == [number, index]:
                same = (answer.get("explanation"), answer.get("text")) == (text["text"], record.get("text"))
                if not same or not isinstance(answer.get(JUDGE), str):
                    break
                said = rating(answer[JUDGE])
                line, answer = next(answers, (line, None))
            counts["texts"] += 1
            counts["unreadable"] += said is None
            found.append(UNREADABLE if said is None else said)
        else:
            yield {"scores": found}
            continue
        break
    if answer is not None:
        raise UserError(
            f"{judged}, line {line}: this is no answer about the text that {flags.input} has at this place; write the "
            "questions again, and let the judge answer them"
        )
    if counts["texts"] and counts["unreadable"] == counts["texts"]:
        raise UserError(
            f"{judged}: no answer has a rating that can be read, such as `Rating: 7`; look at its field {JUDGE!r}, and "
            "give the judge more tokens (--num_tokens) or another prompt"
        )
