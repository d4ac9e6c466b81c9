"""Budgets: read from text, and held against what was measured, with its noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgewright.search_budgets import BLOCKS, Budget, Cost, fastest_ms, latency_beside, median_interval, shown


@pytest.mark.parametrize(
    ("text", "quantity", "limit", "relative"),
    [
        ("latency=5ms", "latency", 5, False),
        ("latency = 80 us", "latency", 0.08, False),
        ("latency=80µs", "latency", 0.08, False),
        ("latency=1.5e-3s", "latency", 1.5, False),
        ("latency=60%", "latency", 0.6, True),
        ("size=200kB", "size", 200_000, False),
        ("size=2MiB", "size", 2 * 1024**2, False),
    ],
)
def test_a_budget_is_read_with_its_unit(text: str, quantity: str, limit: float, relative: bool) -> None:
    budget = Budget.parse(text)
    assert (budget.quantity, budget.relative) == (quantity, relative)
    assert budget.limit == pytest.approx(limit)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5ms", "write latency=5ms"),
        ("latency=5", "write latency=5ms"),
        ("speed=5ms", "is for latency or size, not 'speed'"),
        ("latency=5kB", "'kB' is no unit of latency; use us"),
        ("size=1.2.3kB", "'1.2.3' is not a number"),
        ("size=0kB", "must be above 0"),
    ],
)
def test_what_is_no_budget_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_a_part_is_of_what_the_baseline_costs() -> None:
    assert Budget.parse("latency=60%").limit_for(5.0) == pytest.approx(3.0)
    assert Budget.parse("size=1kB").limit_for(5.0) == 1000


def test_a_limit_inside_the_interval_cannot_be_told() -> None:
    cost = Cost(value=2.0, low=1.9, high=2.2)
    assert [cost.within(limit) for limit in (1.8, 2.0, 2.2)] == ["fails", "cannot tell", "holds"]


def test_people_read_few_digits() -> None:
    assert shown("latency", 0.00601812) == "6.018 µs"
    assert shown("latency", 5.25) == "5.25 ms"
    assert shown("size", 1_234_567) == "1.235 MB"
    assert shown("size", 200) == "0.2 kB"


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    assert median_interval(range(6)) == (0, 5)  # 1 - 2 / 2^6 = 96.9 %
    assert median_interval(range(12)) == (2, 9)  # 1 - 2 (1 + 12 + 66) / 2^12 = 96.1 %
    random = np.random.default_rng(0)
    for count in BLOCKS:
        drawn = np.sort(random.exponential(size=(4000, count)), axis=1)
        low, high = np.array([median_interval(row) for row in drawn.tolist()]).T
        assert ((low < np.log(2)) & (np.log(2) < high)).mean() > 0.945
    with pytest.raises(ValueError, match="5 values cannot"):
        median_interval([1, 2, 3, 4, 5])


def work(amount: int) -> object:
    return sum(itertools.repeat(1, amount))


def test_a_latency_is_a_ratio_to_its_baseline() -> None:
    cost = latency_beside(lambda: work(20_000), 10.0, lambda: work(40_000), None)
    assert cost.low <= cost.value <= cost.high
    assert cost.value == pytest.approx(20.0, rel=0.25)
    assert fastest_ms(lambda: work(200_000)) > 2 * fastest_ms(lambda: work(20_000))


def test_it_is_measured_longer_only_where_the_budget_is_close() -> None:
    now_ns, calls, random = [0], [0], np.random.default_rng(0)

    def baseline() -> None:
        now_ns[0] += 1_000_000

    def call() -> None:
        calls[0] += 1
        now_ns[0] += int(2_000_000 * (1 + 0.1 * random.random()))

    def measured(limit_ms: float) -> tuple[str, int]:
        calls[0] = 0
        cost = latency_beside(baseline, 10.0, call, limit_ms, clock=lambda: now_ns[0])
        assert 20 < cost.low < cost.value < cost.high < 22
        return cost.within(limit_ms), calls[0]

    (far, few), (close, many) = measured(30.0), measured(20.2)
    assert (far, close) == ("holds", "cannot tell")
    assert many > 3 * few
