"""Make all missing completions of all jobs in one pass. Each completion is written to disk as soon as it ends."""

import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from teacherlm.catalog.chat_templates import template_size
from teacherlm.catalog.models import Model, local_folder
from teacherlm.catalog.servers import KEY
from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.terminal import plural
from teacherlm.enhance.budget import open_budget
from teacherlm.enhance.chat import explanation_of
from teacherlm.enhance.engines import Completion, Engine, Failure, Prompt, Sampling, asked_text
from teacherlm.enhance.engines.budget import Budget
from teacherlm.enhance.engines.pace import Pace
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.enhance.job import Job, shard_records
from teacherlm.enhance.judging import Question, judge, question_of

SPECIAL_TOKENS = 8
"""Upper bound for the number of special tokens around a prompt."""


def do_work(flags: EnhanceFlags, teacher: Model, jobs: list[Job]) -> int:
    """Make the missing completions, finish each job, and return the exit code.

    After SIGUSR1 or SIGTERM no new completion is begun, running completions end, and the exit code is REQUEUE.

    Raises:
        UserError: a record lacks a prompt field, or more than `max_failures` records of a job got no text.
    """
    by_field = {job.field: job for job in jobs}
    total, longest = check_records(flags, jobs)
    wanted = sum(total * job.completions for job in jobs)
    before = sum(len(job.progress) for job in jobs)
    counts: dict[str, Any] = {}
    failed: dict[str, dict[int, str]] = {job.field: {} for job in jobs}
    asked: dict[tuple[str, int, int], Question] = {}
    if before:
        print(f"enhance: an earlier run made {before} of {plural(wanted, 'completion')}; continuing with the others")
    budget = None
    if before < wanted:
        sampling = Sampling(flags.num_tokens, flags.temperature, flags.top_p, flags.stop)
        digest, chat = jobs[0].run.inputs["teacher"]["sha256"], jobs[0].is_chat
        budget = open_budget(flags, jobs[0])
        engine, described = make_engine(flags, teacher, sampling, digest, longest, chat, budget)
        print(f"enhance: {plural(total, 'record')}, {', '.join(by_field)}, {described}", flush=True)
        counts = {"engine": flags.engine, "prompt_tokens": 0, "new_tokens": 0}
        stop = Stop()
        with Progress(wanted, before, engine) as progress:
            again: list[Prompt] = []
            for attempt in itertools.count():
                if attempt and not again:
                    break
                prompts = missing_prompts(flags, jobs, asked) if attempt == 0 else iter(again)
                again = []
                for result in engine.complete(itertools.takewhile(lambda _: not stop.requested, prompts)):
                    prompt = result.prompt
                    job = by_field[prompt.kind]
                    if isinstance(result, Completion):
                        counts["prompt_tokens"] += result.prompt_tokens
                        counts["new_tokens"] += result.new_tokens
                        progress.update(result)
                        result = explanation_of(result, flags.num_tokens) if prompt.messages else result
                    key = (prompt.kind, prompt.index, prompt.number)
                    if isinstance(result, Failure):
                        failed[prompt.kind][prompt.index] = result.reason
                        asked.pop(key)
                        continue
                    verdict = judge(job.described, asked[key], result.text, attempt, flags.temperature > 0)
                    if verdict.again is not None:
                        text = verdict.again
                        again.append(prompt_of(flags.seed, job, prompt.index, prompt.number, text, attempt + 1))
                        continue
                    question = asked.pop(key)
                    if verdict.failed is not None:
                        failed[prompt.kind][prompt.index] = verdict.failed
                    else:
                        piece = verdict.kept or {"dropped": verdict.dropped, "attempts": attempt + 1}
                        job.keep(prompt.index, prompt.number, question.prompt, {**piece, **about(result)})
        counts |= progress.summary() | getattr(engine, "summary", dict)()
        stop.restore()
        done = sum(len(job.progress) for job in jobs)
        if stop.requested and done < wanted:
            made = f"{done} of {plural(wanted, 'completion')}"
            print(f"enhance: interrupted after {made}; the same command goes on from there")
            return REQUEUE
        if budget is not None and budget.stopped:
            raise UserError(
                f"the budget is used up ({budget.words()}): {done} of {wanted} completions are done and kept; the same "
                "command with a higher --max_tokens_total or --max_cost goes on from there"
            )
    conclude(flags, jobs, failed, counts)
    if budget is not None and not any(failed.values()):
        budget.file.close()
        budget.file.remove()
    return 0


