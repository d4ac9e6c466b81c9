"""Checks of what labelled or compared cases say, which know how many more they need when they cannot tell."""

from __future__ import annotations

from edgewright.checks import Check, Verdict
from edgewright.statistics import cases_for_difference, cases_for_rate, paired_interval, wilson_interval

POWER = 0.8


def rate_check(name: str, what: str, hits: int, count: int, bound: float, *, unit: str, remedy: str) -> Check:
    """Whether a rate is `bound` at most: all of its 95 % interval (Wilson), or none of it, or "cannot tell".

    Args:
        name: Of the check.
        what: The same for people.
        hits: Cases that count.
        count: All cases.
        bound: The rate allowed, 0..1.
        unit: Of the rate, such as "of the cases".
        remedy: What to do if it failed.

    Raises:
        ValueError: `hits` of `count` is not a rate.
    """
    low, high = wilson_interval(hits, count)
    verdict: Verdict = "passed" if high <= bound else "failed" if low > bound else "cannot tell"
    if verdict == "cannot tell":
        needed = cases_for_rate(hits, count, bound, power=POWER) if 0 < bound < 1 else None
        remedy = _more(needed, count)
    return Check(
        name=name,
        what=what,
        verdict=verdict,
        value=hits / count,
        interval=(low, high),
        bound=bound,
        unit=unit,
        remedy="" if verdict == "passed" else remedy,
    )


def loss_check(
    name: str, what: str, gained: int, lost: int, count: int, margin: float, *, remedy: str
) -> Check:
    """Whether less than `margin` of accuracy was lost, on cases both were asked (non-inferiority, 2.5 %).

    Args:
        name: Of the check.
        what: The same for people.
        gained: Cases that only the second has right.
        lost: Cases that only the first has right.
        count: All cases.
        margin: 0..1; value, interval and bound of the check are in points, 100 times as much.
        remedy: What to do if it failed.

    Raises:
        ValueError: The numbers are not counts of one sample, or the margin is not in 0..1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it must be between 0 and 1")
    low, high = (-100 * end for end in reversed(paired_interval(gained, lost, count)))
    bound = 100 * margin
    verdict: Verdict = "passed" if high < bound else "failed" if low > bound else "cannot tell"
    if verdict == "cannot tell":
        remedy = _more(cases_for_difference(gained, lost, count, margin, power=POWER), count)
    return Check(
        name=name,
        what=what,
        verdict=verdict,
        value=100 * (lost - gained) / count,
        interval=(low, high),
        bound=bound,
        unit="points",
        remedy="" if verdict == "passed" else remedy,
    )


def _more(needed: int | None, count: int) -> str:
    """How many more cases would tell."""
    if needed is None:
        return (
            "what was found is the bound itself: no number of cases would tell; allow more, or mend the model"
        )
    more = max(needed - count, 1)
    return f"{count:,} cases are too few; about {more:,} more are needed (power {POWER:.0%})"
