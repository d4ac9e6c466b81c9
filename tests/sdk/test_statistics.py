"""The statistics, against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.statistics import sqnr_db, wilson_interval


def test_sqnr_of_a_tenth_is_twenty_decibels() -> None:
    reference = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert sqnr_db(reference, reference * 1.1) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(reference, np.zeros(1000)) == 0


def test_sqnr_at_its_ends() -> None:
    assert sqnr_db([1, 2], [1, 2]) == math.inf
    assert sqnr_db([0, 0], [0, 0]) == math.inf
    assert sqnr_db([0, 0], [0, 1]) == -math.inf
    assert sqnr_db([1, 2], [1, math.inf]) == -math.inf
    assert math.isnan(sqnr_db([1, 2], [1, math.nan]))
    assert math.isnan(sqnr_db([1, math.inf], [1, math.inf]))


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (15, 1000, 0.0091, 0.0246)],
)
def test_wilson_interval_has_the_published_values(hits: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_rate_and_stays_within_0_and_1(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = wilson_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1


def test_wilson_interval_covers_as_often_as_it_says() -> None:
    hits = np.random.default_rng(0).binomial(200, 0.05, 4000)
    covered = [low <= 0.05 <= high for low, high in (wilson_interval(int(h), 200) for h in hits)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (-1, 5), (6, 5), (1, -5)])
def test_what_is_no_rate_is_refused(hits: int, count: int) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        wilson_interval(hits, count)
