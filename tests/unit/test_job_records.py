"""The list of a chain's jobs: only the newest submission of a stage counts, and what was found done is done."""

from pathlib import Path

import pytest

from teacherlm.core.job_records import Job, newest_tasks, numbers, ranges, read_jobs, state_in


def row(stage: str, number: str, tasks: str = "0") -> Job:
    return Job(stage, number, tasks, "-", stage, f"/x/logs/{stage}-%a.log" if "-" in tasks else f"/x/logs/{stage}.log")


def shown(*rows: Job) -> list[str]:
    return [f"{task.stage} {task.job} {task.number}" for task in newest_tasks(rows)]


def test_tasks_of_an_older_submission_are_gone() -> None:
    """The first submission had SHARDS=4, the second one SHARDS=2."""
    first = [row("prepare", "1"), row("enhance", "2", "0-3"), row("report", "3")]
    assert shown(*first, row("enhance", "4", "0-1"), row("report", "5")) == [
        "prepare 1 0",
        "enhance 4 0",
        "enhance 4 1",
        "report 5 0",
    ]


def test_the_tasks_that_are_submitted_again_stand_beside_those_that_were_done() -> None:
    first = [row("enhance", "2", "0-3"), row("report", "3")]
    again = [row("enhance", "-", "0,2-3"), row("enhance", "4", "1"), row("report", "5")]
    assert shown(*first, *again) == ["enhance - 0", "enhance 4 1", "enhance - 2", "enhance - 3", "report 5 0"]


def test_work_of_another_run_replaces_a_job() -> None:
    assert shown(row("enhance", "2", "0-3"), row("report", "3"), row("enhance", "-")) == ["enhance - 0", "report 3 0"]


def test_a_state_belongs_to_a_job() -> None:
    (task,) = newest_tasks([row("merge", "7")])
    assert task.note == "merge-0"
    assert state_in(b"done\t7\tnode1\t1795286496\n", task) == "done"
    for other in (b"done\t17\tnode1\t1\n", b"done", b"", b"\xff\t\0"):
        assert state_in(other, task) is None


def test_rows_are_read_as_they_were_written() -> None:
    rows = [
        row("prepare", "1"),
        row("enhance", "-", "0-3"),
        Job("merge", "5", "0", "4 12", "enhance-ü", "/a b/merge.log"),
    ]
    text = "".join(one.row() + "\n" for one in rows)
    assert read_jobs(text.encode(), Path("jobs.tsv")) == rows


@pytest.mark.parametrize(("indices", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([1, 3], "1,3")])
def test_ranges_are_those_of_sbatch(indices: list[int], text: str) -> None:
    assert ranges(indices) == text
    assert numbers(text) == indices
