"""The two-level bootstrap: how far a mean over seeds and questions, or the difference of two such means, may be off.

A resample draws the seeds of each group with replacement, and the questions with replacement. The questions are the
same for all seeds that were drawn and for both groups, so the comparison stays paired. With one seed this is the
bootstrap of the questions. Source: the pigeonhole bootstrap (Owen 2007, The Annals of Applied Statistics 1(2)).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
NUMBERS_AT_A_TIME = 2**22
"""Maximum number of counts that are drawn at once. They take 8 bytes each."""
ROUNDING = 1e-12
"""Differences up to this size are zero; sums of rounded numbers differ by less."""


class Difference(NamedTuple):
    """The difference of two means: its 95 % interval, and its two-sided p-value."""

    interval_95: tuple[float, float]
    p: float


def mean_interval(right_SQ: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds and questions: percentiles over resamples of both.

    Args:
        right_SQ: the value of each seed (rows, S) on each question (columns, Q).
    """
    [means_R] = resampled_means([right_SQ])
    return percentiles(means_R)


def difference_of(first_SQ: np.ndarray, second_TQ: np.ndarray) -> Difference:
    """The interval and the p-value of the second group's mean minus the first group's.

    p is twice the share of the resamples whose difference has the sign that is rarer, or is zero. It is at least
    2 / (RESAMPLES + 1) and at most 1.

    Args:
        first_SQ, second_TQ: the values of each group's seeds (rows) on the same questions (columns). The groups may
            have different numbers of seeds.
    """
    first_R, second_R = resampled_means([first_SQ, second_TQ])
    differences_R = second_R - first_R
    rarer = min((differences_R <= ROUNDING).sum(), (differences_R >= -ROUNDING).sum())
    return Difference(percentiles(differences_R), min(1.0, 2 * (int(rarer) + 1) / (RESAMPLES + 1)))


def percentiles(values_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)


def resampled_means(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mean of each group in each resample, a row of RESAMPLES numbers per group.

    Questions on which all seeds have the same values are drawn together, as one multinomial number: how often one of
    them is drawn. Right and wrong answers of few seeds have few different columns, so that this is fast.

    Args:
        groups: for each group, the values of its seeds (rows) on the questions (columns, the same for all groups).
    """
    columns_NP, counts_P = np.unique(np.concatenate(groups), axis=1, return_counts=True)
    questions = int(counts_P.sum())
    draw = np.random.default_rng(0)
    seeds = [draw.multinomial(len(group), [1 / len(group)] * len(group), RESAMPLES) for group in groups]
    pieces = []
    at_a_time = max(1, NUMBERS_AT_A_TIME // len(counts_P))
    for start in range(0, RESAMPLES, at_a_time):
        drawn_RP = draw.multinomial(questions, counts_P / questions, min(at_a_time, RESAMPLES - start))
        pieces.append(drawn_RP @ columns_NP.T)  # the sum of each seed in each resample
    sums_RN = np.concatenate(pieces)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [
        (times * sums).sum(1) / (len(group) * questions)  # divided last, so that sums of 0 and 1 are exact
        for group, times, sums in zip(groups, seeds, np.split(sums_RN, ends, axis=1), strict=True)
    ]
