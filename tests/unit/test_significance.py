"""Comparisons of answers that are neither right nor wrong. tests/stages/test_report_compare.py has the other tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from teacherlm.report.lm_eval_matching import scored_as
from teacherlm.report.resampling import difference_of
from teacherlm.report.scored import Scored
from teacherlm.report.significance import compare_models


def scored(name: str, values: Sequence[float]) -> Scored:
    records = [{"doc_id": number, "prompt": f"Question {number}?", "acc": value} for number, value in enumerate(values)]
    return scored_as(name, Path(name), "task", "acc", records)


def test_shares_of_right_answers_are_compared_on_all_questions() -> None:
    """Questions that are right in every answer or in none must not be the only ones that count."""
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 5, 100) / 4, draw.integers(1, 5, 100) / 4
    pair = compare_models(scored("first", first.tolist()), scored("second", second.tolist()))
    expected = difference_of(first[None], second[None])
    assert (pair.n, pair.only_first, pair.only_second, pair.is_exact) == (100, None, None, False)
    assert pair.difference == pytest.approx(second.mean() - first.mean())
    assert (pair.interval_95, pair.p, pair.singles) == (*expected, ())


def test_right_and_wrong_answers_have_the_exact_test() -> None:
    pair = compare_models(scored("first", [1, 0, 1, 1]), scored("second", [1, 1, 1, 0]))
    assert (pair.n, pair.only_first, pair.only_second, pair.p, pair.is_exact) == (4, 1, 1, 1, True)


def test_a_metric_that_is_no_mean_is_not_compared() -> None:
    one = scored("one", [0.5, 0.25, 0.0])
    one.result["value"] = 0.9
    assert one.answers.values == {}
    assert compare_models(one, scored("other", [1, 1, 0])).n == 0
