"""Grids of activations: whether both sides agree, and whether they suit the values that real samples give.

Two rules are exact. A DequantizeLinear has the scale and zero point of the QuantizeLinear before it; and a
bias lies on the grid of its layer's input times its weights, or it is added to something else.

The others compare a grid with the float model's values. Calibration saw other samples of the same kind. Where
it kept the whole range of N samples, each new one goes beyond with a chance of 1 / (N + 1), for the ranks of
extremes are exchangeable; that k of n do has a chance of (n / (N + n))^k at most, which is 2^-16 for a
quarter of 64 beside 64. Where it cut a range, it did so since what is cut weighs no more than what a
narrower step saves. A grid that fails both is clipped. One far wider than its values, or one that reaches
below zero where a value cannot, wastes its steps; how wide is too wide follows from no theory, and is set at
three times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.fusion import MASKED
from edgewright.soundness.bare import Bare, Pair
from edgewright.soundness.finding import Finding
from edgewright.wiring import Wiring

Array = npt.NDArray[Any]

CLIPPED_SAMPLES = 0.25
CLIPPED_ENERGY = 4.0  # of what rounding to a 255th of the range costs
LEAST_SAMPLES = 3
FEW_SAMPLES = 16  # with fewer, a value's range is not known well enough to call a grid too wide
WIDE = 3.0
IDLE = 0.04  # of a grid: ten steps of 255
SHIFTED = 28  # steps that a grid is too far to one side
SHIFTED_SAMPLES = 32  # that are needed to say so,
SHIFTED_SHARE = 0.15  # and that must go beyond the other side
SAME = 1e-5  # relative: float32 products of scales

_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Resize", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Gather"}
)
_POSITIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid"})


@dataclass(slots=True)
class Seen:
    """What samples gave for one value that has a grid.

    Attributes:
        least: Of each sample, after clamps that alone read it.
        most: Of each sample.
        beyond: Mean square of what lies beyond the grid, over all samples.
        clamped: Whether there are such clamps.
    """

    least: Array
    most: Array
    beyond: float
    clamped: bool = False

    def joined(self, other: Seen) -> Seen:
        """Both, as if seen at once."""
        a, b = len(self.least), len(other.least)
        return Seen(
            np.concatenate([self.least, other.least]),
            np.concatenate([self.most, other.most]),
            (self.beyond * a + other.beyond * b) / (a + b),
            self.clamped,
        )


def seen(bare: Bare, values: Mapping[str, Array]) -> dict[int, Seen]:
    """What values are to their grids, by place in `bare.pairs`."""
    readers, constants = bare.graph.readers(), bare.graph.constants
    found: dict[int, Seen] = {}
    for place, pair in enumerate(bare.pairs):
        value = values.get(pair.value)
        if value is None or pair.scale.size != 1 or value.dtype.kind != "f" or not value.size:
            continue
        x = value.reshape(len(value), -1)
        floor, ceiling = _clamps(pair.value, readers, constants, set(bare.graph.outputs))
        if x.min() <= MASKED and not np.isfinite(x).all():
            continue
        least, most = np.maximum(x.min(axis=1), floor), np.minimum(x.max(axis=1), ceiling)
        low, high = pair.ends
        beyond = 0.0
        if (most > high).any() or (least < low).any():
            clamped = np.clip(x, floor, ceiling)
            beyond = float(np.square(clamped - np.clip(clamped, low, high), dtype=np.float64).mean())
        found[place] = Seen(least, most, beyond, bool(np.isfinite([floor, ceiling]).any()))
    return found


def _clamps(
    name: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, Array],
    outputs: set[str],
    depth: int = 0,
) -> tuple[float, float]:
    """What all readers of a value clamp it to, at once or behind moves."""
    after = readers.get(name, [])
    if name in outputs or not after or depth > 8:
        return -np.inf, np.inf
    floor, ceiling = np.inf, -np.inf
    for node in after:
        low, high = -np.inf, np.inf
        if node.op_type == "Relu":
            low = 0.0
        elif node.op_type == "Clip":
            bounds = [constants.get(n) if n else None for n in (*node.input[1:], "", "")][:2]
            low = float(bounds[0].reshape(())) if bounds[0] is not None else low
            high = float(bounds[1].reshape(())) if bounds[1] is not None else high
        elif node.op_type in {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}:
            low, high = _clamps(node.output[0], readers, constants, outputs, depth + 1)
        floor, ceiling = min(floor, low), max(ceiling, high)
    return floor, ceiling


def disagreements(bare: Bare) -> Iterator[Finding]:
    """DequantizeLinears whose grid is not that of what they read."""
    for pair in bare.pairs:
        for name, scale, zero in pair.readers:
            for what, mine, theirs in (("scale", pair.scale, scale), ("zero point", pair.zero_point, zero)):
                if mine.dtype != theirs.dtype or not np.array_equal(mine.reshape(-1), theirs.reshape(-1)):
                    yield Finding(
                        check="grids",
                        place=f"value {pair.value!r}",
                        found=f"it is quantized with {what} {_number(mine)}, and {name!r} dequantizes it "
                        f"with {what} {_number(theirs)}",
                        cause=f"the {what} of one side was changed or taken from elsewhere",
                    )
        usable = np.isfinite(pair.scale).all() and (pair.scale > 0).all()
        if not usable:
            yield Finding(
                check="grids",
                place=f"value {pair.value!r}",
                found=f"its scale is {_number(pair.scale)}; scales are finite and positive",
                cause="calibration saw nothing, or NaN",
            )


def bias_grids(model: onnx.ModelProto) -> Iterator[Finding]:
    """Biases that do not lie on the grid of their layer's sums."""
    graph = Wiring(model)
    producers, readers = graph.producers(), graph.readers()

    def scale_behind(name: str, *, constant: bool) -> Array | None:
        node = producers.get(name)
        while constant and node is not None and node.op_type == "Transpose":
            node = producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in graph.constants:
            return None
        if constant != (node.input[0] in graph.constants):
            return None
        scale: Array = graph.constants[node.input[1]].astype(np.float64)
        return scale.reshape(-1)

    for node in graph.nodes:
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            continue
        bias = [*node.input, "", ""][2]
        if node.op_type == "MatMul":
            after = readers.get(node.output[0], [])
            if len(after) == 1 and after[0].op_type == "Add":
                bias = next((n for n in after[0].input if n != node.output[0]), "")
        x, w = scale_behind(node.input[0], constant=False), scale_behind(node.input[1], constant=True)
        b = scale_behind(bias, constant=True) if bias else None
        stored = producers[bias].input[0] if b is not None else ""
        if x is None or w is None or b is None or graph.constants[stored].dtype != np.int32 or x.size != 1:
            continue
        if b.size % w.size:
            continue
        wanted = x * np.tile(w, b.size // w.size)
        off = np.abs(b / wanted - 1)
        if off.max() > SAME:
            at = int(off.argmax())
            yield Finding(
                check="grids",
                place=f"bias of layer {node.name!r}",
                found=f"its step is {b[at] / wanted[at]:.4g} times that of input and weight (channel {at}); "
                "it must be the same",
                cause="the scale of the input or of the weights is not the one the bias was made for",
            )


def misfits(bare: Bare, found: Mapping[int, Seen]) -> Iterator[Finding]:
    """Grids that do not suit what samples gave."""
    producers = bare.graph.producers()
    grids: dict[str, set[tuple[float, int]]] = {}
    for pair in bare.pairs:
        grids.setdefault(pair.value, set()).add(_key(pair))
    readers = bare.graph.readers()
    for place, what in found.items():
        pair = bare.pairs[place]
        node = producers.get(pair.value)
        shared = (
            node is not None
            and node.op_type in _MOVES
            and any(_key(pair) in grids.get(n, ()) for n in node.input)
        )
        finding = _clipped(pair, what)
        if finding is None and not shared:
            others = {
                n for after in readers.get(pair.value, []) if after.op_type == "Concat" for n in after.input
            }
            beside = [found[i] for i, p in enumerate(bare.pairs) if i in found and p.value in others]
            finding = _wasted(pair, what, beside, node, bare.graph.constants)
        if finding is not None and not (shared and finding.cause.startswith("calibration")):
            yield finding


def _key(pair: Pair) -> tuple[float, int]:
    return float(pair.scale.reshape(-1)[0]), int(pair.zero_point.reshape(-1)[0])


def _clipped(pair: Pair, what: Seen) -> Finding | None:
    low, high = pair.ends
    step = (high - low) / 255
    over = (what.most > high + step) | (what.least < low - step)
    count = int(over.sum())
    if count < LEAST_SAMPLES or count < CLIPPED_SAMPLES * len(over):
        return None
    energy = what.beyond / (step * step / 12)
    if energy <= CLIPPED_ENERGY:
        return None
    return Finding(
        check="grids",
        place=f"value {pair.value!r}",
        found=f"{count} of {len(over)} real samples go beyond its grid {low:.4g}..{high:.4g} (to "
        f"{float(what.least.min()):.4g}..{float(what.most.max()):.4g}), and what is cut weighs {energy:.3g} "
        f"times its rounding; a quarter of the samples, or {CLIPPED_ENERGY:g} times, is allowed",
        cause="calibration saw other data, or kept too little of the range",
    )


def _wasted(
    pair: Pair,
    what: Seen,
    beside: Sequence[Seen],
    node: onnx.NodeProto | None,
    constants: Mapping[str, Array],
) -> Finding | None:
    """A grid that is too wide for a value and for those that a Concat joins with it, or lies beside it."""
    low, high = pair.ends
    least = min(0.0, *(float(s.least.min()) for s in (what, *beside)))
    most = max(0.0, *(float(s.most.max()) for s in (what, *beside)))
    kind = pair.zero_point.dtype
    span, zero = high - low, int(pair.zero_point.reshape(-1)[0])
    if most == least or kind.itemsize > 1 or (node is not None and node.op_type == "Gather"):
        return None  # dead, or with steps to spare, or of a table with other rows
    grid = f"grid {low:.4g}..{high:.4g}, values {least:.4g}..{most:.4g} on {len(what.least)} real samples"
    if len(what.least) >= FEW_SAMPLES and span > WIDE * (most - least):
        return Finding(
            check="grids",
            place=f"value {pair.value!r}",
            found=f"its grid is {span / (most - least):.3g} times as wide as its values ({grid}); "
            f"{WIDE:g} is allowed",
            cause="the scale is too large: of another value, or calibrated on other data",
        )
    limits = pair.limits
    symmetric = abs(zero - (limits[0] + limits[1] + 1) / 2) <= 1
    positive = node is not None and (node.op_type in _POSITIVE or _clamps_at_zero(node, constants))
    if positive and not symmetric and -low > IDLE * span:
        return Finding(
            check="grids",
            place=f"value {pair.value!r}",
            found=f"it cannot be below 0, and {100 * -low / span:.0f} % of its steps are ({grid})",
            cause=f"its zero point, {zero}, is wrong",
        )
    over = float(np.mean((what.most > high) | (what.least < low)))
    if symmetric or what.clamped or len(what.least) < SHIFTED_SAMPLES or over < SHIFTED_SHARE:
        return None
    step = float(pair.scale.reshape(-1)[0])
    idle = ((least - low) / step, (high - most) / step)
    cut = ((most - high) / step, (low - least) / step)
    for way, (free, gone) in zip(("low", "high"), zip(idle, cut, strict=True), strict=True):
        if free > SHIFTED and gone > 0.3 * SHIFTED:
            return Finding(
                check="grids",
                place=f"value {pair.value!r}",
                found=f"it lies too {way}: {free:.0f} steps are idle at that end, while values go {gone:.0f} "
                f"steps beyond the other ({grid})",
                cause=f"its zero point, {zero}, is wrong",
            )
    return None


def _clamps_at_zero(node: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    if node.op_type != "Clip" or len(node.input) < 2:
        return False
    bound = constants.get(node.input[1])
    return bound is not None and float(bound.reshape(())) >= 0


def port_misfits(bare: Bare, ports: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """Inputs and outputs whose grid reaches beyond what calibration saw at one end, and not to the other.

    No way to choose a grid does that: it keeps both ends, or gives up something at either.

    Args:
        bare: Of the artifact.
        ports: Range that the manifest gives for each float port.
    """
    for pair in bare.pairs:
        if pair.value not in ports or pair.scale.size != 1:
            continue
        least, most = min(ports[pair.value][0], 0.0), max(ports[pair.value][1], 0.0)
        low, high = pair.ends
        step = (high - low) / 255
        if pair.zero_point.dtype.itemsize > 1:
            continue
        for far, short in (
            ((least - low) / step, (most - high) / step),
            ((high - most) / step, (low - least) / step),
        ):
            if far > 3 and short > 8:
                yield Finding(
                    check="grids",
                    place=f"value {pair.value!r}",
                    found=f"its grid {low:.4g}..{high:.4g} goes {far:.0f} steps beyond the calibrated range "
                    f"{least:.4g}..{most:.4g} at one end and lacks {short:.0f} steps at the other",
                    cause="its zero point is wrong",
                )


def _number(values: Array) -> str:
    flat = values.reshape(-1)
    return f"{flat[0]:.6g}" if flat.size == 1 else f"{flat[0]:.6g}, ... ({flat.size} values)"
