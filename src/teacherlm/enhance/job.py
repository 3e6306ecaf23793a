"""One kind of explanation for one shard: its files, whether it is done, and how its output is written."""

import dataclasses
import filecmp
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from teacherlm.catalog.models import Model, describe_model, local_folder
from teacherlm.catalog.prompts import KINDS
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.outputs import require_file_place
from teacherlm.core.progress_file import ProgressFile
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.core.stage_run import StageRun
from teacherlm.enhance.chat import conversation, is_chat
from teacherlm.enhance.engines import Completion, Message, asked_text
from teacherlm.enhance.flags import EnhanceFlags

Shard = tuple[int, int]
"""(I, N): every Nth record, beginning with record I, counted from 0. (0, 1) means all records."""


def shard_records(path: Path, shard: Shard) -> Iterator[tuple[int, int, Record]]:
    """Yield (index of the record from 0, its line from 1, the record) for each record of a shard."""
    first, step = shard
    for index, (line, record) in enumerate(read_records(path)):
        if index % step == first:
            yield index, line, record


def shard_path(output: Path, shard: Shard) -> Path:
    """The file of a shard: NAME.shard-I-of-N.jsonl, or the output itself if there is only one shard."""
    index, count = shard
    return output if count == 1 else output.with_name(f"{output.stem}.shard-{index}-of-{count}{output.suffix}")


def prompt_digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def settings(flags: EnhanceFlags, field: str) -> dict[str, Any]:
    """The settings that the texts of a job depend on, apart from records and teacher. Batch size and engine do not
    matter."""
    return {
        "task_type": field,
        "num_completions": flags.num_completions,
        "num_tokens": flags.num_tokens,
        "temperature": flags.temperature,
        "top_p": flags.top_p,
        "stop": list(flags.stop),
        "seed": flags.seed,
        "dtype": flags.dtype,
        "shard": list(flags.shard),
    }


MADE = {
    "arguments": dict,
    "inputs": {"records": dict},
    "outputs": {"enhanced": dict},
    "counts": {"records": int, "failures": int},
}
"""The fields of this stage's manifests that it reads."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest, or None if there is none, or if it is from this stage and lacks required fields."""
    manifest = manifests.read_manifest(path)
    is_enhance = manifest is not None and manifest["stage"] == "enhance"
    return None if is_enhance and flaw_of_shape(manifest, MADE) else manifest


def make_jobs(flags: EnhanceFlags, teacher: Model) -> list["Job"]:
    jobs = []
    for field in flags.task_type:
        output = shard_path(Path(flags.output.replace("{kind}", KINDS[field])), flags.shard)
        if output.suffix not in (".jsonl", ".json"):
            raise UserError(f"--output: a name that ends with .jsonl was expected, found {output}")
        require_file_place(output)
        if output.resolve() == flags.input.resolve():
            raise UserError(f"--output: {output} is the input; give another file")
        chat = flags.chat or teacher.chat
        jobs.append(Job(field, output, flags.input, flags.shard, settings(flags, field), teacher, flags.restart, chat))
    return jobs


