"""One kind of explanation for one shard: its files, whether it is done, and how its output is written."""

import dataclasses
import filecmp
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from teacherlm.catalog.explanations import OF_A_TEXT
from teacherlm.catalog.models import GGUF, Model, describe_model, local_folder
from teacherlm.catalog.prompt_sets import Kind, PromptSet, load_prompts
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.outputs import require_file_place
from teacherlm.core.progress_file import ProgressFile, work_in
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.enhance.chat import conversation, is_chat, plain_prompt
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.runtime.generation import Message, asked_text

TRANSFORMERS, VLLM, SERVE = "transformers", "vllm", "serve"
OF_THEIR_TEACHERS = (TRANSFORMERS, "openai", "field", "auto")
"""Engines that are not recorded: the default, those that the teacher's name chooses, and the one that is not chosen
yet. Texts of any other engine have its name in their manifest, because they differ from those of transformers."""
NO_ENGINE = re.compile("(?<=^engine was )None|(?<=, is )None(?=$)")
"""No engine in the arguments of a manifest stands for transformers."""
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
    """The settings that the texts of a job depend on, apart from records, teacher and engine. The batch size does not
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
        **({"top_logprobs": flags.top_logprobs} if flags.top_logprobs else {}),
    }


def of_kind(kind: Kind) -> dict[str, Any]:
    """The settings of a kind of explanation that are not in the records: what a teacher sees before a prompt, and how
    often it is asked. They are empty for a kind that only has a prompt."""
    described = dataclasses.asdict(kind)
    found = {name: described[name] for name in ("system", "examples") if described[name]}
    return found if kind.sees_answer else found | {"sees_answer": False, "attempts": kind.attempts}


JUDGED = ("attempts", "accepted", "rationalized", "dropped")
"""What is counted where the teacher does not see the answer."""
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
    if manifest is None or manifest["stage"] != "enhance":
        return manifest
    if flaw_of_shape(manifest, MADE):
        return None
    if manifest["counts"].get("engine") == "vllm":  # older manifests have the engine only there
        manifest["arguments"].setdefault("engine", "vllm")
    return manifest


def make_jobs(flags: EnhanceFlags, teacher: Model) -> list["Job"]:
    jobs = []
    prompts = load_prompts(flags.prompts)
    for field in flags.task_type:
        kind = field.removesuffix("_text")
        if kind not in prompts.kinds or kind == field:
            known = ", ".join(f"{kind}_text" for kind in prompts.kinds)
            raise UserError(f"--task_type: one of {known} was expected, found {field!r} (--prompts {prompts.name})")
        output = shard_path(Path(flags.output.replace("{kind}", kind)), flags.shard)
        if output.suffix not in (".jsonl", ".json"):
            raise UserError(f"--output: a name that ends with .jsonl was expected, found {output}")
        require_file_place(output)
        if output.resolve() == flags.input.resolve():
            raise UserError(f"--output: {output} is the input; give another file")
        arguments = settings(flags, field) | of_kind(prompts.kinds[kind])
        chat = flags.chat or teacher.chat
        job = Job(kind, prompts, output, flags.input, flags.shard, arguments, teacher, flags.restart, chat)
        jobs.append(job)
        job.use_engine(flags.engine or TRANSFORMERS)
    return jobs


@dataclass
class Job:
    """The texts of one kind for the records of one shard.

    Attributes:
        kind: the kind of explanation (`cot`).
        output: the file for the enhanced records.
        arguments: the result of `settings`, and the engine if it is not one of OF_THEIR_TEACHERS.
        restart: whether an output with other settings is kept under another name; otherwise the job is refused.
        chat: whether the teacher gets conversations; see `is_chat`.
        ended: how many of the written texts ended why; "unknown" for texts of versions that did not keep it.
    """

    kind: str
    prompts: PromptSet
    output: Path
    input: Path
    shard: Shard
    arguments: dict[str, Any]
    teacher: Model
    restart: bool
    chat: str
    engine: str = "auto"
    ended: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def field(self) -> str:
        """The prompt field (`cot_text`)."""
        return f"{self.kind}_text"

    @property
    def described(self) -> Kind:
        return self.prompts.kinds[self.kind]

    @property
    def added(self) -> tuple[str, ...]:
        """The fields that this job adds to the records."""
        suffixes: tuple[str, ...] = ("completions", "ended", "thinking", "top_logprobs")
        suffixes += () if self.described.sees_answer else ("source", "attempts")
        return (self.kind, "all", *(f"{self.kind}_{suffix}" for suffix in suffixes))

    @property
    def completions(self) -> int:
        count: int = self.arguments["num_completions"]
        return count

    @property
    def failures_path(self) -> Path:
        return self.output.with_suffix(".failures.jsonl")

    @property
    def dropped_path(self) -> Path:
        return self.output.with_suffix(".dropped.jsonl")

    @property
    def server_log(self) -> Path:
        """What a server that is started for this job prints."""
        return self.output.with_suffix(".server.log")

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
        return conversation(self.described, prompt) if self.is_chat else ()

    def text(self, prompt: str) -> str:
        """The text that a teacher without a chat template completes."""
        return prompt if self.is_chat else plain_prompt(self.described, prompt)

    def use_engine(self, engine: str) -> None:
        self.engine = engine
        self.arguments = {name: value for name, value in self.arguments.items() if name not in ("engine", SERVE)}
        if engine not in OF_THEIR_TEACHERS:
            self.arguments["engine"] = engine
        if engine == SERVE:
            self.arguments[SERVE] = self.teacher.serve

    def settle_engine(self, fastest: Callable[[], str]) -> None:
        """Choose the engine of `--engine auto`: that of the output or of its unfinished work, if their settings are the
        current ones, otherwise the fastest one."""
        if self.engine != "auto":
            return
        begun = work_in(self.progress_path)
        made = [] if self.run.manifest is None else [self.run.manifest.get("arguments", {})]
        for arguments in [*made, *([] if begun is None else [begun])] if self.input.is_file() else []:
            self.use_engine(arguments.get("engine", TRANSFORMERS))
            self.compare()
            if self.run.is_done or begun == self.work:
                return
        self.use_engine(fastest())

    @property
    def work(self) -> dict[str, Any]:
        """The description of this work in its file of progress."""
        return {**self.run.work, "version": manifests.stage_version("enhance")}

    def compare(self) -> None:
        """Compare the existing output with this job: the arguments, and the current records and teacher."""
        if not self.run.is_compared:
            self.inputs = self.describe_inputs()
        self.run.compare(self.arguments | ({"chat": True} if self.is_chat else {}), self.inputs)
        self.run.reasons = [NO_ENGINE.sub(repr(TRANSFORMERS), why) for why in self.run.reasons]

    def describe_inputs(self) -> dict[str, manifests.Description]:
        known = self.run.known
        if (name := self.teacher.texts_from) is not None:
            name += f" {self.teacher.served}" if self.teacher.served else ""
            teacher = {"path": name, "sha256": name}
        else:
            further = (GGUF,) if self.engine == SERVE else ()
            teacher = describe_model(local_folder(self.teacher), known.get("teacher"), further)
        return {"records": manifests.describe(self.input, known.get("records")), "teacher": teacher}

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
                print(f"enhance: {self.output}: trying {plural(failures, 'record')} without a text again")
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
        return ProgressFile(self.progress_path, self.work, self.restart)

    def missing(self, index: int) -> Iterator[int]:
        """Numbers of the completions that a record still needs."""
        return (n for n in range(self.completions) if index * self.completions + n not in self.progress)

    def keep(self, index: int, number: int, prompt: str, piece: dict[str, Any]) -> None:
        """Write what came of a completion to disk, with the digest of what the teacher was asked.

        Args:
            prompt: the text of the record's prompt field.
        """
        asked = prompt_digest(asked_text(prompt, self.messages(prompt)))
        self.progress.append(index * self.completions + number, {**piece, "prompt": asked})

    def pieces(self, index: int, line: int, prompt: str) -> list[dict[str, Any]]:
        """What came of the completions of a record: each has the text, its number of tokens, why it ended, and what the
        teacher thought; or why it was dropped.

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

    def finish(self, failures: set[int], counts_of_engine: dict[str, Any]) -> None:
        """Write the output without the failed records, and the manifest.

        Args:
            failures: the indices of the failed records.
            counts_of_engine: further counts for the manifest.
        """
        self.run.compare_again()
        old = None if self.run.is_done else set_aside(self.output)
        self.progress.close()
        judged: Counter[str] = Counter()
        written = write_records(self.output, self.enhanced(failures, judged))
        if old and filecmp.cmp(old, self.output, shallow=False):  # the same job was killed before its manifest
            old.unlink()
        elif old:
            print(f"enhance: the former {self.output} is kept as {old}")
        counts = {"records": written, "failures": len(failures), "ended": dict(sorted(self.ended.items())), **judged}
        counts |= {**counts_of_engine, "seconds": self.run.seconds}
        self.run.finish({"enhanced": self.output}, counts)
        if not failures:
            self.progress.remove()
        said = f", {len(failures)} failed" if failures else ""
        if not self.described.sees_answer:
            said += "".join(f", {judged[name]} {name}" for name in JUDGED[1:])
        print(f"enhance: {self.output} has {plural(written, 'record')}{said}")

    def write_failures(self, failures: list[tuple[int, int, str]]) -> None:
        """List the records without a text in a file beside the output: {"record", "line", "reason"}.

        If there are none, the file is removed.
        """
        rows = [{"record": index, "line": line, "reason": reason} for index, line, reason in failures]
        write_list(self.failures_path, rows)

    def enhanced(self, failures: set[int], judged: Counter[str]) -> Iterator[Record]:
        """The shard's records with the teacher's texts, in the order of the input, without those that have no text.

        A record that was dropped is listed in a file beside the output: {"record", "line", "reason"}.

        Args:
            judged: gets the numbers of texts that were accepted, rationalized and dropped, and of all attempts.
        """
        dropped: list[dict[str, Any]] = []
        if not self.described.sees_answer:
            judged.update(dict.fromkeys(JUDGED, 0))
        for index, line, record in shard_records(self.input, self.shard):
            if index in failures:
                continue
            pieces = self.pieces(index, line, record[self.field])
            for piece in pieces:
                if "source" in piece or "dropped" in piece:
                    judged[piece.get("source", "dropped")] += 1
                    judged["attempts"] += piece["attempts"]
            kept = [piece for piece in pieces if "text" in piece]
            if kept:
                self.ended.update(piece.get("ended", "unknown") for piece in kept)
                several = self.completions > 1
                yield {**record, **added_fields(self.kind, record[self.field], kept, several)}
            else:
                dropped.append({"record": index, "line": line, "reason": pieces[0]["dropped"]})
        write_list(self.dropped_path, dropped)


def added_fields(kind: str, prompt: str, pieces: list[dict[str, Any]], several: bool) -> Record:
    """The fields that a record gets: those of the first completion, and all completions if there may be several."""
    first = pieces[0]
    added = {kind: first["text"], "all": prompt + first.get("whole", first["text"])}
    if first.get("ended", "stop") != "stop":
        added[f"{kind}_ended"] = first["ended"]
    added |= {f"{kind}_{name}": first[name] for name in OF_A_TEXT[1:] if name in first}
    return added | ({f"{kind}_completions": pieces} if several else {})


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a list beside an output. If it is empty, the file is removed."""
    if rows:
        write_records(path, rows)
    else:
        path.unlink(missing_ok=True)
