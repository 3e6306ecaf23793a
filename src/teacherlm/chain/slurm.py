"""Submit a chain to Slurm: each stage is a job, or a job array, that waits for the stage before it.

CHAIN/jobs.tsv lists the submitted jobs (core/job_records.py). A submission that ends early, because of a refusal, a
full disk or a signal, cancels every job that it has submitted.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from teacherlm.chain.controller import NoAnswer, lines_of, never_runs
from teacherlm.chain.graph import Graph, Stage, missing_indices
from teacherlm.chain.job_list import append, columns, done_row, says_done, under_way
from teacherlm.chain.layout import ChainFolder
from teacherlm.chain.locks import open_lock
from teacherlm.chain.partitions import excess, read_partitions
from teacherlm.chain.settings import plain, saved_variables, signal_seconds, working_directory
from teacherlm.chain.settings_file import Submission, save
from teacherlm.chain.site import ARGUMENTS, SLURM, Site, site_file
from teacherlm.core.errors import UserError
from teacherlm.core.job_records import FOUND_DONE, Job, ranges
from teacherlm.core.owners import make_own_folder
from teacherlm.core.places import ROOT

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""Signal that ends a submission -> the submission's exit status."""
AT_MOST = re.compile(r"(--[a-z-]+)=\S+ \(at most ([^\s)]+)\)")
"""An argument of sbatch and its maximum, in what `excess` says."""
QUEUE = ("squeue", "--noheader", f"--user={os.geteuid()}", "--format=%F")
"""The command that prints the numbers of this user's jobs."""


