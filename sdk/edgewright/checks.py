"""A check: one thing that verification looked at, with what it found, what it allows, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: Short, stable.
        what: The same for people.
        verdict: "cannot tell" when the interval holds the bound: more cases are needed.
        value: What was found.
        interval: 95 % confidence interval of `value`, where it is an estimate.
        bound: What was allowed.
        unit: Of value, interval and bound.
        remedy: What to do where it did not pass; empty where nothing is known.
    """

    name: str
    what: str
    verdict: Verdict
    value: float
    interval: tuple[float, float] | None
    bound: float
    unit: str
    remedy: str = ""


def at_most(name: str, what: str, value: float, bound: float, unit: str, *, remedy: str = "") -> Check:
    """Passed where `value` is `bound` at most; a NaN fails."""
    return _judged(value <= bound, name, what, value, bound, unit, remedy)


def at_least(name: str, what: str, value: float, bound: float, unit: str, *, remedy: str = "") -> Check:
    """Passed where `value` is `bound` at least; a NaN fails."""
    return _judged(value >= bound, name, what, value, bound, unit, remedy)


def _judged(holds: bool, name: str, what: str, value: float, bound: float, unit: str, remedy: str) -> Check:
    return Check(
        name=name,
        what=what,
        verdict="passed" if holds else "failed",
        value=float(value),
        interval=None,
        bound=float(bound),
        unit=unit,
        remedy="" if holds else remedy,
    )
