"""The two-level bootstrap, against a slow loop with another random generator, a closed formula, and its limits."""

import random

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from teacherlm.report import resampling
from teacherlm.report.resampling import difference_of, mean_interval, resampled_means
from teacherlm.report.significance import bootstrap


def answers(seeds: int, questions: int, accuracy: float, draw: np.random.Generator) -> np.ndarray:
    """Right and wrong answers. Some questions are harder than others, and some seeds are better."""
    difficulty_Q = draw.normal(0, 0.25, questions)
    skill_S = draw.normal(0, 0.08, seeds)
    return (draw.random((seeds, questions)) < accuracy + difficulty_Q + skill_S[:, None]).astype(float)


def slow_means(groups: list[np.ndarray], resamples: int) -> list[list[float]]:
    """The mean of each group in each resample, one drawn answer after the other, with Python's random numbers."""
    draw = random.Random(7)
    found: list[list[float]] = []
    for _ in range(resamples):
        count = groups[0].shape[1]
        questions = [draw.randrange(count) for _ in range(count)]
        of_groups = []
        for group in groups:
            rows = group.tolist()
            seeds = [draw.choice(rows) for _ in rows]
            total = sum(row[question] for row in seeds for question in questions)
            of_groups.append(total / (len(seeds) * count))
        found.append(of_groups)
    return [list(means) for means in zip(*found, strict=True)]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_of_a_mean_is_that_of_a_slow_loop(seeds: int) -> None:
    right_SQ = answers(seeds, 40, 0.6, np.random.default_rng(seeds))
    [means] = slow_means([right_SQ], 4000)
    expected = np.percentile(means, [2.5, 97.5])
    assert mean_interval(right_SQ) == pytest.approx(tuple(expected), abs=0.06 * (expected[1] - expected[0]))


def test_a_difference_is_that_of_a_slow_loop() -> None:
    """The groups have different numbers of seeds, and the same questions are drawn for both."""
    draw = np.random.default_rng(0)
    difficulty_Q = draw.normal(0, 0.3, 50)
    first_SQ = (draw.random((3, 50)) < 0.5 + difficulty_Q).astype(float)
    second_TQ = (draw.random((4, 50)) < 0.6 + difficulty_Q).astype(float)
    first, second = slow_means([first_SQ, second_TQ], 4000)
    differences = np.subtract(second, first)
    low, high = np.percentile(differences, [2.5, 97.5])
    found = difference_of(first_SQ, second_TQ)
    assert found.interval_95 == pytest.approx((low, high), abs=0.06 * (high - low))
    rarer = min((differences <= 1e-12).mean(), (differences >= -1e-12).mean())
    assert found.p == pytest.approx(2 * rarer, abs=0.02)


@pytest.mark.parametrize(("seeds", "questions"), [(1, 100), (2, 30), (3, 400), (6, 15)])
def test_the_variance_is_that_of_the_formula(seeds: int, questions: int) -> None:
    """Two resampled answers share a seed, a question, both or neither. Their covariances make the variance."""
    right_SQ = answers(seeds, questions, 0.55, np.random.default_rng(questions))
    [means_R] = resampled_means([right_SQ])
    parts = right_SQ.var() + (questions - 1) * right_SQ.mean(1).var() + (seeds - 1) * right_SQ.mean(0).var()
    assert means_R.var() == pytest.approx(parts / (seeds * questions), rel=0.06)
    assert means_R.mean() == pytest.approx(right_SQ.mean(), abs=4 * means_R.std() / 100)


def test_one_seed_is_the_bootstrap_of_the_questions() -> None:
    first, second = answers(1, 300, 0.5, np.random.default_rng(1)), answers(1, 300, 0.7, np.random.default_rng(2))
    options = {"n_resamples": 10_000, "method": "percentile", "batch": 100, "rng": np.random.default_rng(3)}
    expected = scipy_bootstrap((first[0],), np.mean, **options).confidence_interval
    width = expected.high - expected.low
    assert mean_interval(first) == pytest.approx(tuple(expected), abs=0.05 * width)
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    paired = bootstrap(300, only_first, only_second)
    found = difference_of(first, second).interval_95
    assert found == pytest.approx(paired, abs=0.05 * (paired[1] - paired[0]))


def test_identical_seeds_say_no_more_than_one() -> None:
    one = answers(1, 200, 0.6, np.random.default_rng(4))
    low, high = mean_interval(one)
    assert mean_interval(np.repeat(one, 4, axis=0)) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_groups_that_never_differ() -> None:
    same = answers(3, 60, 0.5, np.random.default_rng(5))[:1].repeat(3, axis=0)
    assert difference_of(same, same[:2]) == ((0.0, 0.0), 1.0)


def test_a_difference_in_the_other_direction_has_the_same_p() -> None:
    draw = np.random.default_rng(6)
    first, second = answers(3, 100, 0.5, draw), answers(3, 100, 0.75, draw)
    forth, back = difference_of(first, second), difference_of(second, first)
    assert forth.interval_95 == pytest.approx((-back.interval_95[1], -back.interval_95[0]), abs=0.01)
    assert forth.p < 0.01 and back.p < 0.01


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many different questions are drawn in pieces, with the same outcome but for the random numbers."""
    right_SQ = answers(6, 500, 0.6, np.random.default_rng(8))
    low, high = mean_interval(right_SQ)
    monkeypatch.setattr(resampling, "NUMBERS_AT_A_TIME", 1000)
    assert mean_interval(right_SQ) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "deviation", "held", "significant"),
    [(3, 0.1, 0.97, 0.02), (3, 0.3, 0.89, 0.11), (5, 0.3, 0.94, 0.06), (10, 0.3, 0.94, 0.04)],
)
def test_how_often_intervals_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch, seeds: int, deviation: float, held: float, significant: float
) -> None:
    """The table in docs/reference/report.md. The deviation of a seed is in logits: 0.1 is some 2 points of accuracy."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1000)
    draw = np.random.default_rng(1)

    def logistic(logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logits))

    def group(difficulty_Q: np.ndarray) -> np.ndarray:
        logits_SQ = difficulty_Q + draw.normal(0, deviation, (seeds, 1)) + draw.normal(0, 0.7, (seeds, 500))
        return (draw.random((seeds, 500)) < logistic(logits_SQ)).astype(float)

    truth = logistic(draw.normal(0, np.sqrt(1.5**2 + deviation**2 + 0.7**2), 2_000_000)).mean()
    found = []
    for _ in range(400):
        difficulty_Q = draw.normal(0, 1.5, 500)
        first_SQ, second_SQ = group(difficulty_Q), group(difficulty_Q)
        low, high = mean_interval(first_SQ)
        found.append((low <= truth <= high, difference_of(first_SQ, second_SQ).p < 0.05))
    assert np.mean(found, axis=0) == pytest.approx([held, significant], abs=0.045)