def submit(graph: Graph, site: Site, dry_run: bool) -> int:
    """Submit the stages that are not done; return the exit status.

    Args:
        dry_run: only print the commands (sbatch ...). This also works without Slurm and if models are missing.

    Raises:
        UserError: Slurm does not answer or refuses a stage, the chain is under way, or something that the jobs need is
            missing.
    """
    submission = Submitting(graph, site, dry_run)
    if dry_run:
        submission.plan()
        return 0
    read_queue()
    for _, message in graph.absences(True):
        raise UserError(plain(message))
    for folder in (graph.folder.locks, graph.chain.logs, graph.chain.states):
        make_own_folder(folder.absolute(), graph.runs.absolute())
    # Without the lock, two submissions at the same time would both find that nothing is under way.
    lock = open_lock(graph.folder.submission_lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        return submission.submit_all()
    finally:
        os.close(lock)


class Submitting:
    """One submission of a chain.

    Attributes:
        chain: the chain's folder, by a path that is valid on all nodes.
        queue: the numbers of this user's jobs in Slurm's queue.
        others: the other chains in the same folder.
        found_done: the rows of tasks that were found done, and are not in the list yet.
        submitted: the numbers of the jobs that this call has submitted.
    """

    def __init__(self, graph: Graph, site: Site, dry_run: bool):
        self.graph, self.site, self.dry_run = graph, site, dry_run
        self.here = working_directory()
        self.chain = ChainFolder(Path(os.path.normpath(Path(self.here) / graph.chain.path)))
        self.seconds = signal_seconds(os.environ)
        self.settings = "settings-DRY_RUN.json"
        self.queue: set[str] = set()
        self.others: list[ChainFolder] = []
        self.submitted: list[str] = []
        self.jobs: list[Job] = []
        self.found_done: list[Job] = []
        self.stopped = 0

    def plan(self) -> None:
        """Print what would be submitted."""
        absent = set()
        for thing, message in self.graph.absences(False):
            absent.add(thing)
            say(f"note: {message}")
        try:
            self.queue = set(lines_of(*QUEUE))
        except NoAnswer as error:
            say(f"note: {error}: the plan assumes that nothing is under way")
        self.refuse_under_way()
        self.find_others()
        self.submit_stages(absent)
        self.say_what_does_not_fit()
        self.show()

    def submit_all(self) -> int:
        self.queue = read_queue()
        self.refuse_twice()
        listed = self.chain.jobs.stat().st_size if self.chain.jobs.exists() else None
        before = {number: signal.signal(number, self.stop) for number in ENDS}
        try:
            self.find_others()
            variables = {
                name: os.environ[name]
                for name in saved_variables(self.graph.benchmark, os.environ, os.environ)
                if os.environ.get(name)
            }
            self.settings = save(self.chain.path, Submission(self.graph.benchmark, self.here, variables))
            self.submit_stages(set())
        except BaseException:
            for number in ENDS:
                signal.signal(number, signal.SIG_IGN)
            self.withdraw(listed)
            if self.stopped:
                raise SystemExit(self.stopped) from None
            raise
        for number, handler in before.items():  # everything is submitted: a signal no longer cancels it
            signal.signal(number, handler)
        self.show()
        self.warn_of_what_cannot_run()
        return 0

    def stop(self, number: int, _: object) -> None:
        self.stopped = ENDS[signal.Signals(number)]

    def find_others(self) -> None:
        for chain in self.graph.folder.chains():
            found = chain.jobs.lstat()
            if found.st_uid == os.geteuid() and chain.path.resolve() != self.chain.path.resolve():
                self.others.append(chain)

    def submit_stages(self, absent: set[str]) -> None:
        """Submit the first stage that has missing tasks, and all that come after it.

        A stage that is always submitted leaves nothing that shows whether it was done. Alone it is no reason to submit.

        Args:
            absent: the models and paths that are missing. A stage that needs one cannot list its missing tasks.
        """
        always: list[Stage] = []
        for stage in self.graph.stages:
            self.end_if_stopped()
            if self.jobs:
                self.submit_tasks(stage, list(stage.indices))
            elif stage.always:
                always.append(stage)
            elif indices := self.missing(stage, absent):
                for one in always:
                    self.submit_tasks(one, list(one.indices))
                self.skip(stage, [index for index in stage.indices if index not in indices])
                self.submit_tasks(stage, indices)
            else:
                print(f"{stage.name}: {FOUND_DONE}")
                self.skip(stage, list(stage.indices))
        self.end_if_stopped()
        if not self.jobs and not self.dry_run and self.chain.jobs.exists():
            self.note_done()

    def submit_tasks(self, stage: Stage, indices: Sequence[int]) -> None:
        after = self.jobs[-1].number if self.jobs else ""
        others = under_way(self.queue, self.others, stage.work)
        number = self.submit_stage(stage, indices, after, others)
        waits = " ".join([*([after] if after else []), *others]) or "-"
        log = self.chain.log(stage.name, stage.array)
        self.jobs.append(Job(stage.name, number, ranges(indices), waits, stage.work, log))
        if not self.dry_run:
            self.note_done()
            append(self.chain, self.jobs[-1])

    def skip(self, stage: Stage, indices: Sequence[int]) -> None:
        """Remember tasks that are done, unless the list says so already."""
        whole = len(indices) == len(stage.indices)
        if indices and not self.dry_run and not (whole and says_done(self.chain, stage.name)):
            self.found_done.append(done_row(self.chain, stage.name, indices, stage.work, stage.array))

    def note_done(self) -> None:
        while self.found_done:
            append(self.chain, self.found_done.pop(0))

    def missing(self, stage: Stage, absent: set[str]) -> list[int]:
        """The tasks that are not done. A dry run does not call stages that have made nothing: some make folders."""
        if self.dry_run and (absent & set(stage.needs) or (stage.made is not None and not stage.made.exists())):
            return list(stage.indices)
        return missing_indices(stage)

    def end_if_stopped(self) -> None:
        if self.stopped:
            raise SystemExit(self.stopped)

    def submit_stage(self, stage: Stage, indices: Sequence[int], after: str, others: Sequence[str]) -> str:
        """Call sbatch for a stage; return the job's number.

        The job waits until the job `after` has succeeded and the jobs `others`, which do the same work, have ended.
        """
        waits = [*([f"afterok:{after}"] if after else []), *(f"afterany:{job}" for job in others)]
        command = ["sbatch", "--parsable", f"--job-name={stage.name} {self.graph.name}"]
        command += [f"--output={self.chain.log(stage.name, stage.array)}", "--open-mode=append", "--requeue"]
        command += [f"--signal=B:USR1@{self.seconds}", "--kill-on-invalid-dep=yes"]
        command += [f"--dependency={','.join(waits)}"] if waits else []
        command += stage.request(self.site)
        command += [f"--array={ranges(indices)}"] if stage.array else []
        command += [str(SLURM / "job.sh"), stage.name, str(ROOT), str(self.chain.path / self.settings)]
        command += [os.environ.get(name) or "-" for name in ("SITE", "PYTHON", "CONTAINER")]
        if self.dry_run:
            print(in_shell(command))
            return f"ID_OF_{stage.name.upper()}"
        sys.stdout.flush()
        # sbatch runs in a new session, so Ctrl-C does not reach it, and it always prints the number of an accepted job.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        number = done.stdout.strip().partition(";")[0]  # a federation adds the cluster's name
        if done.returncode or not number:
            self.say_what_does_not_fit()
            say(f"the command was: {in_shell(command)}")
            raise UserError(
                plain(
                    f"Slurm refused the stage {stage.name}, see its message above; change the request in {site_file()} "
                    f"({', '.join(ARGUMENTS)})"
                )
            )
        self.submitted.append(number)
        return number

    def withdraw(self, listed: int | None) -> None:
        """Cancel every job of this call, and restore the previous list of jobs.

        Slurm's queue is read first, because it may contain a job whose number was lost when sbatch failed.
        """
        try:
            jobs = self.jobs_of_chain()
        except NoAnswer:
            jobs = list(self.submitted)
        if not jobs or cancel(jobs) or self.are_gone():
            if listed is None:
                self.chain.jobs.unlink(missing_ok=True)
            elif self.chain.jobs.exists():
                os.truncate(self.chain.jobs, listed)
            if jobs:
                say(f"cancelled the submitted jobs {' '.join(jobs)}")
        else:
            named = " ".join(jobs)
            say(f"jobs {named} are still in the queue; when Slurm answers again, run: scancel {named}")

    def are_gone(self) -> bool:
        try:
            return not self.jobs_of_chain()
        except NoAnswer:
            return False

    def jobs_of_chain(self) -> list[str]:
        """The jobs in Slurm's queue whose logs are in this chain's folder.

        Raises:
            NoAnswer: Slurm does not answer.
        """
        lines = lines_of("squeue", "--noheader", f"--user={os.geteuid()}", "--Format=ArrayJobID:24,STDOUT:4096")
        logs = f"{self.chain.logs}/".replace("%", "%%")
        found = {job for job, _, log in (line.partition(" ") for line in lines) if log.strip().startswith(logs)}
        return sorted(found, key=int)

    def refuse_twice(self) -> None:
        """Refuse to submit a chain that is under way.

        A job in the queue that is not in the chain's list is cancelled: its submission was killed before it listed it.

        Raises:
            UserError: the chain is under way.
        """
        jobs = under_way(self.queue, [self.chain], None)
        try:
            unknown = [job for job in self.jobs_of_chain() if job not in jobs]
        except NoAnswer as error:
            raise no_answer(error) from None
        if unknown:
            cancel(unknown)
            say(f"cancelled jobs {' '.join(unknown)}, which a killed submission left in the queue")
        self.refuse_under_way()

    def refuse_under_way(self) -> None:
        jobs = under_way(self.queue, [self.chain], None)
        if jobs:
            raise UserError(
                f"this chain is under way (jobs {' '.join(jobs)}): make status shows it, and make cancel ends it"
            )

    def show(self) -> None:
        """Print a table of the jobs, and after a dry run also the graph."""
        if not self.jobs:
            print("nothing to submit: all stages are done")
            return
        rows = [("stage", "job", "tasks", "waits for", "log")]
        for job in self.jobs:
            log = job.log.removeprefix(f"{self.here}/")
            rows.append((job.stage, job.number, job.tasks, self.waits_for(job), log))
        print(columns(rows))
        if self.dry_run:
            print("\ngraph LR")
            before = ""
            for job in self.jobs:
                print(f'    {before and f"{before} --> "}{job.stage}["{job.stage} {job.tasks}"]')
                before = job.stage

    def say_what_does_not_fit(self) -> None:
        """Name each stage that requests more than its partition has. sbatch itself names one obstacle at a time."""
        for stage, too_much in self.excess_of_stages().items():
            enough = " ".join(f"{name}={most}" for name, most in AT_MOST.findall(too_much))
            say(
                f"note: {stage} requests more than its partition has: {too_much}; SBATCH_ARGS=({enough}) in "
                f"{site_file()} changes that"
            )

    def excess_of_stages(self) -> dict[str, str]:
        """What each stage requests beyond its partition. Stages that fit are left out."""
        try:
            partitions = read_partitions()
        except (NoAnswer, ValueError):  # ValueError: a sinfo that prints something else
            return {}
        found = {stage.name: excess(stage.request(self.site), partitions) for stage in self.graph.stages}
        return {name: too_much for name, too_much in found.items() if too_much}

    def waits_for(self, job: Job) -> str:
        """The jobs that a job waits for, for people: jobs of other chains are named as such."""
        own = {one.number for one in self.jobs}
        waits = job.waits.split() if job.waits != "-" else []
        of_others = " ".join(number for number in waits if number not in own)
        parts = [*(number for number in waits if number in own), *([f"{of_others} of other chains"] * bool(of_others))]
        return " + ".join(parts) or "-"

    def warn_of_what_cannot_run(self) -> None:
        """Warn of jobs that wait for ever. Slurm accepts a job that requests more time than its partition allows."""
        too_much = self.excess_of_stages()
        for job in self.jobs:
            with contextlib.suppress(NoAnswer, ValueError, IndexError):  # the job has already ended
                if reason := never_runs(job.number):
                    if ", " in too_much.get(job.stage, ""):  # Slurm names one obstacle at a time
                        reason += f" (in all: {too_much[job.stage]})"
                    say(
                        f"warning: {job.stage} (job {job.number}) will wait for ever: {reason}; run make cancel, then "
                        f"change the request in {site_file()} (make site shows the limits)"
                    )


def say(text: str) -> None:
    print(plain(f"{Path(sys.argv[0]).name}: {text}"), file=sys.stderr, flush=True)


def read_queue() -> set[str]:
    """The numbers of this user's jobs.

    Raises:
        UserError: Slurm does not answer.
    """
    try:
        return set(lines_of(*QUEUE))
    except NoAnswer as error:
        raise no_answer(error) from None


def no_answer(why: NoAnswer) -> UserError:
    return UserError(plain(f"Slurm does not answer ({why}); LAUNCHER=local runs the chain on this machine"))


def cancel(jobs: Sequence[str]) -> bool:
    return subprocess.run(["scancel", *jobs]).returncode == 0 if shutil.which("scancel") else False


def in_shell(words: Sequence[str]) -> str:
    """Words in a shell's syntax, with few quotes."""

    def quoted(word: str) -> str:
        return re.sub(r"([^\w@%+=:,./-])", r"\\\1", word) if word.isprintable() and word else shlex.quote(word)

    return " ".join(map(quoted, words))
