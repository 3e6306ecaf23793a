"""The budget of a command: where it is kept, and how much was spent before."""

from pathlib import Path

from teacherlm.core.progress_file import ProgressFile
from teacherlm.enhance.engines.budget import Budget
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.enhance.job import Job, shard_path


def spent_path(flags: EnhanceFlags) -> Path:
    """The file with what was spent on all outputs of a command."""
    output = shard_path(Path(flags.output.replace("{kind}", "all")), flags.shard)
    return output.with_name(f".{output.name}.spent")


def open_budget(flags: EnhanceFlags, job: Job) -> Budget | None:
    """The budget of a command with what was spent so far; None if the flags give no budget and no prices.

    Args:
        job: any of the command's jobs. The file belongs to their common settings.
    """
    if flags.max_tokens_total is None and flags.max_cost is None and not (flags.price_in or flags.price_out):
        return None
    work = {name: value for name, value in job.run.work.items() if name != "task_type"}
    file = ProgressFile(spent_path(flags), work, flags.restart)
    return Budget(file, flags.max_tokens_total, flags.max_cost, flags.price_in or 0.0, flags.price_out or 0.0)
