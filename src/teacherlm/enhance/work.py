"""Make all missing completions of all jobs in one pass. Each completion is written to disk as soon as it ends."""

import itertools
import sys
import time
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from teacherlm.catalog.models import Model
from teacherlm.catalog.sample_values import asked_of
from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.terminal import plural
from teacherlm.enhance.asking import Asking
from teacherlm.enhance.budget import open_budget
from teacherlm.enhance.engine_choice import make_engine
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.enhance.job import Job, shard_records
from teacherlm.runtime.generation import Completion, Engine, Failure, asked_text


def do_work(flags: EnhanceFlags, teacher: Model, jobs: list[Job]) -> int:
    """Make the missing completions, finish each job, and return the exit code.

    After SIGUSR1 or SIGTERM no new completion is begun, running completions end, and the exit code is REQUEUE.

    Raises:
        UserError: a record lacks a prompt field, or more than `max_failures` records of a job got no text.
    """
    total, longest = check_records(flags, jobs)
    wanted = sum(total * job.completions for job in jobs)
    before = sum(len(job.progress) for job in jobs)
    counts: dict[str, Any] = {}
    asking = Asking(flags, jobs)
    budget = None
    if before:
        print(f"enhance: an earlier run made {before} of {plural(wanted, 'completion')}; continuing with the others")
    if before < wanted:
        budget = open_budget(flags, jobs[0])
        engine, described = make_engine(flags, teacher, jobs[0], longest, budget)
        fields = ", ".join(job.field for job in jobs)
        print(f"enhance: {plural(total, 'record')}, {fields}, {described}", flush=True)
        stop = Stop()
        with ExitStack() as at_end:
            at_end.callback(getattr(engine, "close", lambda: None))
            getattr(engine, "start", lambda: None)()
            progress = at_end.enter_context(Progress(wanted, before, engine))
            while True:
                for result in engine.complete(itertools.takewhile(lambda _: not stop.requested, asking.prompts())):
                    progress.update(result, is_last=asking.take(result))
                if stop.requested or (budget is not None and budget.stopped) or not asking.again:
                    break
        counts = {"engine": flags.engine, **progress.summary(), **getattr(engine, "summary", dict)()}
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
    conclude(flags, jobs, asking.failed, counts)
    if budget is not None and not any(asking.failed.values()):
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
            if not job.described.sees_answer:
                asked_of(record, f"{flags.input}, line {line}")
            hint = record.get(f"{job.kind}_hint")
            for text in (record[job.field], *([hint] if isinstance(hint, str) else [])):
                asked = asked_text(job.text(text), job.messages(text))
                longest = max(longest, len(asked.encode(errors="surrogatepass")))
    return count, longest


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

    def update(self, result: Completion | Failure, is_last: bool) -> None:
        """Count an answer. The bar counts completions, which may take several attempts."""
        if isinstance(result, Completion):
            self.tokens += result.new_tokens
            self.prompt_tokens += result.prompt_tokens
        self.bar.set_postfix_str(self.speed(), refresh=False)
        if is_last:
            self.bar.update()

    def speed(self) -> str:
        seconds = time.monotonic() - self.began
        filled = f", {self.rows():.0f} rows" if self.rows() else ""
        return f"{self.tokens / seconds:.0f} new + {self.prompt_tokens / seconds:.0f} prompt tokens/s{filled}"

    def rows(self) -> float:
        """Mean number of sequences per step; 0 if the engine does not count them."""
        return getattr(self.engine, "rows_filled", 0) / max(1, getattr(self.engine, "steps", 0))

    def summary(self) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.tokens,
            "generate_seconds": round(self.seconds, 1),
            "new_tokens_per_second": round(self.tokens / self.seconds, 1),
        }
        return counts | ({"mean_rows": round(self.rows(), 1)} if self.rows() else {})
