"""Tests whether two models differ on the same questions: McNemar's exact test, and a bootstrap of the difference."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from teacherlm.report.scored import Question, Scored

RESAMPLES = 10_000


@dataclass(frozen=True)
class Pair:
    """A comparison of two models on the questions that both have answered.

    Attributes:
        first, second: the models' names.
        n: the number of questions.
        only_first, only_second: the number of questions that only this model answers correctly.
        difference: the accuracy of the second model minus that of the first.
        interval_95: the interval of the difference, by the bootstrap.
        p: the p-value of McNemar's exact two-sided test.
        p_holm: the p-value, corrected for the number of pairs (Holm 1979).
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
    """The comparisons of all pairs of models, with p corrected for all. Pairs without common questions are left out."""
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
    """The two-sided p of McNemar's exact test (1947) of whether one model alone is right more often than the other."""
    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def bootstrap(n: int, only_first: int, only_second: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies: percentiles over resamples of the questions.

    A paired difference is -1, 0 or 1. A resample is therefore a multinomial draw of the numbers of these three values.
    """
    probabilities = [only_first / n, (n - only_first - only_second) / n, only_second / n]
    drawn = np.random.default_rng(0).multinomial(n, probabilities, RESAMPLES)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / n, [2.5, 97.5])
    return float(low), float(high)


def with_holm(pairs: list[Pair]) -> list[Pair]:
    """The pairs with p_holm set: the kth smallest p times the number of p from the kth on, made monotone, at most 1."""
    corrected, worst = {}, 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair.p)):
        worst = max(worst, min(1.0, pair.p * (len(pairs) - rank)))
        corrected[id(pair)] = worst
    return [Pair(**{**vars(pair), "p_holm": corrected[id(pair)]}) for pair in pairs]
