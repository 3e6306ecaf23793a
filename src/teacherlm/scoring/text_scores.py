"""Score the teacher's texts: how likely a model finds the right answer after each of them.

The score of a text is the log-likelihood of the right answer (its letter, or all of an answer without choices) in the
field KIND_first, which has the question, the text and then the answer. Context and answer are tokenized jointly, as in
the training of students.

It writes CREAK_cot_scores_MODEL.jsonl with a line per record: {"scores": [-0.31, -0.12]}. `--explanations best` of
data_prepare.py reads it. After an interruption the same command continues the work.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from teacherlm.catalog.explanations import scores_file, split_at_answer, texts_of
from teacherlm.catalog.models import Model, describe_model, find_model, local_folder
from teacherlm.catalog.prompt_sets import DEFAULT, PromptSet, load_prompts
from teacherlm.catalog.sample_values import are_open
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.progress_file import ProgressFile
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.scoring.flags import DTYPES, read_batch_size

RECORDS = 256
"""Number of records whose texts are scored together. Their scores are then written to disk."""


@dataclass(frozen=True)
class ScoreFlags:
    """Which texts are scored, and by which model."""

    name: str = flag(help="the model that scores: a name in models/, a folder, or a hub id")
    input: Path = flag(help="the enhanced file, for example CREAK_cot.jsonl")
    kind: str = flag(help="the kind of its texts, for example cot")
    prompts: str = flag(DEFAULT, help="name of a YAML in prompts/, or its path (default: teacherlm)")
    output: Path | None = flag(
        None, help="the file for the scores (default: INPUT_scores_MODEL.jsonl beside the input)"
    )
    batch_size: int | None = flag(
        None, parse=read_batch_size, help="maximum number of texts per batch (default: auto, chosen for the device)"
    )
    device: str | None = flag(None, help="cpu, cuda, or the number of a GPU (default: a GPU if there is one)")
    dtype: str = flag("float32", choices=DTYPES, help="data type of the weights (default: float32)")
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(
        ScoreFlags, __doc__, example="teacherlm score-texts --name smollm2-135m --input CREAK_cot.jsonl --kind cot"
    )
    prompts, model = load_prompts(flags.prompts), find_model(flags.name)
    if flags.kind not in prompts.kinds:
        raise UserError(f"--kind: one of {', '.join(prompts.kinds)} was expected, found {flags.kind!r}")
    output = flags.output or scores_file(flags.input, model.name)
    if output.resolve() == flags.input.resolve():
        raise UserError(f"--output: {output} is the input; give another file")
    run = StageRun("score_texts", output, label="score-texts")
    if flags.list_missing:
        if not flags.input.is_file():
            print(0)
            return
        compare(run, flags, prompts, model)
        print("" if run.is_done else "0")
        return
    if not flags.input.is_file():
        raise UserError(f"{flags.input}: no such file; enhance.py writes it")
    require_writable(output.parent)
    require_file_place(output)
    with run:
        compare(run, flags, prompts, model)
        if run.is_done:
            run.say_done()
            return
        run.say_again()
        if output.exists() and run.manifest is not None and run.manifest["stage"] != "score_texts":
            print(f"score-texts: {output} is there already; it is kept as {set_aside(output)}")
        score(run, flags, prompts, local_folder(model))


def compare(run: StageRun, flags: ScoreFlags, prompts: PromptSet, model: Model) -> None:
    inputs = {
        "texts": manifests.describe(flags.input, run.known.get("texts")),
        "model": describe_model(local_folder(model), run.known.get("model")),
        "prompts": prompts.digest(are_open(flags.input)),
    }
    run.compare({"kind": flags.kind, "dtype": flags.dtype}, inputs)


def score(run: StageRun, flags: ScoreFlags, prompts: PromptSet, folder: Path) -> None:
    """Score the records that have no scores yet, and write the scores of all in the order of the input."""
    from teacherlm.scoring.language_model import LanguageModel

    progress = ProgressFile(
        run.output.with_name(f".{run.output.name}.progress"),
        {**run.work, "version": manifests.stage_version("score_texts")},
        restart=True,
    )
    digest = run.inputs["model"]["sha256"]
    model = LanguageModel(folder, flags.device, flags.dtype, "joint", flags.batch_size, digest)
    missing = (found for found in numbered(flags.input) if found[0] not in progress)
    count = texts = 0
    while part := list(itertools.islice(missing, RECORDS)):
        asked = [asked_of(prompts, record, flags.kind, f"{flags.input}, line {line}") for _, line, record in part]
        requests = [SimpleNamespace(args=pair) for pairs in asked for pair in pairs]
        found = iter(model.loglikelihood(requests))
        for (index, line, _), pairs in zip(part, asked):
            scores = [float(next(found)[0]) for _ in pairs]
            if not all(map(math.isfinite, scores)):
                raise UserError(f"{flags.input}, line {line}: the score of a text is not finite; try another --dtype")
            progress.append(index, {"scores": scores})
        print(f"score-texts: {len(progress)} records", flush=True)
    if model.truncated:
        print(f"score-texts: {plural(model.truncated, 'text')} had too many tokens, and lost some on the left")
    progress.close()

    def lines() -> Iterator[Record]:
        nonlocal texts
        for index, _, _ in numbered(flags.input):
            piece = progress.read(index)
            texts += len(piece["scores"])
            yield piece

    run.compare_again()
    count = write_records(run.output, lines())
    run.finish({"scores": run.output}, {"records": count, "texts": texts, "seconds": run.seconds})
    progress.remove()
    print(f"score-texts: {run.output} has the scores of {plural(texts, 'text')} of {plural(count, 'record')}")


def numbered(path: Path) -> Iterator[tuple[int, int, Record]]:
    """(index from 0, line, record) for each record."""
    for index, (line, record) in enumerate(read_records(path)):
        yield index, line, record


def asked_of(prompts: PromptSet, record: Record, kind: str, where: str) -> list[tuple[str, str]]:
    """For each text of a record: (what precedes the right answer, the right answer).

    Raises:
        UserError: enhance.py did not write this record.
    """
    for needed in ("text", f"{kind}_text"):
        if not isinstance(record.get(needed), str):
            raise UserError(
                f"{where}: the field {needed!r} is missing or is not a text; enhance.py did not write this file"
            )
    texts: list[dict[str, Any]] = texts_of(record, kind, where)
    return [split_at_answer(prompts, record, kind, text["text"], where) for text in texts]
