"""Print the MMLU table of a run's predictions: accuracy in the original order of options, and debiased accuracy.

--predictions_path is a file of predictions, or a run's folder (with combined_{split}-step-{step}.jsonl). For the 5-shot
setting it is a folder with a run for each of the 57 domains (with {domain}/{domain}.{split}-step-{step}.jsonl or
{domain}/{domain}-{split}-step-{step}.jsonl); then a table of the domains is printed too. The values of categories are
averages over questions (micro-averages).

--select-step chooses the step whose validation predictions have the best debiased accuracy, and scores the test split
at that step.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherlm.atlas.predictions import domain_of, read_predictions, require_fields
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.core.errors import UserError
from teacherlm.core.flags import flag, parse
from teacherlm.core.names import is_plain_name
from teacherlm.core.records import read_records
from teacherlm.core.terminal import plural, shown
from teacherlm.core.trees import files_below

CATEGORIES = {"humanities": "humanities", "Soc Sci.": "social_sciences", "STEM": "stem", "other": "other"}
"""Maps each category in the table to the group in benchmarks/mmlu.yaml."""
VALIDATION = re.compile(r"[._-]val(?:id)?-step-(\d+)\.jsonl$")

Key = tuple[str, str]
"""The text of a question and its options, which identify it."""
Predictions = dict[str, dict[Key, tuple[str, str]]]
"""Maps domain -> question -> (choice, debiased choice)."""


@dataclass(frozen=True)
class ScoresFlags:
    """Which predictions are scored, and with which answers."""

    predictions_path: Path = flag(help="a file of predictions, or a folder with such files")
    gold_path: Path = flag(help="the file of questions with their answers")
    step: int = flag(16, help="the step of the files in a folder (default: 16)")
    split: str = flag("valid", help="the split of the files in a folder (default: valid)")
    select_step: Path | None = flag(
        None,
        spelled=("--select-step",),
        metavar="GOLD",
        help="choose the step by the predictions for these validation questions, and score the test split",
    )


def main() -> None:
    flags = parse(
        ScoresFlags,
        __doc__,
        example="teacherlm atlas-scores --predictions_path experiments/xl-mmlu-full --gold_path test.jsonl",
    )
    path = predictions_there(flags.predictions_path)
    gold = read_gold(flags.gold_path)
    step, split = flags.step, flags.split
    if flags.select_step:
        step, split = select_step(path, read_gold(flags.select_step)), "test"
    predictions = read_all(path, sorted(gold), split, step)
    require_all(gold, predictions, path)
    print(f"predictions for {path}" + (f", step {step}" if path.is_dir() else ""))
    if path.is_dir() and not is_one_run(path):
        print(table(gold, predictions, {domain: [domain] for domain in sorted(gold)}), end="\n\n")
    print(table(gold, predictions, categories(gold)))


def predictions_there(path: Path) -> Path:
    """The file or folder of predictions, which must exist.

    The documentation of the zero-shot experiment names step 1, but a run without training writes step 0, also in the
    reference. In this case the file of step 0 is used, and a line says so.

    Raises:
        UserError: it does not exist; the message names existing predictions for the same questions.
    """
    if path.exists():
        return path
    name, mark, _ = path.name.partition("-step-")
    there = steps_there(path.parent, f"{name}{mark}") if mark else []
    if path.name == f"{name}-step-1.jsonl" and [file.name for file in there] == [f"{name}-step-0.jsonl"]:
        print(f"{path}: no such file; {there[0].name} is scored, because a run without training is at step 0")
        return there[0]
    hint = (
        f"there are {', '.join(file.name for file in there)}" if there else "predictions of evaluate.py were expected"
    )
    raise UserError(f"{path}: no such file; {hint}")


def steps_there(folder: Path, beginning: str) -> list[Path]:
    """The files of predictions whose names have this beginning, sorted by step."""
    found = (re.fullmatch(r"(\d+)\.jsonl", path.name.removeprefix(beginning)) for path in folder.glob("*.jsonl"))
    steps = sorted(int(match[1]) for match in found if match)
    return [folder / f"{beginning}{step}.jsonl" for step in steps]


def is_one_run(folder: Path) -> bool:
    """Whether a folder has the predictions of one run for all domains, instead of a run per domain."""
    return any(folder.glob("combined_*-step-*.jsonl"))


def read_all(path: Path, domains: Sequence[str], split: str, step: int) -> Predictions:
    """The predictions in a file, in the folder of a run, or in a folder with a run per domain."""
    if not path.is_dir():
        files = [path]
    elif is_one_run(path):
        files = [named(path, "combined", split, step)]
    else:
        files = [named(path / domain, domain, split, step) for domain in domains]
    predictions: Predictions = {}
    for file in files:
        for found in read_predictions(file):
            key = found.question, found.options
            predictions.setdefault(found.domain, {})[key] = (found.choice, found.debiased)
    return predictions


def select_step(folder: Path, gold: dict[str, dict[Key, str]]) -> int:
    """The step with the best debiased accuracy on validation questions. Among equal ones it is the first.

    Raises:
        UserError: there are no validation predictions.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: --select-step chooses among the steps in a folder; a folder was expected")
    found = {int(match[1]) for file in files_below(folder) if (match := VALIDATION.search(file.name))}
    if not found:
        raise UserError(
            f"{folder}: no validation predictions there (*val*-step-N.jsonl); give --eval_data the validation "
            "questions too"
        )
    scores = {}
    for step in sorted(found):
        predictions = read_all(folder, sorted(gold), "valid", step)
        require_all(gold, predictions, folder)
        right = [predictions[d][key][1] == answer for d, answers in gold.items() for key, answer in answers.items()]
        scores[step] = 100 * sum(right) / len(right)
        print(f"step {step}: {scores[step]:.2f} on {plural(len(right), 'validation question')}")
    return max(scores, key=lambda step: (scores[step], -step))


