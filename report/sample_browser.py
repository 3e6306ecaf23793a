"""What the sample browser shows: every enhanced sample with the teacher's texts, every test question with the answers.

A training sample and a test question are the same row when they are the same question.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from run_folder import RunFolder, Scored

from teacherlm.errors import UserError, one_line
from teacherlm.prompts import ANSWER_MARK, KINDS, LETTERS, take_apart
from teacherlm.records import Record, read_records

MOST_SAMPLES, MOST_LETTERS = 20_000, 64_000_000
"""A page holds at most so many samples, and stops after so much text: browsers read no more at once."""

Row = dict[str, Any]
Key = tuple[str, int]
"""(question, the how manieth of the same file)."""


def browse(run: RunFolder) -> dict[str, Any]:
    """The browser's data, JSON values: what browser.js reads.

    `sources` names the teachers' files; `students` are the pairs of models to be compared, by their places in `models`;
    a sample has `id`, `set`, `q` (question), `c` (choices), `g` (gold: index of the choice, -1: unknown), `t` (texts:
    [source, text, flags]), `f` (flags of the question), `e` (evidence) and `a` (choices by the model's place).
    """
    rows: dict[Key, Row] = {}
    data = {"sources": [], "models": [], "students": [], "left_out": 0}
    letters = 0
    for file in enhanced_files(run.folder):
        data["sources"].append(f"{file.parent.name}: {kind_of(file)}")
        source = len(data["sources"]) - 1
        seen: Counter[str] = Counter()
        try:
            for (number, record), quality in with_quality(file):
                key = nth(question_key(record["text"]), seen)
                if key not in rows and is_full(rows, letters):
                    data["left_out"] += 1
                    continue
                row = rows.setdefault(key, new_row("train", number, record["text"]))
                letters += len(record[kind_of(file)])
                add_text(row, source, record[kind_of(file)], quality, kind_of(file))
        except UserError as error:
            run.missing.append(f"enhance: {one_line(error)}")
    models = {scored.path: scored for scored in shown_models(run, data)}
    for place, scored in enumerate(models.values()):
        seen = Counter()
        for sample in scored.samples:
            if "choice" not in sample:
                continue
            key = nth(question_key(sample["prompt"]), seen)
            if key not in rows and is_full(rows, letters):
                data["left_out"] += place == 0
                continue
            task = sample.get("task", scored.task)
            row = rows.setdefault(key, new_row("test", f"{task}-{sample['doc_id']}", sample["prompt"]))
            letters += len(row["q"]) if not row["a"] else 0
            row["g"] = LETTERS.find(sample["gold"]) if len(sample["gold"]) == 1 else -1
            row["a"][place] = sample["choice"]
    return {**data, "samples": with_unique_ids(list(rows.values()))}


def nth(question: str, seen: Counter[str]) -> Key:
    """A question that a file has twice is two rows."""
    seen[question] += 1
    return question, seen[question]


def with_unique_ids(rows: list[Row]) -> list[Row]:
    """A teacher's file that lacks records counts its lines otherwise than another's."""
    taken: Counter[str] = Counter()
    for row in rows:
        taken[row["id"]] += 1
        if taken[row["id"]] > 1:
            row["id"] += f"-{taken[row['id']]}"
    return rows


def is_full(rows: dict[Key, Row], letters: int) -> bool:
    return len(rows) >= MOST_SAMPLES or letters >= MOST_LETTERS


def enhanced_files(folder: Path) -> list[Path]:
    found = [path for kind in KINDS.values() for path in sorted((folder / "enhance").glob(f"*/*_{kind}.jsonl"))]
    return [path for path in found if not path.name.startswith(".")]


def kind_of(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def with_quality(file: Path) -> Any:
    """Each record of an enhanced file, with what post-processing said of its quality ({} where it has not)."""
    quality = file.with_name(f"{file.stem.rpartition('_')[0]}_quality.jsonl")
    said = (record for _, record in read_records(quality)) if quality.is_file() else iter(())
    for placed in read_records(file):
        yield placed, next(said, {})


def question_key(text: str) -> str:
    """A sample's text up to where the answer begins: the same for `text` and for a test's context."""
    before, mark, _ = text.rpartition(ANSWER_MARK)
    return before if mark else text


def new_row(of_set: str, name: int | str, text: str) -> Row:
    question, choices = take_apart(text)
    letter = text.rpartition(ANSWER_MARK)[2][:1]
    gold = LETTERS.find(letter) if letter else -1
    return {
        "id": f"{of_set}-{name}",
        "set": of_set,
        "q": question,
        "c": choices,
        "g": gold,
        "t": [],
        "f": [],
        "e": [],
        "a": {},
    }


def add_text(row: Row, source: int, text: str, quality: Record, kind: str) -> None:
    flags = quality.get("flags", {})
    row["t"].append([source, text, flags.get(kind, [])])
    row["f"] = flags.get("question", [])
    row["e"] += [said for said in quality.get("evidence", []) if said not in row["e"]]


def shown_models(run: RunFolder, data: dict[str, Any]) -> list[Scored]:
    """The untrained and the last checkpoint of each run and task; `models` and `students` of the data name them."""
    shown: list[Scored] = []
    for one in run.runs:
        for task in dict.fromkeys(scored.task for scored in one.checkpoints):
            after = [scored for scored in one.checkpoints if scored.task == task][-1]
            before = next((scored for scored in one.scored if not scored.step and scored.task == task), None)
            pair = [scored for scored in (before, after) if scored]
            shown += [scored for scored in pair if scored not in shown]
            places = [shown.index(scored) for scored in pair]
            name = f"{one.name}, {task}" if len(run.tasks) > 1 else one.name
            data["students"].append({"name": name, "before": places[0] if before else -1, "after": places[-1]})
    alone = [scored for scored in run.untrained if scored not in shown]
    for scored in alone:
        shown.append(scored)
        data["students"].append({"name": f"{scored.name}, {scored.task}", "before": len(shown) - 1, "after": -1})
    data["models"] = [scored.name for scored in shown]
    return shown


def embedded(data: Any) -> str:
    """JSON that can stand in a `<script>` element: nothing in it ends the element or begins a comment."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
