"""Coverage: how much of a quantized model the cases of a verification have moved.

Each value that is put on a grid (a QuantizeLinear of the graph) is watched while cases run: which of its 256
levels they reach, how often they stop at an end, and which channels never change. A weight behind a channel
that never changes may be wrong, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.cases import Cases
from edgewright.checks import Check
from edgewright.errors import VerifyError
from edgewright.samples import Samples
from edgewright.wiring import initializers

LEVELS = 256
FEW_LEVELS = 0.25  # a value of which less is reached counts as sparse
LISTED = 8
MOST_CASES = 64
WATCHED_VALUES = 1 << 26  # in all cases together
BATCH_VALUES = 1 << 22
COUNTED_VALUES = 1 << 17  # of each value in each batch, evenly picked

# The part of its grid that a value must span on real samples, in the median of all values. Values like those
# of calibration span nearly all of it. Less is explained by a symmetric grid of a value of one sign (half),
# by a grid of seven bits, as for CPUs that saturate (half), and by the tails: n normal values span 2 sqrt(2
# ln n) standard deviations, half as much for n = 1,000 as for a calibration of 10^12 (half). Below an eighth
# the samples are not like what the model was calibrated for, and what cases say holds for nothing else.
LEAST_SPAN = 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCoverage:
    """How far one value was moved.

    Attributes:
        name: Of the value, as the graph has it.
        levels: Share of its 256 levels that were reached.
        span: Share of its grid between the lowest and the highest level on real samples.
        low: Share of all its values at the lowest level; 0 where that stands for 0.0, as behind a ReLU.
        high: Share at the highest level.
        channels: How many it has.
        idle: How many of them never changed.
    """

    name: str
    levels: float
    span: float
    low: float
    high: float
    channels: int
    idle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How far the cases moved a model.

    Attributes:
        cases: On how many of them it was looked at.
        values: How many values are on a grid; inputs among them.
        median_levels: Share of the levels that were reached, in the median of the values.
        median_span: Share of the grid that real samples spanned, likewise.
        sparse: Values of which less than a quarter of the levels were reached.
        channels: Channels of all values together.
        idle: Those that never changed.
        least: The values of which least was reached, the worst first.
        saturated: The values that stopped at an end most often, the worst first.
    """

    cases: int
    values: int
    median_levels: float
    median_span: float
    sparse: int
    channels: int
    idle: int
    least: tuple[ValueCoverage, ...]
    saturated: tuple[ValueCoverage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """A value on a grid: its name, that of its integers, their type, limits and zero."""

    name: str
    integers: str
    dtype: np.dtype[Any]
    low: int
    high: int
    zero: int


class Watch:
    """A QDQ graph whose integers can be looked at.

    Args:
        graph: With its constants inside.

    Raises:
        VerifyError: ONNX Runtime cannot load it.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        import onnxruntime

        self.values = _watched(graph)
        self.images = _image_ranks(graph)
        made = onnx.ModelProto()
        made.CopyFrom(graph)
        del made.graph.output[:]
        for value in self.values:
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            made.graph.output.append(onnx.helper.make_tensor_value_info(value.integers, kind, None))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = None
        if self.values:
            try:
                self._session = onnxruntime.InferenceSession(
                    made.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # its exceptions share no base of their own
                raise VerifyError(f"ONNX Runtime cannot load this graph: {error}") from error
        sizes = [i.type.tensor_type.shape.dim for i in graph.graph.input if i.name not in initializers(graph)]
        self._fixed = next((d[0].dim_value for d in sizes if d and d[0].HasField("dim_value")), 0)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The integers of each value, in the order of `values`, (cases, ...)."""
        assert self._session is not None
        found: list[npt.NDArray[Any]] = self._session.run(None, dict(inputs))
        return found

    def batches(self, cases: Cases) -> list[tuple[int, int]]:
        """Where to cut the cases, as the graph has a fixed batch, or as its values have room."""
        if self._fixed:
            whole = len(cases) - len(cases) % self._fixed
            return [(i, i + self._fixed) for i in range(0, whole, self._fixed)]
        one = sum(v.size for v in self.run(cases.batch(0, 1)))
        most = min(len(cases), MOST_CASES, max(2, WATCHED_VALUES // one))
        size = max(1, BATCH_VALUES // one)
        return [(i, min(i + size, most)) for i in range(0, most, size)]


def cover(watch: Watch, cases: Cases) -> Coverage | None:
    """Watches some of the cases, of every kind: at most 64, and as many as take about half a second.

    Args:
        watch: Of the graph.
        cases: From which each kind gives its share.

    Returns:
        What was seen; None where no value is on a grid, or where all cases do not fill a fixed batch.
    """
    if not watch.values:
        return None
    some = cases.chosen(_spread(cases.strata))
    seen = [_Seen(v, watch.images) for v in watch.values]
    batches = watch.batches(some)
    if not batches:
        return None
    for start, stop in batches:
        real = some.strata[start:stop] == "sample"
        for value, integers in zip(seen, watch.run(some.batch(start, stop)), strict=True):
            value.add(integers, real)
    found = [s.coverage() for s in seen]
    return Coverage(
        cases=batches[-1][1],
        values=len(found),
        median_levels=float(np.median([v.levels for v in found])),
        median_span=float(np.median([v.span for v in found])),
        sparse=sum(v.levels < FEW_LEVELS for v in found),
        channels=sum(v.channels for v in found),
        idle=sum(v.idle for v in found),
        least=tuple(sorted(found, key=lambda v: v.levels)[:LISTED]),
        saturated=tuple(sorted(found, key=lambda v: -max(v.low, v.high))[:LISTED]),
    )


def coverage_check(coverage: Coverage) -> Check:
    """Whether the samples move the model as its calibration did; if not, nothing can be told."""
    return Check(
        name="coverage",
        what="share of its grid that a value spans on real samples, in the median",
        verdict="passed" if coverage.median_span >= LEAST_SPAN else "cannot tell",
        value=coverage.median_span,
        interval=None,
        bound=LEAST_SPAN,
        unit="of the grid",
        remedy=""
        if coverage.median_span >= LEAST_SPAN
        else "give samples (data) like those of calibration: more of them, and prepared in the same way",
    )


def far_samples(watch: Watch, samples: Samples) -> npt.NDArray[np.int64]:
    """Numbers of samples that drive values farthest to an end of their grids, the most useful first.

    Greedy: each takes the ends that it reaches farthest of all, until every end has one. 32 at most are
    tried.
    """
    if not watch.values:
        return np.zeros(0, np.int64)
    count = len(next(iter(samples.values())))
    some = Cases.of(dict(samples), np.repeat(["sample"], count), {})
    rows = []
    first = np.ones(len(watch.values), np.bool_)  # of which values the samples are the first axis
    for start, stop in watch.batches(some.chosen(np.arange(min(count, MOST_CASES // 2)))):
        reached = np.zeros((len(watch.values), 2, stop - start), np.int64)
        for place, integers in enumerate(watch.run(some.batch(start, stop))):
            first[place] &= len(integers) == stop - start
            if first[place]:
                flat = integers.reshape(len(integers), -1)
                reached[place] = flat.max(axis=1), -flat.min(axis=1).astype(np.int64)
        rows.append(reached)
    if not rows:
        return np.zeros(0, np.int64)
    ends = np.concatenate(rows, axis=2)[first]
    ends = ends.reshape(-1, ends.shape[2])  # (ends, samples)
    ends = ends[ends.min(axis=1) < ends.max(axis=1)]  # where all are alike none is farthest
    farthest = ends == ends.max(axis=1, keepdims=True)
    chosen: list[int] = []
    left = np.ones(len(ends), np.bool_)
    while left.any():
        chosen.append(int(farthest[left].sum(axis=0).argmax()))
        left &= ~farthest[:, chosen[-1]]
    return np.array(chosen, np.int64)


class _Seen:
    """What was seen of one value so far."""

    def __init__(self, value: _Watched, images: frozenset[int]) -> None:
        self.value, self.images = value, images
        self.counts = np.zeros(LEVELS, np.int64)
        self.ends = np.zeros(2, np.int64)
        self.total = 0
        self.least: npt.NDArray[Any] | None = None
        self.most: npt.NDArray[Any] | None = None
        self.real = value.high, value.low

    def add(self, integers: npt.NDArray[Any], real: npt.NDArray[np.bool_]) -> None:
        """Takes the integers of some cases, of which some are real samples."""
        value = self.value
        if len(integers) != len(real):  # another axis comes first, such as time
            real = np.ones(len(integers), np.bool_)
        least, most = _per_channel(integers, first=integers.ndim in self.images)
        if real.any():
            low, high = self.real
            self.real = min(low, int(least[real].min())), max(high, int(most[real].max()))
        least, most = least.min(axis=0), most.max(axis=0)
        self.least = least if self.least is None else np.minimum(self.least, least)
        self.most = most if self.most is None else np.maximum(self.most, most)
        flat = integers.reshape(-1)
        # An odd step, so that it falls on all channels and places in turn.
        flat = flat[:: max(1, flat.size // COUNTED_VALUES) | 1]
        steps = flat.astype(np.int64) - value.low
        self.ends += np.count_nonzero(steps == 0), np.count_nonzero(steps == value.high - value.low)
        self.counts += np.bincount(steps * LEVELS // (value.high - value.low + 1), minlength=LEVELS)
        self.total += flat.size

    def coverage(self) -> ValueCoverage:
        """Of all that was added."""
        assert self.least is not None
        assert self.most is not None
        low, high = self.real
        at_low, at_high = (float(n) / max(1, self.total) for n in self.ends)
        return ValueCoverage(
            name=self.value.name,
            levels=float(np.count_nonzero(self.counts)) / LEVELS,
            span=max(0, high - low) / (self.value.high - self.value.low),
            low=at_low if self.value.zero > self.value.low else 0.0,
            high=at_high,
            channels=self.least.size,
            idle=int(np.count_nonzero(self.least == self.most)),
        )


def _per_channel(integers: npt.NDArray[Any], *, first: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Least and largest integer of each case and channel, (cases, channels); channels come first or last."""
    if first or integers.ndim == 2:
        flat = integers.reshape(*integers.shape[:2], -1)
        return flat.min(axis=2), flat.max(axis=2)
    flat = integers.reshape(len(integers), -1, integers.shape[-1])
    return flat.min(axis=1), flat.max(axis=1)


def _spread(strata: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Numbers of cases, at most 64, each kind with its share, mixed; the first is a real sample."""
    by_kind = np.argsort(strata, kind="stable")
    picked = by_kind[np.linspace(0, len(strata) - 1, min(len(strata), MOST_CASES)).astype(np.int64)]
    mixed = np.random.default_rng(0).permutation(picked)
    return np.roll(mixed, -int((strata[mixed] == "sample").argmax()))


def _watched(graph: onnx.ModelProto) -> tuple[_Watched, ...]:
    """The values that the graph puts on grids, constants left out."""
    constants = initializers(graph)
    found: list[_Watched] = []
    for node in graph.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        if zero is None or zero.size != 1 or zero.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
            continue
        limits = np.iinfo(zero.dtype)
        found.append(
            _Watched(
                name=node.input[0],
                integers=node.output[0],
                dtype=zero.dtype,
                low=int(limits.min),
                high=int(limits.max),
                zero=int(zero.reshape(())),
            )
        )
    return tuple(found)


def _image_ranks(graph: onnx.ModelProto) -> frozenset[int]:
    """How many axes the values have that convolutions read: their channels are axis 1, else the last."""
    constants = initializers(graph)
    weights = {
        n.output[0]: constants[n.input[0]].ndim
        for n in graph.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in constants
    } | {n: v.ndim for n, v in constants.items()}
    return frozenset(
        weights.get(n.input[1], 0) for n in graph.graph.node if n.op_type in ("Conv", "ConvTranspose")
    )
