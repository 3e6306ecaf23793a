"""Whether two models differ: on the same questions, by McNemar's exact test and a bootstrap of the difference."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from teacherlm.report.scored import Question, Scored

RESAMPLES = 10_000


@dataclass(frozen=True)
class Pair:
    """Two models on the questions that both were asked.

    Attributes:
        first, second: their names.
        n: the number of questions.
        only_first, only_second: how many the one answers rightly and the other does not.
        difference: accuracy of the second minus that of the first.
        interval_95: of the difference, by the bootstrap.
        p: of McNemar's exact test, two-sided.
        p_holm: the same, corrected for the number of pairs (Holm 1979).
    """

    first: str
    second: str
    n: int
    only_first: int
    only_second: int
    difference: float
    interval_95: tuple[float, float]
    p: float
    p_holm: float = 1.0


def compare_all(models: Iterable[Scored]) -> list[Pair]:
    """Each model with each later one, p corrected for all of them together; pairs without a common question are out."""
    answers = {scored.name: scored.answers.right for scored in models}
    pairs = [compare(a, answers[a], b, answers[b]) for a, b in itertools.combinations(answers, 2)]
    return with_holm([pair for pair in pairs if pair.n])


def compare(first: str, a: Mapping[Question, bool], second: str, b: Mapping[Question, bool]) -> Pair:
    common = a.keys() & b.keys()
    only_a = sum(a[question] and not b[question] for question in common)
    only_b = sum(b[question] and not a[question] for question in common)
    n = len(common)
    if not n:
        return Pair(first, second, 0, 0, 0, 0.0, (0.0, 0.0), 1.0)
    interval = bootstrap(n, only_a, only_b)
    return Pair(first, second, n, only_a, only_b, (only_b - only_a) / n, interval, mcnemar(only_a, only_b))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's test (1947) in its exact form: is either model right alone more often than the other?"""
    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def bootstrap(n: int, only_first: int, only_second: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies, over resamples of the questions (percentiles).

    A resample of paired differences is a draw of how many are -1, 0 and 1, so these three counts are all it needs.
    """
    shares = [only_first / n, (n - only_first - only_second) / n, only_second / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, RESAMPLES)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / n, [2.5, 97.5])
    return float(low), float(high)


def with_holm(pairs: list[Pair]) -> list[Pair]:
    """The pairs with p_holm set: the kth smallest p times the number of those from it on, never falling, at most 1."""
    corrected, worst = {}, 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair.p)):
        worst = max(worst, min(1.0, pair.p * (len(pairs) - rank)))
        corrected[id(pair)] = worst
    return [Pair(**{**vars(pair), "p_holm": corrected[id(pair)]}) for pair in pairs]
