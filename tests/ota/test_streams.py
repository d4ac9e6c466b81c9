"""Two releases on a fleet, compared as reports come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgewright_ota import (
    MeanSequence,
    MedianSequence,
    compare_medians,
    compare_rates,
    device_failures,
    device_medians,
)


def rates(failed_a: int, of_a: int, failed_b: int, of_b: int) -> tuple[MeanSequence, MeanSequence]:
    return MeanSequence((0, 1), [of_a - failed_a, failed_a]), MeanSequence(
        (0, 1), [of_b - failed_b, failed_b]
    )


def test_a_release_that_fails_more_is_found() -> None:
    found = compare_rates(*rates(20, 2000, 12, 120))
    assert found.verdict == "worse"
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.difference == pytest.approx(0.09)


def test_a_release_as_good_is_cleared_within_a_margin() -> None:
    assert compare_rates(*rates(100, 10_000, 100, 10_000), margin=0.01).verdict == "not worse"
    assert compare_rates(*rates(100, 10_000, 1, 100), margin=0.01).verdict == "cannot tell"


def test_before_any_report_nothing_can_be_told() -> None:
    assert compare_rates(MeanSequence(), MeanSequence()).verdict == "cannot tell"
    assert compare_medians(MedianSequence(), MedianSequence([0.0] * 99)).interval == (-1, math.inf)


def test_equal_releases_are_seldom_told_apart_however_often_one_looks() -> None:
    rng = np.random.default_rng(3)
    alarms = {"rates": 0, "medians": 0}
    for _ in range(20):
        a, b = rng.random(600) < 0.1, rng.random(200) < 0.1
        x, y = rng.standard_cauchy(600), rng.standard_cauchy(200)
        seen = set()
        for n in range(20, 201, 60):  # A's stream is three times as fast
            of_a, of_b = int(a[: 3 * n].sum()), int(b[:n].sum())
            if compare_rates(*rates(of_a, 3 * n, of_b, n)).verdict == "worse":
                seen.add("rates")
            if compare_medians(MedianSequence(x[: 3 * n]), MedianSequence(y[:n])).verdict == "worse":
                seen.add("medians")
        for what in seen:
            alarms[what] += 1
    assert max(alarms.values()) <= 1  # 5 % of 20


def test_the_interval_of_two_streams_is_that_of_their_difference_turned_round() -> None:
    a, b = rates(50, 1000, 80, 900)
    there, back = compare_rates(a, b), compare_rates(b, a)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-6)


def test_a_slower_release_is_found_on_unlike_devices() -> None:
    rng = np.random.default_rng(4)
    devices = {f"d{i}": np.exp(rng.normal(2, 0.3)) for i in range(1200)}
    reports = [(d, ms * np.exp(rng.standard_cauchy() * 0.02)) for d, ms in devices.items() for _ in range(5)]
    before = device_medians(reports)
    a = MedianSequence(v for d, v in before.items() if int(d[1:]) % 2)
    b = MedianSequence(v + math.log(1.2) for d, v in before.items() if not int(d[1:]) % 2)
    found = compare_medians(a, b)
    assert found.verdict == "worse"
    assert found.interval[0] < 0.2 < found.interval[1]
    assert compare_medians(b, a, margin=0.0).verdict == "not worse"


def test_a_device_counts_once_however_often_it_reports() -> None:
    noisy = [("a", 1.0)] * 99 + [("b", math.e)]
    assert device_medians(noisy) == {"a": 0.0, "b": 1.0}
    assert device_failures([("a", False), ("a", True), ("a", False), ("b", False)]) == {"a": True, "b": False}


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="device x: 0"):
        device_medians([("x", 0.0)])
    with pytest.raises(ValueError, match="margin is 1"):
        compare_rates(MeanSequence(), MeanSequence(), margin=1)
    with pytest.raises(ValueError, match="must be the same"):
        compare_rates(MeanSequence(), MeanSequence((-1, 1)))
    with pytest.raises(ValueError, match="alpha is 0"):
        compare_rates(MeanSequence(), MeanSequence(), alpha=0)
