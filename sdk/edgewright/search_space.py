"""What a search may vary: a recipe's `[search]` section.

It mirrors the recipe: a list holds choices, a table a range::

    [search.prune]
    ratio = { low = 0.1, high = 0.6, step = 0.1 }

    [search.quantize]
    activations = ["uint8", "mixed"]

A section that is here but not in the recipe is a step that a trial may take or leave. One that is in both is
always taken, with these keys varied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether each factor is as likely as any other, as for learning rates.
        step: Only `low` plus multiples of this; None for any number between.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if not all(_is_number(end) and math.isfinite(end) for end in ends) or not self.low < self.high:
            raise ValueError(f"low = {self.low!r}, high = {self.high!r}: low must be a number below high")
        if not isinstance(self.log, bool):
            raise ValueError(f"log = {self.log!r} is not true or false")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log = true needs low above 0, and no step")
        if self.step is not None and not (_is_number(self.step) and 0 < self.step <= self.high - self.low):
            raise ValueError(f"step = {self.step!r} must be above 0 and at most high - low")

    def at(self, part: float, *, whole: bool) -> float | int:
        """The number `part`, 0..1, of the way from `low` to `high`; a whole one where that is meant."""
        if self.log:
            value = self.low * (self.high / self.low) ** part
        else:
            value = self.low + part * (self.high - self.low)
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
            value = min(value, self.high)
        return round(value) if whole else float(value)


Varied = Range | tuple[Scalar, ...]
"""A range, or a tuple of choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search may vary.

    Attributes:
        sections: By section and key of the recipe: a range, or choices.
    """

    sections: Mapping[str, Mapping[str, Varied]]

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Reads a recipe's `[search]` section.

        Raises:
            ValueError: It is not built like one; the message begins with the place.
        """
        sections: dict[str, Mapping[str, Varied]] = {}
        for section, keys in table.items():
            if not isinstance(keys, Mapping):
                raise ValueError(f"{section}: write [search.{section}] and the keys to vary below it")
            sections[section] = {key: _varied(f"{section}.{key}", value) for key, value in keys.items()}
        return cls(sections=sections)

    def to_table(self) -> dict[str, Any]:
        """The section as TOML has it; `from_table` reads it back to an equal space."""
        return {
            section: {key: _plain(value) for key, value in keys.items()}
            for section, keys in self.sections.items()
        }


def probes(varied: Varied) -> tuple[Any, ...]:
    """Values to try before a search: every choice; or the ends, the middle and a step of a range."""
    if not isinstance(varied, Range):
        return varied
    middle = varied.at(0.5, whole=isinstance(varied.low, int) and isinstance(varied.high, int))
    steps = () if varied.step is None else (varied.low + varied.step,)
    return (varied.low, varied.high, middle, *steps)


def _varied(place: str, value: Any) -> Varied:
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(choice, bool | int | float | str) for choice in value):
            raise ValueError(f"{place}: choices are a list of texts, numbers, true and false, not {value!r}")
        if len(set(value)) < len(value):
            raise ValueError(f"{place}: a choice is there twice in {value!r}")
        return tuple(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: write a list of choices, or {{ low = ..., high = ... }}, not {value!r}")
    unknown = value.keys() - {"low", "high", "log", "step"}
    if unknown or not {"low", "high"} <= value.keys():
        raise ValueError(f"{place}: a range has low and high, and maybe step or log, not {sorted(value)}")
    try:
        return Range(**value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _plain(varied: Varied) -> Any:
    if not isinstance(varied, Range):
        return list(varied)
    table: dict[str, Any] = {"low": varied.low, "high": varied.high}
    if varied.log:
        table["log"] = True
    if varied.step is not None:
        table["step"] = varied.step
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
