"""Confidence sequences: they may be looked at after every number, and still miss no oftener than promised."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_ota import MeanSequence, MedianSequence, count_needed, least_hits

RUNS, LENGTH = 200, 400


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_a_rate_is_in_its_interval_at_every_look(rate: float) -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(RUNS):
        sequence = MeanSequence()
        hits = np.cumsum(rng.random(LENGTH) < rate)
        high_evidence = low_evidence = 0.0
        for n in range(25, LENGTH + 1, 25):
            sequence.counts = [n - int(hits[n - 1]), int(hits[n - 1])]
            high_evidence = max(high_evidence, float(sequence.log_evidence(rate, above=True)))
            low_evidence = max(low_evidence, float(sequence.log_evidence(rate, above=False)))
        missed += max(high_evidence, low_evidence) >= math.log(2 / 0.05)
    assert missed <= 0.05 * RUNS


def test_the_median_is_in_its_interval_at_every_look_under_tails_and_drifts() -> None:
    rng = np.random.default_rng(2)
    needed = [least_hits(n, 0.025) for n in range(1, LENGTH + 1)]
    missed = 0
    for _ in range(RUNS):
        spread = np.exp(np.cumsum(rng.standard_normal(LENGTH) * 0.3))
        above = np.cumsum(rng.standard_cauchy(LENGTH) * spread > 0)
        below = np.arange(1, LENGTH + 1) - above
        missed += bool((above >= needed).any() or (below >= needed).any())
    assert 0 < missed <= 0.05 * RUNS  # it does miss now and then: the test can fail


def test_evidence_against_the_truth_does_not_grow_on_average() -> None:
    """Exactly, over all outcomes of ten numbers: the expected wealth is 1."""
    for p in (0.1, 0.5, 0.8):
        wealth = 0.0
        for hits in range(11):
            chance = math.comb(10, hits) * p**hits * (1 - p) ** (10 - hits)
            wealth += chance * math.exp(
                float(MeanSequence((0, 1), [10 - hits, hits]).log_evidence(p, above=True))
            )
        assert wealth == pytest.approx(1, abs=1e-12)


@given(st.lists(st.integers(0, 400), min_size=3, max_size=3))
def test_an_interval_holds_the_mean_found(counts: list[int]) -> None:
    sequence = MeanSequence((-1, 0, 1), counts)
    low, high = sequence.interval()
    assert -1 <= low <= high <= 1
    if sequence.count:
        assert low <= sequence.mean <= high


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_an_interval_of_a_median_is_of_the_numbers_themselves(values: list[float]) -> None:
    sequence = MedianSequence()
    for value in values:
        sequence.add(value)
    low, high = sequence.interval()
    assert low <= sequence.median <= high
    for end in (low, high):
        assert math.isinf(end) or end in values
    needed = math.log(2 / 0.05)
    if math.isfinite(low):  # just below it is refuted, the bound itself is not
        assert float(sequence.log_evidence(np.nextafter(low, -np.inf), above=True)) >= needed
        assert float(sequence.log_evidence(low, above=True)) < needed


def test_intervals_shrink_around_the_truth() -> None:
    assert MeanSequence().interval() == (0, 1)
    low, high = MeanSequence((0, 1), [9900, 100]).interval()
    assert 0.005 < low < 0.01 < high < 0.016
    assert MedianSequence([1.0] * 9).interval() == (-math.inf, math.inf)
    assert MedianSequence([1.0] * 10).interval() == (1, 1)


def test_it_goes_on_from_json() -> None:
    rate = MeanSequence()
    rate.add(1)
    rate.add(0, times=30)
    median = MedianSequence([3.0, 1.0, 2.0])
    for sequence in (rate, median):
        again = type(sequence).from_plain(json.loads(json.dumps(sequence.to_plain())))
        assert again.interval() == sequence.interval()
        assert again.count == sequence.count


@pytest.mark.parametrize("data", [{}, {"values": 3, "counts": [1]}, {"values": [0, 1], "counts": [-1, 0]}])
def test_what_is_no_state_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="counts"):
        MeanSequence.from_plain(data)


def test_numbers_that_cannot_be_taken_are_refused() -> None:
    with pytest.raises(ValueError, match="one of"):
        MeanSequence().add(0.5)
    with pytest.raises(ValueError, match="finite"):
        MedianSequence().add(math.nan)
    with pytest.raises(ValueError, match="alpha is 1"):
        MedianSequence([1.0]).interval(1)
    with pytest.raises(ValueError, match="rising"):
        MeanSequence((1, 0))
    with pytest.raises(ValueError, match="not the values"):
        MedianSequence.from_plain({})


def test_a_plan_is_kept() -> None:
    for share in (0.55, 0.7, 0.9, 1.0):
        count = count_needed(share, 0.025)
        assert count is not None
        assert share * count >= least_hits(count, 0.025)
    assert count_needed(0.5, 0.025) is None
    assert count_needed(0.5001, 0.025) is None
