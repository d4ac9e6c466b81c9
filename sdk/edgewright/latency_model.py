"""How long a model would take on this machine if its layers had other widths.

Narrower copies of the model, each of random widths, are exported and run: the native engine times each of
their operators. From these times each operator gets a line of its own: microseconds by its
multiply-accumulates and by the values that it reads and writes. How those follow from the widths is read off
the programs too, so nothing needs to be known about the model but which channels go together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.durable import write_whole
from edgewright.errors import CompressError

Widths = tuple[int, ...]
"""Units that each group of a model has, in the order of its dependencies."""

Floats = npt.NDArray[np.float64]
OTHERS = 0.2  # of the time at most is that of operators which not all copies have
LEAST_US = 0.1  # below it, an error counts as one of so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of one measured model.

    Attributes:
        name: What it writes: the same in every copy of the model, where its kind may differ (a transpose of
            one head is a reshape).
        macs: Multiply-accumulates.
        read: Values it reads.
        written: Values it writes.
        microseconds: The fastest of its runs.
    """

    name: str
    macs: int
    read: int
    written: int
    microseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model of some widths, measured.

    Attributes:
        widths: Units of its groups.
        milliseconds: Of a whole run, the fastest.
        operators: In the order of the program.
    """

    widths: Widths
    milliseconds: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """How far predictions were off, as parts of what was measured.

    Attributes:
        mean: Of the absolute errors.
        worst: The largest.
        count: Of the models that were predicted, each without its own measurement.
    """

    mean: float
    worst: float
    count: int


class LatencyModel:
    """Predicts milliseconds from widths.

    Args:
        measured: At least two models of different widths, with the same operators for the most part.

    Raises:
        CompressError: Too little was measured, or most operators differ, so that widths alone do not explain
            the time.
    """

    def __init__(self, measured: Sequence[Measured]) -> None:
        if len({m.widths for m in measured}) < 2:
            raise CompressError("a latency model needs measurements of two widths at least")
        self.measured = _aligned(measured)
        self._lines = _Lines(self.measured, self.measured)

    def milliseconds(self, widths: Widths) -> float:
        """Predicts a whole run of the model with these widths."""
        return float(self._lines.milliseconds(widths))

    def cross_validation(self) -> Error:
        """Predicts each measured model by lines through all others (leave one out)."""
        errors = []
        for index, left_out in enumerate(self.measured):
            rest = self.measured[:index] + self.measured[index + 1 :]
            guess = _Lines(self.measured, rest).milliseconds(left_out.widths)
            errors.append(abs(guess / left_out.milliseconds - 1))
        return Error(mean=float(np.mean(errors)), worst=max(errors), count=len(errors))


def _aligned(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """The same operators in each model: those that not all have count as one, which always takes its mean."""
    names = [{op.name for op in m.operators} for m in measured]
    common = set.intersection(*names)
    found = []
    for each in measured:
        kept = sorted((op for op in each.operators if op.name in common), key=lambda op: op.name)
        others = [op for op in each.operators if op.name not in common]
        time = sum(op.microseconds for op in others)
        if time > OTHERS * sum(op.microseconds for op in each.operators):
            listed = ", ".join(sorted(op.name for op in others)[:4])
            raise CompressError(
                f"narrower copies of this model do not run the same operators ({listed}), so its latency "
                "cannot be predicted from widths; give `ratio` instead of a budget"
            )
        rest = Operator(name="others", macs=0, read=0, written=0, microseconds=time)
        found.append(replace(each, operators=(*kept, rest)))
    return tuple(found)


class _Lines:
    """A line for each operator, fitted to some of the models; geometry is taken from all."""

    def __init__(self, shapes: Sequence[Measured], timed: Sequence[Measured]) -> None:
        widths = np.array([m.widths for m in shapes], np.float64)
        times = np.array([[op.microseconds for op in m.operators] for m in timed])
        self._sizes, self._slopes = [], []
        rows = [shapes.index(m) for m in timed]
        for place in range(times.shape[1]):
            ops = [m.operators[place] for m in shapes]
            sizes = _Sizes(ops, widths)
            features = np.array([sizes.features(w) for w in widths[rows]])
            self._sizes.append(sizes)
            self._slopes.append(_line(features, times[:, place]))
        whole = np.array([m.milliseconds * 1e3 for m in timed])
        self._factor = float(np.median(whole / times.sum(axis=1)))  # what runs between operators

    def milliseconds(self, widths: Widths) -> float:
        given = np.array(widths, np.float64)
        found = sum(
            float(s.features(given) @ slope) for s, slope in zip(self._sizes, self._slopes, strict=True)
        )
        return self._factor * found / 1e3


class _Sizes:
    """How an operator's sizes follow from the widths of the groups."""

    def __init__(self, ops: Sequence[Operator], widths: Floats) -> None:
        read = np.array([op.read for op in ops], np.float64)
        written = np.array([op.written for op in ops], np.float64)
        macs = np.array([op.macs for op in ops], np.float64)
        self._read, self._written = _linear(read, widths), _linear(written, widths)
        forms = (read * written, written, read)
        ratios = [macs / np.maximum(form, 1) for form in forms]
        spreads = [np.ptp(ratio) / np.mean(ratio) if macs.any() else 0.0 for ratio in ratios]
        self._form = int(np.argmin(spreads))
        self._macs = float(np.mean(ratios[self._form]))

    def features(self, widths: Floats) -> Floats:
        """A constant, multiply-accumulates, and values read and written."""
        ahead = np.concatenate([[1.0], widths])
        read, written = float(ahead @ self._read), float(ahead @ self._written)
        form = (read * written, written, read)[self._form]
        return np.array([1.0, self._macs * form, read, written])