def named(folder: Path, name: str, split: str, step: int) -> Path:
    """The file of predictions of a domain, or of all ("combined"). Every spelling in the documentation is accepted, and
    the splits `valid` and `val` are the same."""
    splits = {"valid": ("valid", "val"), "val": ("val", "valid")}.get(split, (split,))
    names = [f"{name}{mark}{of_split}-step-{step}.jsonl" for of_split in splits for mark in ".-_"]
    for file in names:
        if (folder / file).is_file():
            return folder / file
    endings = [file.rpartition("-")[0] for file in names]
    there = sorted({file.name for ending in endings for file in steps_there(folder, f"{ending}-")})
    hint = f"there are {', '.join(there)}" if there else f"did the run reach step {step}?"
    raise UserError(f"{folder / names[0]}: no such file; {hint}")


def key_of(question: Mapping[str, Any]) -> Key:
    return question["question"], str(question["options"])


def read_gold(path: Path) -> dict[str, dict[Key, str]]:
    gold: dict[str, dict[Key, str]] = {}
    for number, question in read_records(path):
        where = f"{path}, line {number}"
        require_fields(question, ("question", "options", "answer", "dataset"), where)
        if not is_plain_name(question["dataset"]):  # it becomes the name of a folder
            raise UserError(f"{where}: dataset: the name of a domain was expected, found {shown(question['dataset'])}")
        if not isinstance(question["question"], str) or not isinstance(question["answer"], str):
            raise UserError(f"{where}: the fields question and answer must be texts")
        gold.setdefault(domain_of(question["dataset"]), {})[key_of(question)] = question["answer"]
    return gold


def require_all(gold: Mapping[str, Mapping[Key, str]], predictions: Predictions, path: Path) -> None:
    """Refuse to score if a question has no prediction."""
    missing = {
        domain: count
        for domain, questions in sorted(gold.items())
        if (count := len(questions.keys() - predictions.get(domain, {}).keys()))
    }
    if missing:
        listed = ", ".join(f"{domain} ({count} of {len(gold[domain])})" for domain, count in missing.items())
        lacking = plural(sum(missing.values()), "prediction")
        raise UserError(f"{path}: it lacks {lacking}: {listed}; evaluate them first")


def categories(gold: Mapping[str, Any]) -> dict[str, list[str]]:
    """Maps each category, and "all", to those of its domains that have questions."""
    groups = load_benchmark("mmlu").groups
    known = {name: [domain for domain in groups[group] if domain in gold] for name, group in CATEGORIES.items()}
    return {**{name: domains for name, domains in known.items() if domains}, "all": list(gold)}


def table(gold: Mapping[str, Mapping[Key, str]], predictions: Predictions, rows: Mapping[str, Sequence[str]]) -> str:
    """The table with one row per name, averaged over the questions of its domains."""
    width = max(15, *map(len, rows))
    lines = [f"{'category':>{width}}\t{'Acc(%)':>15}\t{'Debias Acc(%)':>15}", "-" * (width + 32)]
    for name, domains in rows.items():
        pairs = [(predictions[d][key], answer) for d in domains for key, answer in gold[d].items()]
        accuracy, debiased = (100 * sum(p[n] == answer for p, answer in pairs) / len(pairs) for n in (0, 1))
        lines.append(f"{name:>{width}}\t{accuracy:>15.2f}\t{debiased:>15.2f}")
    return "\n".join(lines)
