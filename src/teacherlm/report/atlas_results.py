"""The ATLAS experiments in a folder: accuracies of their predictions, counted as in evaluate_mmlu_predictions.py.

An experiment is a folder with predictions, {name}-step-{n}.jsonl, or with such folders (the 5-shot setting has one per
domain). Its step is the one with the best debiased accuracy on validation questions, or the last step without them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teacherlm.atlas.predictions import read_predictions
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.records import Record
from teacherlm.core.terminal import plural
from teacherlm.report import sections
from teacherlm.report.comparisons import PAIRS_HEAD, pair_row
from teacherlm.report.figures import Line, draw
from teacherlm.report.page import Part, Section
from teacherlm.report.significance import compare, wilson, with_holm
from teacherlm.report.training_run import Run, read_log

PREDICTIONS = re.compile(r"(?:^|[._-])(test|valid|val)-step-(\d+)\.jsonl$")

PAPER = {"zeroshot": 0.471, "5-shot": 0.479, "5-shot-multi": 0.566, "full": 0.660}
"""Setting -> debiased accuracy of ATLAS with 11 billion parameters (Izacard et al. 2022, arXiv 2208.03299)."""

Question = tuple[str, str, str]
"""(domain, question, options)."""
Marks = dict[Question, tuple[bool, bool]]
"""Question -> (whether the choice is right, whether the debiased choice is right)."""


@dataclass
class Experiment:
    """An experiment: its marks of test and of validation questions by step, and its log if it trained."""

    name: str
    test: dict[int, Marks] = field(default_factory=lambda: defaultdict(dict))
    valid: dict[int, Marks] = field(default_factory=lambda: defaultdict(dict))
    log: list[Record] = field(default_factory=list)

    @property
    def paper(self) -> float | None:
        """The paper's accuracy for the setting at the end of the name, as in xl-mmlu-5-shot."""
        setting = re.search(rf"mmlu-({'|'.join(PAPER)})$", self.name)
        return PAPER[setting[1]] if setting else None

    @property
    def step(self) -> int:
        """The step that is reported: the best on validation questions; of equally good ones, the first."""
        steps = [step for step in sorted(self.test) if step in self.valid]
        if not steps:
            return max(self.test)
        return max(steps, key=lambda step: (accuracy(self.valid[step], 1), -step))


def is_atlas_folder(folder: Path) -> bool:
    return any(PREDICTIONS.search(path.name) for path in prediction_files(folder))


def prediction_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("*/*-step-*.jsonl", "*/*/*-step-*.jsonl") for path in folder.glob(pattern))


def read_experiments(folder: Path, missing: list[str]) -> list[Experiment]:
    """The experiments, ordered by name. Predictions that cannot be read are reported in `missing`."""
    experiments: dict[str, Experiment] = {}
    for path in prediction_files(folder):
        match = PREDICTIONS.search(path.name)
        if not match or path.name.startswith("."):
            continue
        name = path.relative_to(folder).parts[0]
        experiment = experiments.setdefault(name, Experiment(name, log=read_log(folder / name / "log.jsonl", missing)))
        marks = (experiment.test if match[1] == "test" else experiment.valid)[int(match[2])]
        try:
            for found in read_predictions(path):
                answer = found.record.get("answer")
                right = (found.choice == answer, found.debiased == answer)
                marks[found.domain, found.question, found.options] = right
        except UserError as error:
            missing.append(f"atlas: {one_line(error)}")
        if not manifests.manifest_of(path).is_file():
            so_far = plural(len(marks), "question")
            missing.append(f"atlas: {path.relative_to(folder)} is not finished: {so_far} so far")
    for experiment in experiments.values():
        experiment.test = {step: marks for step, marks in experiment.test.items() if marks}
        experiment.valid = {step: marks for step, marks in experiment.valid.items() if marks}
        if not experiment.test:
            missing.append(f"atlas: {experiment.name} has no predictions for test questions")
    return [experiment for _, experiment in sorted(experiments.items()) if experiment.test]


