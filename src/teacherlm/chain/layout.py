"""The paths of a chain's files and folders. No other module of the chain builds a path.

The name of a folder tells what it depends on, so another student, task or seed has another folder:

    RUNS/BENCHMARK/all|limit-N/
      prepare/                    prompts, the dataset, test/ with the test set; prepare_PROMPTS/ with other prompts
      enhance/TEACHER_seedN/      a teacher's explanations, and the datasets that a student reads
      enhance/A+B_DIGEST_seedN/   the mixed explanations of several teachers for one kind
      enhance/TEACHERS_seedN/     the datasets with the explanations of several teachers: cot-A+error-B_DIGEST_seedN
      finetune/RUN/               a student's checkpoints
      evaluate/STUDENT/, RUN/     scores of the untrained student, and of the checkpoints; evaluate-DIGEST/ with flags;
                                  STUDENT_chat/ for an untrained chat student
      chains/RUN/                 a submission: jobs.tsv, settings-*.json, logs/, states/
      .locks/                     locks that keep two runs from doing the same work
      report/                     the page

ATLAS's experiments have RUNS/atlas/SETTING/ with chains/ and .locks/. Their results are in DATA_DIR/experiments/NAME.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.atlas.experiment import DataFolder

LONGEST_NAME = 200
"""Maximum number of bytes of a name that is made of several teachers' names. File systems allow 255, and names of locks
and logs are made from it."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class ChainFolder:
    """RUN_FOLDER/chains/NAME, the folder with the information about a chain's jobs."""

    path: Path

    @property
    def run_folder(self) -> Path:
        return self.path.parent.parent

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def jobs(self) -> Path:
        return self.path / "jobs.tsv"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def states(self) -> Path:
        """The folder with the state of each task. slurm/job.sh writes them."""
        return self.path / "states"

    def log(self, stage: str, array: bool) -> str:
        """The path of a stage's log in sbatch's format: % is doubled, and an array's log gets the array index."""
        return f"{self.logs}/{stage}".replace("%", "%%") + "-%a" * array + ".log"

    def enhanced(self, work: str) -> Path:
        """The folder of the explanations that the jobs with this work make."""
        folder, own = RunFolder(self.run_folder).of(work)
        return folder.path / "enhance" / own.removeprefix("enhance-")

    @property
    def checkpoints(self) -> Path:
        return self.run_folder / "finetune" / self.name

    @property
    def training_log(self) -> Path:
        return self.checkpoints / "log.jsonl"

    def scores(self, work: str) -> Path:
        """The folder of the scores that the jobs with this work make."""
        return self.run_folder / work.removesuffix(f"-{self.name}") / self.name


@dataclass(frozen=True)
class RunFolder:
    """RUNS/BENCHMARK/SAMPLES, which all chains of a benchmark with the same number of samples share."""

    path: Path

    @property
    def locks(self) -> Path:
        return self.path / ".locks"

    def lock(self, name: str) -> Path:
        """The file that is locked while a task is done. BENCHMARK/NAME is the lock NAME of another benchmark's run."""
        folder, own = self.of(name)
        return folder.locks / own

    def of(self, work: str) -> tuple["RunFolder", str]:
        """The folder and the name of some work: BENCHMARK/NAME belongs to another benchmark with the same SAMPLES."""
        benchmark, _, own = work.rpartition("/")
        return (RunFolder(self.path.parent.parent / benchmark / self.path.name) if benchmark else self), own

    @property
    def submission_lock(self) -> Path:
        return self.locks / "submission"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def chain(self, name: str) -> ChainFolder:
        return ChainFolder(self.path / "chains" / name)

    def chains(self) -> list[ChainFolder]:
        """The chains that were submitted."""
        return [ChainFolder(jobs.parent) for jobs in sorted(self.path.glob("chains/*/jobs.tsv"))]