def _linear(sizes: Floats, widths: Floats) -> Floats:
    """Constant and slopes with which sizes follow from widths: of no group, of one, or of several."""
    found = np.zeros(widths.shape[1] + 1)
    if np.ptp(sizes) == 0:
        found[0] = sizes[0]
        return found
    for group in range(widths.shape[1]):
        ratio = sizes / widths[:, group]
        if np.ptp(widths[:, group]) and np.ptp(ratio) < 1e-9 * ratio[0]:
            found[group + 1] = ratio[0]
            return found
    ahead = np.concatenate([np.ones((len(widths), 1)), widths], axis=1)
    slopes: Floats = np.linalg.lstsq(ahead, sizes, rcond=None)[0]
    return slopes


def _line(features: Floats, times: Floats) -> Floats:
    """Least squares of the relative errors, with no slope below zero; the mean where there is no size."""
    if not features[:, 1:].any():
        return np.array([times.mean(), *np.zeros(features.shape[1] - 1)])
    scale = 1 / np.maximum(times, LEAST_US)
    best, least = np.zeros(features.shape[1]), np.inf
    columns = range(features.shape[1])
    for chosen in chain.from_iterable(combinations(columns, n) for n in range(1, len(columns) + 1)):
        part = features[:, list(chosen)] * scale[:, None]
        reach = np.abs(part).max(axis=0)
        if not reach.all():
            continue
        slopes = np.linalg.lstsq(part / reach, times * scale, rcond=None)[0] / reach
        error = float(((part @ slopes - times * scale) ** 2).sum())
        if (slopes >= 0).all() and error < least - 1e-12:
            best, least = np.zeros(features.shape[1]), error
            best[list(chosen)] = slopes
    return best


def save_measured(path: Path, key: Mapping[str, Any], measured: Sequence[Measured]) -> None:
    """Writes measurements, and what they hold for, as JSON; whole or not at all."""
    text = json.dumps({"key": dict(key), "measured": [asdict(m) for m in measured]}, indent=1)
    write_whole(path, f"{text}\n".encode())


def load_measured(path: Path, key: Mapping[str, Any]) -> tuple[Measured, ...]:
    """Reads measurements; none if there is no file, or it holds for something else.

    Raises:
        CompressError: The file is damaged.
    """
    if not path.exists():
        return ()
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["key"] != json.loads(json.dumps(dict(key))):
            return ()
        return tuple(_measured(found["measured"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompressError(f"{path}: damaged latency measurements: {error}; delete the file") from error


def _measured(rows: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
    for row in rows:
        yield Measured(
            widths=tuple(row["widths"]),
            milliseconds=row["milliseconds"],
            operators=tuple(Operator(**op) for op in row["operators"]),
        )