def accuracy(marks: Mapping[Question, tuple[bool, bool]], which: int) -> float:
    """The accuracy of the choices (which=0) or of the debiased choices (which=1)."""
    return sum(mark[which] for mark in marks.values()) / len(marks)


def atlas_sections(experiments: Sequence[Experiment]) -> list[Section]:
    return [accuracies(experiments), comparisons(experiments), categories(experiments), training(experiments)]


def accuracies(experiments: Sequence[Experiment]) -> Section:
    head = ["experiment", "step", "questions", "accuracy", sections.INTERVAL, "debiased accuracy", sections.INTERVAL]
    head += ["the paper's debiased accuracy (not measured here)"]
    rows = []
    for experiment in experiments:
        marks = experiment.test[experiment.step]
        measured = [part for which in (0, 1) for part in (accuracy(marks, which), interval_of(marks, which))]
        rows.append((experiment.name, experiment.step, len(marks), *measured, experiment.paper))
    lines = [valid_line(experiment) for experiment in experiments if len(experiment.valid) > 1]
    words = (
        "Accuracy on test questions, at the step that is the best on validation questions. Debiased: averaged over "
        "orders of the choices. The last column is ATLAS with 11 billion parameters on all 14,042 questions (Izacard "
        "et al. 2022)."
    )
    parts = [
        Part("", words, draw(lines, "step", "debiased accuracy, validation") if lines else "", head, rows, "atlas")
    ]
    return Section("accuracy", "Accuracy", parts if rows else [])


def valid_line(experiment: Experiment) -> Line:
    steps = sorted(experiment.valid)
    return Line(experiment.name, steps, [accuracy(experiment.valid[step], 1) for step in steps])


def interval_of(marks: Marks, which: int) -> tuple[float, float]:
    return wilson(sum(mark[which] for mark in marks.values()), len(marks))


def comparisons(experiments: Sequence[Experiment]) -> Section:
    answers = {e.name: {q: mark[1] for q, mark in e.test[e.step].items()} for e in experiments}
    names = list(answers)
    pairs = [compare(a, answers[a], b, answers[b]) for n, a in enumerate(names) for b in names[n + 1 :]]
    rows = [pair_row(pair) for pair in with_holm([pair for pair in pairs if pair.n])]
    words = "Comparison of the debiased choices of two experiments on the same questions; see docs/reference/report.md."
    parts = [Part("", words, head=PAIRS_HEAD, rows=rows, name="pairs-atlas")] if rows else []
    return Section("comparisons", "Comparisons", parts)


def categories(experiments: Sequence[Experiment]) -> Section:
    """Accuracy and debiased accuracy by category and by subject."""
    groups: dict[str, Any] = dict(load_benchmark("mmlu").groups)
    domains = sorted({question[0] for e in experiments for question in e.test[e.step]})
    known = {name: set(members) & set(domains) for name, members in groups.items()}
    parts = []
    for title, rows_of in (("categories", known), ("subjects", {domain: {domain} for domain in domains})):
        rows = []
        for name, members in rows_of.items():
            marks = [{q: m for q, m in e.test[e.step].items() if q[0] in members} for e in experiments]
            if any(marks):
                rows.append((name, *(accuracy(found, which) if found else None for found in marks for which in (0, 1))))
        head = (title, *(f"{e.name}, {kind}" for e in experiments for kind in ("accuracy", "debiased")))
        if rows:
            parts.append(Part(title.capitalize(), head=head, rows=rows, name=f"atlas-{title}"))
    return Section("categories", "Categories and subjects", parts)


def training(experiments: Sequence[Experiment]) -> Section:
    """Losses and the reader's learning rate, which is the first of the two logged rates."""
    logs = {e.name: [with_first_rate(line) for line in e.log] for e in experiments}
    return sections.training([Run(name, "", log) for name, log in logs.items()])


def with_first_rate(line: Record) -> Record:
    rates = line.get("learning_rates", ())
    return {**line, "learning_rate": rates[0]} if rates else line
