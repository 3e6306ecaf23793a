"""The data of the sample browser: every enhanced sample with the teacher's texts, every test question with answers.

A training sample and a test question with the same question are one row. A training sample without choices has its
right answer as `r`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

from teacherlm.catalog.prompts import ANSWER_BEGINS, ANSWER_MARK, LETTERS, split_answer, split_question
from teacherlm.catalog.sample_values import open_answer
from teacherlm.catalog.turns import TURN
from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.limits import PAGE_BYTES, PAGE_SAMPLES
from teacherlm.core.records import Record, read_records
from teacherlm.core.results import GENERATED
from teacherlm.core.shapes import LONG_TEXT
from teacherlm.report.run_folder import RunFolder
from teacherlm.report.scored import Scored, digest_of, read_shaped

Row = dict[str, Any]
Key = tuple[bytes, int]
"""(digest of a question, its occurrence number in a file)."""

EVIDENCE = {"of": str, "flag": str, "test?": int, "sample?": int, "text?": LONG_TEXT}
QUALITY = {"flags?": {str: [str]}, "evidence?": [EVIDENCE]}


class Room:
    """The space that is left on a page, in bytes of JSON as they are written."""

    def __init__(self, size: int):
        self.left = size

    def take(self, value: Any) -> bool:
        """Take the space for a value, and return True, if there is enough space."""
        size = len(storable(embedded(value)).encode()) + 1
        if size > self.left:
            return False
        self.left -= size
        return True


def browse(run: RunFolder) -> dict[str, Any]:
    """The data of the browser as JSON values, which browser.js reads.

    `sources` are the names of the teachers' files. `students` are pairs of models to compare, given as indices in
    `models`. A sample has `id`, `set`, `q` (question), `c` (choices), `g` (gold, an index of a choice, or -1 if
    unknown), `t` (texts: [source, text, flags]), `f` (flags of the question), `e` (evidence) and `a` (index of a model
    -> its choice). `left_out` and `texts_left_out` are the numbers of samples and texts that do not fit on the page.
    """
    rows: dict[Key, Row] = {}
    data: dict[str, Any] = {"sources": [], "models": [], "students": [], "left_out": 0, "texts_left_out": 0}
    room, left_out = Room(PAGE_BYTES), set()
    for kind, file in enhanced_files(run.folder):
        data["sources"].append(f"{file.parent.name}: {kind}")
        source = len(data["sources"]) - 1
        seen: Counter[bytes] = Counter()
        try:
            for (number, record), quality in with_quality(file, kind, run.missing):
                key = nth(record["text"], seen)
                if key not in rows and not add_row(rows, key, new_row("train", number, record["text"]), room):
                    left_out.add(key)
                elif not add_text(rows[key], source, record[kind], quality, kind, room):
                    data["texts_left_out"] += 1
        except UserError as error:
            run.missing.append(f"enhance: {one_line(error)}")
    models = {scored.path: scored for scored in shown_models(run, data)}
    for place, scored in enumerate(models.values()):
        seen = Counter()
        for sample in scored.samples():
            if "choice" not in sample:
                continue
            key = nth(sample["prompt"], seen)
            name = f"{sample.get('task', scored.task)}-{sample['doc_id']}"
            if key not in rows and not add_row(rows, key, new_row("test", name, sample["prompt"]), room):
                left_out.add(key)
                continue
            gold = sample.get("gold")
            rows[key]["g"] = LETTERS.find(gold) if isinstance(gold, str) and len(gold) == 1 else -1
            if room.take({place: sample["choice"]}):
                rows[key]["a"][place] = sample["choice"]
    data["left_out"] = len(left_out)
    return {**data, "samples": with_unique_ids(list(rows.values()))}


def add_row(rows: dict[Key, Row], key: Key, row: Row, room: Room) -> bool:
    """Add a row if there is space for it on the page; return whether there is."""
    if len(rows) >= PAGE_SAMPLES or not room.take(row):
        return False
    rows[key] = row
    return True


def nth(text: str, seen: Counter[bytes]) -> Key:
    """The key of a sample's text or of a test's context. A question that is twice in a file has two keys."""
    question = digest_of(question_key(text))
    seen[question] += 1
    return question, seen[question]


def with_unique_ids(rows: list[Row]) -> list[Row]:
    """Make ids unique. They can be equal, because line numbers differ if a teacher's file lacks records."""
    taken: Counter[str] = Counter()
    for row in rows:
        taken[row["id"]] += 1
        if taken[row["id"]] > 1:
            row["id"] += f"-{taken[row['id']]}"
    return rows


