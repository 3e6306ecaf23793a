"""Learning rates and refreshes of the index, at the steps where they change."""

import math

import pytest

from teacherlm.atlas.schedules import IndexRefresh, learning_rate
from teacherlm.core.errors import UserError


def test_learning_rates() -> None:
    linear = learning_rate("linear", 10, 110)
    assert [linear(step) for step in (0, 5, 10, 60, 110)] == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1])
    assert linear(500) == 0.0
    cosine = learning_rate("cosine", 10, 110)
    expected = [0.0, 0.5, 1.0, 0.1 + 0.9 * math.cos(math.pi / 4), 0.1]
    assert [cosine(step) for step in (0, 5, 10, 60, 110)] == pytest.approx(expected)
    fixed = learning_rate("fixed", 10, 110)
    assert [fixed(step) for step in (0, 5, 10, 60, 110)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate("linear", 0, 4)(0) == 1.0


def due(schedule: str, freeze: int = -1, trains: bool = True, until: int = 1200) -> list[int]:
    refresh = IndexRefresh(schedule, freeze, trains)
    return [step for step in range(until) if refresh.is_due(step)]


def test_refreshes_are_counted_from_each_interval_s_start() -> None:
    assert due("-1") == []
    assert due("500") == [500, 1000]
    assert due("0-30:10,30-1000000:500", until=1100) == [10, 20, 30, 530, 1030]
    assert due("0-10:3,20-30:4", until=50) == [3, 6, 9, 20, 24, 28]


def test_a_frozen_retriever_is_not_embedded_again() -> None:
    assert due("10", freeze=25, until=50) == [30, 40]
    assert due("10", trains=False) == []


@pytest.mark.parametrize("schedule", ["0", "often", "5-3:1", "0-100", "0-100:0", "0-10:2,"])
def test_a_malformed_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(UserError, match="--refresh_index"):
        IndexRefresh(schedule, -1, True)
