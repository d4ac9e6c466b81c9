"""Checks of rates and of accuracy lost, and how many more cases they ask for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgewright.agreement import accuracy_check
from edgewright.equivalence import loss_check, rate_check
from edgewright.errors import VerifyError
from edgewright.statistics import (
    cases_for_difference,
    cases_for_rate,
    equivalence_p,
    paired_interval,
    wilson_interval,
)


def rate(hits: int, count: int, bound: float) -> tuple[str, str]:
    check = rate_check("flips", "flips", hits, count, bound, unit="of the cases", remedy="recalibrate")
    return check.verdict, check.remedy


def loss(gained: int, lost: int, count: int, margin: float) -> tuple[str, str]:
    check = loss_check("accuracy", "lost", gained, lost, count, margin, remedy="recalibrate")
    return check.verdict, check.remedy


def test_a_rate_that_is_surely_low_or_high_is_judged() -> None:
    assert rate(5, 1000, 0.02) == ("passed", "")
    assert rate(50, 1000, 0.02) == ("failed", "recalibrate")


def test_a_rate_that_cannot_be_told_says_how_many_more_cases_would() -> None:
    verdict, remedy = rate(14, 1000, 0.02)
    assert verdict == "cannot tell"
    needed = 1000 + int(re.findall(r"about ([\d,]+) more", remedy)[0].replace(",", ""))
    rng = np.random.default_rng(0)
    told = [wilson_interval(int(h), needed)[1] <= 0.02 for h in rng.binomial(needed, 14.5 / 1001, 4000)]
    assert np.mean(told) == pytest.approx(0.8, abs=0.04)


def test_accuracy_that_is_surely_kept_or_lost_is_judged() -> None:
    assert loss(10, 10, 10_000, 0.005) == ("passed", "")
    assert loss(10, 300, 10_000, 0.005) == ("failed", "recalibrate")


def test_accuracy_that_cannot_be_told_says_how_many_more_cases_would() -> None:
    verdict, remedy = loss(3, 5, 872, 0.01)
    assert verdict == "cannot tell"
    needed = 872 + int(re.findall(r"about ([\d,]+) more", remedy)[0].replace(",", ""))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(needed, [3.5 / 873, 5.5 / 873, 864 / 873], 2000)
    told = [paired_interval(int(g), int(lost), needed)[0] > -0.01 for g, lost, _ in drawn]
    assert np.mean(told) == pytest.approx(0.8, abs=0.06)


def test_what_is_found_at_the_bound_itself_no_number_of_cases_tells() -> None:
    assert cases_for_rate(9, 18, 0.5) is None
    verdict, remedy = rate(9, 18, 0.5)
    assert verdict == "cannot tell"
    assert "no number of cases" in remedy


def test_more_power_takes_more_cases() -> None:
    for plan in (
        [cases_for_rate(5, 500, 0.02, power=p) for p in (0.8, 0.9)],
        [cases_for_difference(5, 7, 500, 0.01, power=p) for p in (0.8, 0.9)],
    ):
        assert plan[0] is not None
        assert plan[1] is not None
        assert plan[0] < plan[1]


@pytest.mark.parametrize(
    ("gained", "lost", "count", "margin"), [(5, 9, 900, 0.02), (0, 0, 150, 0.02), (3, 0, 60, 0.1)]
)
def test_equivalence_is_shown_just_when_the_90_percent_interval_is_within_the_margin(
    gained: int, lost: int, count: int, margin: float
) -> None:
    low, high = paired_interval(gained, lost, count, z=1.6448536269514722)
    assert (equivalence_p(gained, lost, count, margin) < 0.05) == (-margin < low and high < margin)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="margin is 0"):
        loss(1, 1, 10, 0)
    with pytest.raises(ValueError, match="margin is 2"):
        equivalence_p(1, 1, 10, 2)
    with pytest.raises(ValueError, match="cannot be planned"):
        cases_for_rate(11, 10, 0.5)
    with pytest.raises(ValueError, match="cannot be planned"):
        cases_for_difference(6, 6, 10, 0.5)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_that_is_no_class_is_refused(wrong: int) -> None:
    scores = {"y": np.eye(3, dtype=np.float32)}
    with pytest.raises(VerifyError, match="classes are 0 to 2"):
        accuracy_check(scores, scores, [0, 1, wrong], 0.1)