def conclude(flags: EnhanceFlags, jobs: list[Job], failed: dict[str, dict[int, str]], counts: dict[str, Any]) -> None:
    """List the failures beside the outputs, and finish the jobs that have at most `max_failures`.

    Args:
        failed: maps prompt field -> index of the record -> reason why it has no text.

    Raises:
        UserError: a job has more failures.
    """
    lines = {index: line for index, line, _ in shard_records(flags.input, flags.shard)} if any(failed.values()) else {}
    too_many = []
    for job in jobs:
        failures = [(index, lines[index], why) for index, why in sorted(failed[job.field].items())]
        job.write_failures(failures)
        if len(failures) > flags.max_failures:
            _, line, why = failures[0]
            too_many.append(
                f"{plural(len(failures), 'record')} got no {job.kind} (--max_failures {flags.max_failures}), the first "
                f"in {flags.input}, line {line}: {why}; all are in {job.failures_path}"
            )
        else:
            job.finish({index for index, *_ in failures}, counts)
    if too_many:
        raise UserError(f"{'; '.join(too_many)}; the same command tries them again")


def check_records(flags: EnhanceFlags, jobs: list[Job]) -> tuple[int, int]:
    """Count the shard's records, and check that each has the prompt fields and none of the fields that are added.

    Returns:
        The number of records, and the number of bytes of the longest prompt.

    Raises:
        UserError: a record fails the check; the message names its file, line and field.
    """
    count = longest = 0
    for _, line, record in shard_records(flags.input, flags.shard):
        count += 1
        for job in jobs:
            if not isinstance(record.get(job.field), str) or not record[job.field]:
                fields = [f"{kind}_text" for kind in job.prompts.kinds]
                texts = [name for name in fields if isinstance(record.get(name), str)]
                raise UserError(
                    f"{flags.input}, line {line}: the field {job.field!r} is missing, empty or not a text; "
                    f"this record has {', '.join(texts) or 'none of ' + ', '.join(fields)}"
                )
            for added in job.added:
                if added in record:
                    raise UserError(
                        f"{flags.input}, line {line}: the field {added!r} is already there; rename it first"
                    )
            hint = record.get(f"{job.kind}_hint")
            for text in (record[job.field], *([hint] if isinstance(hint, str) else [])):
                asked = asked_text(job.text(text), job.messages(text))
                longest = max(longest, len(asked.encode(errors="surrogatepass")))
    return count, longest


def missing_prompts(
    flags: EnhanceFlags, jobs: list[Job], asked: dict[tuple[str, int, int], Question]
) -> Iterator[Prompt]:
    """The prompts of the completions that are not on disk yet, record by record.

    Args:
        asked: gets (prompt field, index, number) -> the question, for each prompt.
    """
    for index, _, record in shard_records(flags.input, flags.shard):
        for job in jobs:
            text = record[job.field]
            for number in job.missing(index):
                asked[job.field, index, number] = question_of(record, job.kind)
                yield prompt_of(flags.seed, job, index, number, text)