@dataclass
class Job:
    """The texts of one kind for the records of one shard.

    Attributes:
        field: the prompt field (`cot_text`).
        output: the file for the enhanced records.
        arguments: the result of `settings`.
        restart: whether an output with other settings is kept under another name; otherwise the job is refused.
        chat: whether the teacher gets conversations; see `is_chat`.
        ended: how many of the written texts ended why; "unknown" for texts of versions that did not keep it.
    """

    field: str
    output: Path
    input: Path
    shard: Shard
    arguments: dict[str, Any]
    teacher: Model
    restart: bool
    chat: str
    ended: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def kind(self) -> str:
        return KINDS[self.field]

    @property
    def completions(self) -> int:
        count: int = self.arguments["num_completions"]
        return count

    @property
    def failures_path(self) -> Path:
        return self.output.with_suffix(".failures.jsonl")

    @property
    def progress_path(self) -> Path:
        return self.output.with_name(f".{self.output.name}.progress")

    @cached_property
    def run(self) -> StageRun:
        return StageRun("enhance", self.output, read=read_manifest)

    @cached_property
    def is_chat(self) -> bool:
        """Whether the teacher gets its prompts as conversations."""
        return is_chat(self.chat, self.teacher)

    def messages(self, prompt: str) -> tuple[Message, ...]:
        """The conversation that a chat teacher gets in place of a prompt; none for other teachers."""
        return conversation(prompt) if self.is_chat else ()

    def compare(self) -> None:
        """Compare the existing output with this job: the arguments, and the current records and teacher."""
        known = self.run.known
        name = self.teacher.server or self.teacher.explanations
        if name:
            name += f" {self.teacher.served}" if self.teacher.served else ""
            teacher = {"path": name, "sha256": name}
        else:
            teacher = describe_model(local_folder(self.teacher), known.get("teacher"))
        inputs = {"records": manifests.describe(self.input, known.get("records")), "teacher": teacher}
        self.run.compare(self.arguments | ({"chat": True} if self.is_chat else {}), inputs)

    def is_missing(self) -> bool:
        """Whether the command has something to do. Failed records count, because another attempt may succeed."""
        self.compare()
        return not self.run.is_done or bool(self.run.counts["failures"])

    def is_done(self) -> bool:
        """Whether this job has made its output without failures. Prints the state.

        Raises:
            UserError: the output has other settings or no manifest, and restart is not set.
        """
        if not self.input.is_file():
            raise UserError(f"{self.input}: no such file; data_prepare.py writes it")
        self.compare()
        run = self.run
        if run.is_done:
            failures = run.counts["failures"]
            if failures:
                print(f"enhance: {self.output}: trying the {failures} records without a text again")
                return False
            run.say_done()
            return True
        unfinished = run.manifest is None and self.progress_path.exists()  # killed before the manifest was written
        if self.output.exists() and not self.restart and not unfinished:
            why = "; ".join(run.reasons) if run.manifest else "without a manifest"
            raise UserError(
                f"{self.output} is there already ({why}); move it away, or pass --restart, which renames it"
            )
        run.say_again()
        return False

    @cached_property
    def progress(self) -> ProgressFile:
        work = {**self.run.work, "version": manifests.stage_version("enhance")}
        return ProgressFile(self.progress_path, work, self.restart)

    def missing(self, index: int) -> Iterator[int]:
        """Numbers of the completions that a record still needs."""
        return (n for n in range(self.completions) if index * self.completions + n not in self.progress)

    def keep(self, completion: Completion) -> None:
        """Write a completion to disk, with the digest of its prompt."""
        prompt = completion.prompt
        piece = {"text": completion.text, "tokens": completion.new_tokens, "prompt": prompt_digest(prompt.asked)}
        piece |= {"ended": completion.ended}
        piece |= {"thinking": completion.thinking} if completion.thinking else {}
        self.progress.append(prompt.index * self.completions + prompt.number, piece)

    def pieces(self, index: int, line: int, prompt: str) -> list[dict[str, Any]]:
        """The completions of a record, each as an object: its text, its number of tokens, why it ended, what the
        teacher thought.

        Raises:
            UserError: a completion belongs to a different prompt than the record has now.
        """
        pieces = [self.progress.read(index * self.completions + number) for number in range(self.completions)]
        digest = prompt_digest(asked_text(prompt, self.messages(prompt)))
        if any(piece.pop("prompt") != digest for piece in pieces):
            raise UserError(
                f"{self.input}, line {line}: the field {self.field!r} is not the prompt that the teacher completed; "
                "the file was changed during the run; run the same command again with --restart"
            )
        return pieces

    def finish(self, failures: set[int], counts: dict[str, Any]) -> None:
        """Write the output without the failed records, and the manifest.

        Args:
            failures: the indices of the failed records.
            counts: further counts for the manifest.
        """
        self.run.compare_again()
        old = None if self.run.is_done else set_aside(self.output)
        self.progress.close()
        written = write_records(self.output, self.enhanced(failures))
        if old and filecmp.cmp(old, self.output, shallow=False):  # the same job was killed before its manifest
            old.unlink()
        elif old:
            print(f"enhance: the former {self.output} is kept as {old}")
        counts = {"records": written, "failures": len(failures), "ended": dict(sorted(self.ended.items())), **counts}
        counts["seconds"] = self.run.seconds
        self.run.finish({"enhanced": self.output}, counts)
        if not failures:
            self.progress.remove()
        print(f"enhance: {self.output} has {written} records" + (f", {len(failures)} failed" if failures else ""))

    def write_failures(self, failures: list[tuple[int, int, str]]) -> None:
        """List the records without a text in a file beside the output: {"record", "line", "reason"}.

        If there are none, the file is removed.
        """
        if failures:
            rows = ({"record": index, "line": line, "reason": reason} for index, line, reason in failures)
            write_records(self.failures_path, rows)
        else:
            self.failures_path.unlink(missing_ok=True)

    def enhanced(self, failures: set[int]) -> Iterator[Record]:
        """The shard's records with the teacher's texts, in the order of the input, without the failed records."""
        for index, line, record in shard_records(self.input, self.shard):
            if index not in failures:
                pieces = self.pieces(index, line, record[self.field])
                self.ended.update(piece.get("ended", "unknown") for piece in pieces)
                yield {**record, **added_fields(self.kind, record[self.field], pieces)}


def added_fields(kind: str, prompt: str, pieces: list[dict[str, Any]]) -> Record:
    """The fields that a record gets: the first completion, and all completions if there are several."""
    first = pieces[0]
    added = {kind: first["text"], "all": prompt + first["text"]}
    if first.get("ended", "stop") != "stop":
        added[f"{kind}_ended"] = first["ended"]
    if "thinking" in first:
        added[f"{kind}_thinking"] = first["thinking"]
    return added | ({f"{kind}_completions": pieces} if len(pieces) > 1 else {})
