"""The section of comparisons: models in pairs, on the questions that both were asked."""

from collections.abc import Iterable, Sequence

from teacherlm.report.page import Cell, Part, Section
from teacherlm.report.replicates import Model, final_models, replicates
from teacherlm.report.scored import Scored
from teacherlm.report.sections import INTERVAL
from teacherlm.report.significance import Pair, compare_all
from teacherlm.report.training_run import Run

PAIRS_HEAD: tuple[str, ...] = (
    "first",
    "second",
    "questions",
    "right: first only",
    "right: second only",
    "difference",
    INTERVAL,
)
P_EXACT = "p (McNemar, exact)"
PAIRS_HEAD += (P_EXACT, "p (Holm)")
MOST_PAIRED = 12
"""Maximum number of models whose pairs are all compared. With more, each run is only compared with its student."""


def all_pairs(runs: Sequence[Run], untrained: Sequence[Scored], task: str) -> list[Pair]:
    groups = replicates(runs)
    models: list[Model] = [scored for scored in untrained if scored.task == task]
    models += [model for group in groups for model in final_models(group, task)]
    if len(models) <= MOST_PAIRED:
        return compare_all(models)
    pairs = []
    for group in groups:
        before = [scored for scored in group[0].scored if not scored.step and scored.task == task]
        pairs += compare_all([*before, *final_models(group, task)])
    return pairs


def comparisons(runs: Sequence[Run], untrained: Sequence[Scored], tasks: Iterable[str]) -> Section:
    parts = []
    for task in tasks:
        pairs = all_pairs(runs, untrained, task)
        words = (
            "Untrained students and last checkpoints on the same questions. The difference is the accuracy of the "
            "second minus that of the first, with the 95 % interval of 10,000 bootstrap resamples of the questions. p "
            "is from McNemar's exact two-sided test; p (Holm) is corrected for the number of pairs."
        )
        rows, members = pair_rows(pairs)
        head = PAIRS_HEAD
        if not all(pair.is_exact for pair in pairs):
            words += f" {RESAMPLED}"
            head = tuple("p" if title == P_EXACT else title for title in PAIRS_HEAD)
        if members:
            words += f" {OF_SINGLES}"
        if rows:
            part = Part(task, words, head=head, rows=rows, name=f"pairs-{task}", members=frozenset(members))
            parts.append(part)
    return Section("comparisons", "Comparisons", parts)


RESAMPLED = (
    "In a row without numbers of right answers, interval and p are from 10,000 resamples of the questions, and of the "
    "seeds if there are several."
)
OF_SINGLES = "Below a row of several seeds are the comparisons of single seeds, which p (Holm) does not count."


def pair_rows(pairs: Iterable[Pair]) -> tuple[list[Sequence[Cell]], set[int]]:
    """The rows of a table of comparisons, and the numbers of those rows that compare single seeds of the row above."""
    rows: list[Sequence[Cell]] = []
    members: set[int] = set()
    for pair in pairs:
        rows.append(pair_row(pair))
        members |= {len(rows) + place for place in range(len(pair.singles))}
        rows += map(pair_row, pair.singles)
    return rows, members


def pair_row(pair: Pair) -> Sequence[Cell]:
    counts = (pair.n, pair.only_first, pair.only_second)
    return (pair.first, pair.second, *counts, pair.difference, pair.interval_95, pair.p, pair.p_holm)
