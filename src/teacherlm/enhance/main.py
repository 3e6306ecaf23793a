"""Let a teacher explain the answer of every record: its chain of thought, common mistakes, or the fundamentals.

The input is JSON lines with a prompt field (`cot_text`, `error_text` or `fundamental_text`), which the teacher
completes. The output has the same records in the same order, with two more fields: `cot` (or `error`, `fundamental`)
is the completion, and `all` is the prompt with the completion. After an interruption the same command continues the
work. When everything is finished and unchanged, it does nothing.

Source: TeacherLM (He et al. 2023, arXiv 2310.19019), section 3.
"""

from dataclasses import replace

from teacherlm.catalog.models import Model, find_model, local_folder
from teacherlm.catalog.servers import KEY
from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.stage_run import locked
from teacherlm.enhance.engine_choice import fastest
from teacherlm.enhance.flags import EnhanceFlags, read_flags
from teacherlm.enhance.job import SERVE, TRANSFORMERS, Job, make_jobs
from teacherlm.enhance.work import do_work
from teacherlm.runtime.generation.vllm_choice import vllm_lacks


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
        for job in jobs:
            job.settle_engine(lambda: fastest(teacher, flags.dtype))
        pending = [job for job in jobs if not job.is_done()]
        for engine in dict.fromkeys(job.engine for job in pending):
            of_engine = [job for job in pending if job.engine == engine]
            if flags.engine == "auto":
                require_engine(of_engine[0], flags.dtype)
            if status := do_work(replace(flags, engine=engine), teacher, of_engine):
                return status
        return 0


def require_engine(job: Job, dtype: str) -> None:
    """Refuse to continue an output whose engine is not on this machine, or runs a command that was not asked for.

    Raises:
        UserError: the output was begun with vLLM, which cannot take the teacher here, or with the command of a YAML.
    """
    if job.engine == SERVE:
        raise UserError(
            f"{job.output} was begun with --engine serve, which runs a command; go on with it, or begin again with "
            "another one and --restart (in a chain ENGINE=serve, ENGINE=transformers)"
        )
    if job.engine == "vllm" and (why := vllm_lacks(local_folder(job.teacher), dtype)):
        raise UserError(
            f"{job.output} was begun with --engine vllm, which cannot go on here: {why}; go on where it can, or begin "
            "again with --engine transformers --restart (in a chain ENGINE=transformers)"
        )


def list_missing(flags: EnhanceFlags, teacher: Model) -> int:
    _, count = flags.shard
    for index in range(count):
        jobs = make_jobs(replace(flags, shard=(index, count)), teacher)
        for job in jobs:
            job.settle_engine(lambda: TRANSFORMERS)  # nothing is done with any engine, so which one does not matter
        if any(job.is_missing() for job in jobs):
            print(index)
    return 0
