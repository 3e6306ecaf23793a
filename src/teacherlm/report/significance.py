"""Tests whether two models differ on the same questions: McNemar's exact test, and a bootstrap of the difference.

Where a model has several seeds, the two-level bootstrap (resampling.py) uses all of them for both interval and p. So it
does for answers that are neither right nor wrong, such as the share of right ones of several answers.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from teacherlm.report.replicates import Model, members_of, values_of
from teacherlm.report.resampling import RESAMPLES, difference_of
from teacherlm.report.scored import Question, Scored


@dataclass(frozen=True)
class Pair:
    """A comparison of two models on the questions that both have answered.

    Attributes:
        first, second: the models' names.
        n: the number of questions.
        only_first, only_second: the number of questions that only this model answers correctly. They are None where a
            model has several seeds, or where a value is neither 0 nor 1.
        difference: the accuracy of the second model minus that of the first. That of several seeds is their mean.
        interval_95: the interval of the difference, by the bootstrap.
        p: the p-value of McNemar's exact two-sided test; without the two numbers, that of the two-level bootstrap.
        p_holm: the p-value, corrected for the number of pairs (Holm 1979); None for a pair in `singles`.
        singles: the comparisons of the single seeds.
    """

    first: str
    second: str
    n: int
    only_first: int | None
    only_second: int | None
    difference: float
    interval_95: tuple[float, float]
    p: float
    p_holm: float | None = 1.0
    singles: tuple["Pair", ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether p is from McNemar's exact test."""
        return self.only_first is not None


def compare_all(models: Iterable[Model]) -> list[Pair]:
    """The comparisons of all pairs of models, with p corrected for all. Pairs without common questions are left out."""
    named = {model.name: model for model in models}
    pairs = [compare_models(a, b) for a, b in itertools.combinations(named.values(), 2)]
    return with_holm([pair for pair in pairs if pair.n])


def compare_models(first: Model, second: Model) -> Pair:
    """The comparison of two models, each of which may have several seeds."""
    ours, theirs = members_of(first), members_of(second)
    is_single = len(ours) == len(theirs) == 1
    if is_single and ours[0].answers.right and theirs[0].answers.right:
        return compare(first.name, ours[0].answers.right, second.name, theirs[0].answers.right)
    common = [question for question in ours[0].answers.values if question in theirs[0].answers.values]
    if not common:
        return Pair(first.name, second.name, 0, None, None, 0.0, (0.0, 0.0), 1.0)
    first_SQ, second_SQ = values_of(first, common), values_of(second, common)
    difference = float(second_SQ.mean() - first_SQ.mean())
    singles = () if is_single else tuple(compare_singles(ours, theirs))
    found = difference_of(first_SQ, second_SQ)
    return Pair(first.name, second.name, len(common), None, None, difference, *found, singles=singles)


def compare_singles(ours: Sequence[Scored], theirs: Sequence[Scored]) -> Iterator[Pair]:
    """The comparisons of single seeds: seed by seed if both models have as many, otherwise each seed with each."""
    is_matched = len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True) if is_matched else itertools.product(ours, theirs):
        yield replace(compare_models(a, b), p_holm=None)


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
    return [replace(pair, p_holm=corrected[id(pair)]) for pair in pairs]


def wilson(right: int, questions: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of an accuracy."""
    interval = binomtest(right, questions).proportion_ci(method="wilson")
    return interval.low, interval.high