def draw_seed(seed: int, index: int, number: int, text: str, attempt: int = 0) -> int:
    """The seed of a completion, derived from the run's seed, the record, the completion's number, the attempt and the
    prompt."""
    digest = hashlib.sha256(f"{seed} {index} {number} {attempt} {text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prompt_of(seed: int, job: Job, index: int, number: int, text: str, attempt: int = 0) -> Prompt:
    """The prompt of an attempt, with its own random numbers.

    Args:
        text: the record's prompt field, or its hint.
    """
    prompt = Prompt(job.field, index, number, job.text(text), 0, job.messages(text))
    return replace(prompt, seed=draw_seed(seed, index, number, prompt.asked, attempt))


def about(completion: Completion) -> dict[str, Any]:
    """What is kept of a completion beside its text."""
    found = {"tokens": completion.new_tokens, "ended": completion.ended}
    return found | ({"thinking": completion.thinking} if completion.thinking else {})


def make_engine(
    flags: EnhanceFlags,
    teacher: Model,
    sampling: Sampling,
    digest: str,
    longest: int,
    chat: bool,
    budget: Budget | None,
) -> tuple[Engine, str]:
    """The engine, and a description of it for the log, which follows the prompt fields in a line of messages.

    Args:
        digest: the teacher's digest.
        longest: number of bytes of the longest prompt.
        chat: whether the prompts are conversations.
        budget: what a server may cost.
    """
    if teacher.server is not None:
        from teacherlm.enhance.engines.openai_engine import CONCURRENCY, OpenAIEngine

        server = OpenAIEngine(
            teacher.server,
            sampling,
            flags.batch_size or CONCURRENCY,
            teacher.served,
            flags.key_variable or KEY,
            Pace(flags.requests_per_minute, flags.tokens_per_minute),
            budget,
        )
        return server, f"{server.model} at {server.address}, {server.concurrency} at a time"
    if teacher.explanations is not None:
        from teacherlm.enhance.engines.field_engine import FieldEngine

        return FieldEngine(flags.input, teacher.explanations), f"from their field {teacher.explanations!r}"
    if flags.engine == "vllm":
        from teacherlm.enhance.engine_choice import gpus_together
        from teacherlm.enhance.engines.vllm_engine import VLLMEngine

        gpus = gpus_together(local_folder(teacher), teacher.recommended("slurm.enhance.gpus"))
        described = f"with vLLM on {gpus} GPUs" if gpus > 1 else "with vLLM"
        return VLLMEngine(local_folder(teacher), flags.dtype, sampling, gpus), described
    from teacherlm.enhance.engines.transformers_engine import TransformersEngine

    batch_size = flags.batch_size or teacher.recommended("enhance.batch")
    # A token has at least one byte, so no prompt with its completion has more tokens than `bound`.
    folder = local_folder(teacher)
    bound = longest + flags.num_tokens + SPECIAL_TOKENS + (template_size(folder) if chat else 0)
    engine = TransformersEngine(folder, flags.dtype, sampling, batch_size, digest, bound)
    return engine, f"on {engine.device.type} in {engine.dtype}, {engine.max_rows} at a time"


class Progress:
    """Shows texts, tokens per second, mean rows and time left: a bar on a terminal, else one line per minute."""

    def __init__(self, wanted: int, before: int, engine: Engine):
        interactive = sys.stderr.isatty()
        self.engine = engine
        self.bar = tqdm(
            total=wanted,
            initial=before,
            unit=" texts",
            desc="enhance",
            mininterval=0.5 if interactive else 60,
            maxinterval=1e9,
            ascii=None if interactive else True,
        )
        self.began = time.monotonic()
        self.tokens = self.prompt_tokens = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.began
        self.bar.set_postfix_str(self.speed())
        self.bar.close()

    def update(self, completion: Completion) -> None:
        self.tokens += completion.new_tokens
        self.prompt_tokens += completion.prompt_tokens
        self.bar.set_postfix_str(self.speed(), refresh=False)
        self.bar.update()

    def speed(self) -> str:
        seconds = time.monotonic() - self.began
        filled = f", {self.rows():.0f} rows" if self.rows() else ""
        return f"{self.tokens / seconds:.0f} new + {self.prompt_tokens / seconds:.0f} prompt tokens/s{filled}"

    def rows(self) -> float:
        """Mean number of sequences per step; 0 if the engine does not count them."""
        return getattr(self.engine, "rows_filled", 0) / max(1, getattr(self.engine, "steps", 0))

    def summary(self) -> dict[str, Any]:
        counts = {
            "generate_seconds": round(self.seconds, 1),
            "new_tokens_per_second": round(self.tokens / self.seconds, 1),
        }
        return counts | ({"mean_rows": round(self.rows(), 1)} if self.rows() else {})