def enhanced_files(folder: Path) -> list[tuple[str, Path]]:
    """(kind of explanation, enhanced file) for each file with a teacher's texts, without the files of shards.

    Mixed files are left out, because their texts are in the files of the teachers.
    """
    files = [file for file in (folder / "enhance").glob("*/*_*.jsonl") if "." not in file.stem]
    texts = [file for file in files if not file.stem.endswith("_quality") and "_scores_" not in file.stem]
    return sorted((kind_of(file), file) for file in texts if not is_mixed(file))


def is_mixed(file: Path) -> bool:
    manifest = manifests.read_manifest(manifests.manifest_of(file))
    return manifest is not None and manifest["stage"] == "mix"


def kind_of(file: Path) -> str:
    """The kind of an enhanced file's texts. Its manifest says it; without one, the end of its name does."""
    manifest = manifests.read_manifest(manifests.manifest_of(file))
    said = (manifest or {}).get("arguments", {}).get("task_type")
    return said.removesuffix("_text") if isinstance(said, str) else file.stem.rpartition("_")[2]


def with_quality(file: Path, kind: str, missing: list[str]) -> Iterator[tuple[tuple[int, Record], Record]]:
    """Each record of an enhanced file with its line number, and its record of quality, or {} if there is none.

    Raises:
        UserError: enhance.py has not written a record.
    """
    quality = quality_of(file, kind)
    said = read_shaped(quality, QUALITY, "line of post-processing", "quality", missing)
    for number, record in read_records(file):
        for name in ("text", kind):
            if not isinstance(record.get(name), str):
                raise UserError(f"{file}, line {number}: the field {name!r} is missing or is not a text")
        yield (number, record), next(said, {})


def quality_of(file: Path, kind: str) -> Path:
    """The file with the quality of a teacher's texts. It is in another folder if other teachers wrote other kinds."""
    own = file.with_name(f"{file.stem.removesuffix(f'_{kind}')}_quality.jsonl")
    for other in [own, *sorted(file.parent.parent.glob(f"*/{escape(own.name)}"))]:
        manifest = manifests.read_manifest(manifests.manifest_of(other))
        path = (manifest or {}).get("inputs", {}).get(kind, {}).get("path")
        if path is not None and Path(path).parts[-2:] == file.parts[-2:]:
            return other
    return own


def question_key(text: str) -> str:
    """A sample's text up to the answer. It is the same for the field `text`, a test's context and a prompt for an
    answer that is written."""
    return split_answer(with_mark(text))[0]


def with_mark(text: str) -> str:
    """A prompt for an answer that is written (`Q: ... A:`) as the context of the answer's letter. Other texts stay."""
    return text.removesuffix(TURN) + ANSWER_MARK if text.endswith(TURN) else text


def new_row(of_set: str, name: int | str, text: str) -> Row:
    text = with_mark(text)
    question, choices = split_question(text)
    _, mark, after = split_answer(text)
    is_open = mark == ANSWER_BEGINS
    return {
        "id": f"{of_set}-{name}",
        "set": of_set,
        "q": question,
        "c": choices,
        "g": LETTERS.find(after[0]) if after and not is_open else -1,
        "t": [],
        "f": [],
        "e": [],
        "a": {},
        **({"r": open_answer(after)} if is_open and after else {}),
    }


def add_text(row: Row, source: int, text: str, quality: Record, kind: str, room: Room) -> bool:
    """Add a teacher's text and its quality if there is space for them on the page; return whether there is."""
    flags = quality.get("flags", {})
    of_text, of_question = [source, text, flags.get(kind, [])], flags.get("question", [])
    evidence = quality.get("evidence", [])[:MOST_EVIDENCE] if not row["e"] else []  # it is the same for every kind
    if not room.take([of_text, of_question, evidence]):
        return False
    row["t"].append(of_text)
    row["f"] = of_question
    row["e"] += evidence
    return True


MOST_EVIDENCE = 100
"""Maximum number of pieces of evidence that are shown for a sample."""


def shown_models(run: RunFolder, data: dict[str, Any]) -> list[Scored]:
    """The untrained student and the last checkpoint of each run and task. Sets `models` and `students` of the data."""
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
    data["models"] = [f"{one.name}{', written' if one.task.endswith(GENERATED) else ''}" for one in shown]
    return shown


def embedded(data: Any) -> str:
    """JSON for a `<script>` element: no part of it ends the element or begins a comment."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def storable(text: str) -> str:
    """The text, with halves of surrogate pairs (from names that are not UTF-8) written as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def embedded_in_pieces(data: dict[str, Any]) -> Iterator[str]:
    """The text of `embedded`, sample by sample, because the whole text would be in memory several times."""
    head = embedded({name: value for name, value in data.items() if name != "samples"})
    yield f'{head[:-1]},"samples":['
    for number, sample in enumerate(data["samples"]):
        yield ("," if number else "") + embedded(sample)
    yield "]}"
