"""The MMLU table of a run's predictions: accuracy with the options in their own order, and debiased over permutations.

--predictions_path is a file of predictions, or, for the 5-shot setting, a folder with one run for each of the 57
domains, {domain}/{domain}.{split}-step-{step}.jsonl or {domain}/{domain}-{split}-step-{step}.jsonl. Categories are
averages over questions (micro-averages).
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from teacherlm.benchmarks import load_benchmark
from teacherlm.errors import Parser, UserError, run
from teacherlm.records import Record, read_records

CATEGORIES = {"humanities": "humanities", "Soc Sci.": "social_sciences", "STEM": "stem", "other": "other"}
"""The table's name -> the group of benchmarks/mmlu.yaml."""
SPLIT_ENDINGS = ("_test", "_valid", "_val", "_dev")

Key = tuple[str, str]
"""What a question is found by: its text and its options."""
Predictions = dict[str, dict[Key, tuple[str, str]]]
"""Domain -> question -> (choice, debiased choice)."""


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions_path", type=Path, required=True)
    parser.add_argument("--gold_path", type=Path, required=True, help="the questions, with their answers")
    parser.add_argument("--step", type=int, default=16, help="of a folder's files (default: 16)")
    parser.add_argument("--split", default="valid", help="of a folder's files (default: valid)")
    args = parser.parse_args()
    gold = read_gold(args.gold_path)
    if args.predictions_path.is_dir():
        found = [domain_file(args.predictions_path, domain, args.split, args.step) for domain in sorted(gold)]
    else:
        found = [args.predictions_path]
    predictions: Predictions = {}
    for file in found:
        read_predictions(file, predictions)
    require_all(gold, predictions, args.predictions_path)
    print(f"predictions for {args.predictions_path}")
    print(table(gold, predictions))


def domain_file(folder: Path, domain: str, split: str, step: int) -> Path:
    """The predictions of one domain, in either spelling of the documentation; `valid` is also called val."""
    splits = {"valid": ("valid", "val"), "val": ("val", "valid")}.get(split, (split,))
    names = [f"{domain}{mark}{name}-step-{step}.jsonl" for name in splits for mark in ".-"]
    for name in names:
        if (folder / domain / name).is_file():
            return folder / domain / name
    raise UserError(f"{folder / domain / names[0]}: no such file; did the run of {domain} reach step {step}?")


def domain_of(dataset: str) -> str:
    """`anatomy_test` -> `anatomy`."""
    ending = next((ending for ending in SPLIT_ENDINGS if dataset.endswith(ending)), "")
    return dataset.removesuffix(ending)


def key_of(question: Mapping[str, Any]) -> Key:
    return question["question"], str(question["options"])


def read_gold(path: Path) -> dict[str, dict[Key, str]]:
    gold: dict[str, dict[Key, str]] = {}
    for number, question in read_records(path):
        require_fields(question, ("question", "options", "answer", "dataset"), f"{path}, line {number}")
        gold.setdefault(domain_of(question["dataset"]), {})[key_of(question)] = question["answer"]
    return gold


def read_predictions(path: Path, into: Predictions) -> None:
    for number, record in read_records(path):
        where = f"{path}, line {number}"
        asked = record.get("permutations", record.get("permuatations"))  # the reference's older spelling
        original = next((p for p in asked or [] if p.get("metadata", {}).get("is_original")), None)
        if original is None:
            raise UserError(f"{where}: no prediction of evaluate.py: it has no permutation with the original order")
        require_fields(original, ("choice_logits",), where)
        logits = original["choice_logits"]
        choice = max(logits, key=lambda letter: logits[letter])
        question = original["metadata"]
        into.setdefault(domain_of(question["dataset"]), {})[key_of(question)] = (choice, record["generation"])


def require_fields(record: Record, names: Iterable[str], where: str) -> None:
    missing = next((name for name in names if name not in record), None)
    if missing:
        raise UserError(f"{where}: the field {missing!r} is missing")


def require_all(gold: Mapping[str, Mapping[Key, str]], predictions: Predictions, path: Path) -> None:
    """Refuse to score a part: every question needs its prediction."""
    missing = {
        domain: count
        for domain, questions in sorted(gold.items())
        if (count := len(questions.keys() - predictions.get(domain, {}).keys()))
    }
    if missing:
        listed = ", ".join(f"{domain} ({count} of {len(gold[domain])})" for domain, count in missing.items())
        raise UserError(f"{path}: {sum(missing.values())} predictions are missing: {listed}; evaluate them first")


def table(gold: Mapping[str, Mapping[Key, str]], predictions: Predictions) -> str:
    """A row a category that has questions, and one of all."""
    groups = load_benchmark("mmlu").groups
    known = {name: [domain for domain in groups[group] if domain in gold] for name, group in CATEGORIES.items()}
    rows = {**{name: domains for name, domains in known.items() if domains}, "all": list(gold)}
    lines = [f"{'category':>15}\t{'Acc(%)':>15}\t{'Debias Acc(%)':>15}", "-" * 47]
    for name, domains in rows.items():
        pairs = [(predictions[d][key], answer) for d in domains for key, answer in gold[d].items()]
        accuracy, debiased = (100 * sum(p[n] == answer for p, answer in pairs) / len(pairs) for n in (0, 1))
        lines.append(f"{name:>15}\t{accuracy:>15.2f}\t{debiased:>15.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
