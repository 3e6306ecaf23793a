"""Let a teacher explain the answer of every record: its chain of thought, common mistakes, or the fundamentals.

The input is JSON lines with a prompt field (`cot_text`, `error_text` or `fundamental_text`), which the teacher
completes. The output has the same records in the same order, with two more fields: `cot` (or `error`, `fundamental`)
is the completion, and `all` is the prompt with the completion. After an interruption the same command continues the
work. When everything is finished and unchanged, it does nothing.

Source: TeacherLM (He et al. 2023, arXiv 2310.19019), section 3.
"""

from dataclasses import replace

from teacherlm.catalog.models import Model, find_model
from teacherlm.catalog.servers import KEY
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.stage_run import locked
from teacherlm.enhance.flags import EnhanceFlags, read_flags
from teacherlm.enhance.job import Job, make_jobs
from teacherlm.enhance.work import do_work


def main() -> int:
    flags = read_flags(__doc__)
    teacher = find_model(flags.name, flags.model, flags.key_variable or KEY)
    if flags.list_missing:
        return list_missing(flags, teacher)
    jobs: list[Job] = make_jobs(flags, teacher)
    for job in jobs:
        require_writable(job.output.parent)
        require_file_place(job.output)
    with locked(*(job.run for job in jobs)):
        pending = [job for job in jobs if not job.is_done()]
        return do_work(flags, teacher, pending) if pending else 0


def list_missing(flags: EnhanceFlags, teacher: Model) -> int:
    _, count = flags.shard
    for index in range(count):
        if any(job.is_missing() for job in make_jobs(replace(flags, shard=(index, count)), teacher)):
            print(index)
    return 0