@dataclass(frozen=True)
class Layout:
    """The folders and files of one chain.

    Attributes:
        benchmark: the benchmark of the folder.
        title: the benchmark's title, which the names of its files begin with.
        of_prompts: _PROMPTS for other prompts than the default, or an empty text.
        teacher_runs: teacher, as the settings name it -> TEACHER_seedN, its texts' folder. After TEACHER come `_chat`
            or `_plain` where CHAT says so, the name of the prompts if they are not the default, the number of texts per
            sample (_4texts) if it is not 1, and a digest of the stage's further flags if there are some.
        kind_runs: kind of explanation -> the folder of its texts: its teacher's, or A+B_DIGEST_seedN if they are mixed.
        joined_run: the folder of the datasets for finetuning; that of the texts if one teacher makes all of them.
        student: the name of the untrained student's scores.
        chosen: the ending of names for outputs with other texts than the first ones, or an empty text.
        filtered: the ending of names for outputs from which a filter dropped samples, or an empty text.
        name: the name of the run. It has the student, the task, the teachers and the settings of finetuning.
        of_evaluation: -DIGEST for further flags of the evaluation, or an empty text.
        prefix: what the names of work and of locks begin with: BENCHMARK/ in the folders of another benchmark that is
            trained on, or an empty text.
    """

    folder: RunFolder
    benchmark: str
    title: str
    student: str
    of_prompts: str
    teacher_runs: Mapping[str, str]
    kind_runs: Mapping[str, str]
    joined_run: str
    chosen: str
    filtered: str
    name: str
    of_evaluation: str
    prefix: str = ""

    @property
    def suffix(self) -> str:
        """What a heading gets for another training set, or an empty text."""
        return f" {self.benchmark}" if self.prefix else ""

    def stage(self, name: str) -> str:
        """The name of a stage that works in these folders: prepare, or prepare-ecqa for another training set."""
        return f"{name}-{self.benchmark}" if self.prefix else name

    @property
    def prepared(self) -> Path:
        return self.folder.path / f"prepare{self.of_prompts}"

    @property
    def prompts(self) -> Path:
        return self.prepared / f"{self.title}.jsonl"

    @property
    def prepared_dataset(self) -> Path:
        return self.prepared / self.title

    @property
    def tests(self) -> Path:
        return self.prepared / "test"

    def teacher_folder(self, teacher: str) -> Path:
        return self.folder.path / "enhance" / self.teacher_runs[teacher]

    def texts(self, teacher: str, kind: str) -> Path:
        """A teacher's explanations of a kind."""
        return self.teacher_folder(teacher) / f"{self.title}_{kind}.jsonl"

    def explanations(self, kind: str) -> Path:
        """The explanations of a kind, by all its teachers."""
        return self.folder.path / "enhance" / self.kind_runs[kind] / f"{self.title}_{kind}.jsonl"

    @property
    def joined(self) -> Path:
        return self.folder.path / "enhance" / self.joined_run

    @property
    def enhanced_dataset(self) -> Path:
        return self.joined / f"{self.title}{self.chosen}{self.filtered}"

    @property
    def store(self) -> Path:
        return self.folder.path / "finetune"

    @property
    def checkpoints(self) -> Path:
        return self.store / self.name

    @property
    def training_log(self) -> Path:
        return self.checkpoints / "log.jsonl"

    def checkpoint(self, number: int) -> Path | None:
        """The folder of a checkpoint, numbered from 1, or None if finetuning made fewer checkpoints."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
        found.sort(key=lambda path: int(path.name.removeprefix("checkpoint-")))
        return found[number - 1] if number <= len(found) else None

    @property
    def evaluated(self) -> Path:
        return self.folder.path / f"evaluate{self.of_evaluation}"

    @property
    def untrained_scores(self) -> Path:
        return self.evaluated / self.student

    @property
    def scores(self) -> Path:
        return self.evaluated / self.name

    @property
    def chain(self) -> ChainFolder:
        return self.folder.chain(self.name)


@dataclass(frozen=True)
class AtlasLayout:
    """The folders and files of an ATLAS experiment."""

    folder: RunFolder
    data: DataFolder
    name: str
    setting: str

    @property
    def questions(self) -> Path:
        return Path(self.data.questions)

    @property
    def gold(self) -> Path:
        """The questions with the gold answers against which predictions are scored."""
        return self.questions / ("full" if self.setting == "full" else "5-shot-multitask")

    @property
    def experiments(self) -> Path:
        return Path(self.data.experiments)

    @property
    def page(self) -> Path:
        """The folder of the page of all experiments."""
        return self.experiments / "report"

    @property
    def results(self) -> Path:
        return self.experiments / self.name

    def domain_manifest(self, domain: str) -> Path:
        return self.results / domain / "manifest.json"

    @property
    def zeroshot_predictions(self) -> Path:
        return self.results / "combined_test-step-0.jsonl"

    @property
    def chain(self) -> ChainFolder:
        return self.folder.chain(self.name)


def digest_of(value: object) -> str:
    """A short digest of a JSON value, for the name of a folder."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def with_flags(stage: str, flags: Sequence[str]) -> str:
    """What a name gets for further flags of a stage; an empty text if there are none."""
    return f"_{stage}-{digest_of(list(flags))}" if flags else ""


def joined_teachers(teachers: Mapping[str, str]) -> str:
    """One name for all teachers: that of the teacher if it makes all kinds, otherwise cot-A+error-B_DIGEST.

    Args:
        teachers: kind of explanation -> name of its teacher, or of several (`mixed_teachers`).
    """
    if len(set(teachers.values())) == 1:
        return next(iter(teachers.values()))
    readable = "+".join(f"{kind}-{teacher}" for kind, teacher in teachers.items())
    return f"{cut_name(readable, LONGEST_NAME // 2)}_{digest_of(sorted(teachers.items()))}"


def mixed_teachers(names: Sequence[str]) -> str:
    """One name for the teachers whose texts of a kind are mixed: A+B_DIGEST; the name itself if there is only one."""
    if len(names) == 1:
        return names[0]
    return f"{cut_name('+'.join(names), LONGEST_NAME // 2)}_{digest_of(list(names))}"


def short_name(name: str) -> str:
    """A name of at most LONGEST_NAME bytes. A longer one is cut, and ends with the digest of the whole name."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return f"{cut_name(name, LONGEST_NAME - 9)}_{digest_of(name)}"


def cut_name(name: str, most: int) -> str:
    """The beginning of a name, with at most this number of bytes."""
    return os.fsencode(name)[:most].decode("utf-8", "ignore")


def run_folder(runs: str, benchmark: str, limit: str | None) -> RunFolder:
    return RunFolder(Path(runs) / benchmark / (f"limit-{limit}" if limit else "all"))


def atlas_run_folder(runs: str, setting: str) -> RunFolder:
    return RunFolder(Path(runs) / "atlas" / setting)


def submitted_chains(runs: Path) -> list[ChainFolder]:
    """All chains below RUNS that have a list of jobs, ordered by the time of submission."""
    lists = sorted(runs.glob("*/*/chains/*/jobs.tsv"), key=lambda path: path.lstat().st_mtime)
    return [ChainFolder(path.parent) for path in lists]


def is_atlas(chain: ChainFolder) -> bool:
    return chain.run_folder.parent.name == "atlas"
