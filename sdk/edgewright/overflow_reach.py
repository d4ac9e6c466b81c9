"""Reaching an overflow: an input of the whole network that makes a layer's 16-bit sums overflow.

A proof says that a layer has such inputs; what comes before it may never produce one. So the network is run,
exactly, on real samples, and the sums of each layer's worst pairs are looked at; where none overflows, the
samples are changed at random, keeping what raises the sums for some rounds. Found is found; not found proves
nothing, and is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.graph import onnx_function
from edgewright.integer_layers import IntegerLayer
from edgewright.narrow_kernels import HIGH, LOW, Kernel
from edgewright.overflow_proof import Risk, activation_offset
from edgewright.wiring import attributes

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Run = Callable[[Mapping[str, Array]], Arrays]

SAMPLES = 16  # that are looked at, fewer of large ones
VALUES = 1 << 19  # of samples that are looked at, and again of changed ones
ROUNDS = 32
PAIRS = 64  # of a layer that are looked at
BATCH = 8  # changed inputs that are tried together
BATCH_VALUES = 1 << 16  # of inputs that are run at once


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What was found for one layer.

    Attributes:
        overflowing: Samples that overflow as they are.
        samples: That were looked at.
        tries: Changed inputs that were run in vain, or until one overflowed.
        largest: The sum nearest to overflow, or beyond, as a share of the limit.
        found: An input of the network that overflows, by name, batch 1; None where none was found.
    """

    overflowing: int
    samples: int
    tries: int
    largest: float
    found: Arrays | None

    def said(self) -> str:
        """For people."""
        if self.overflowing:
            return f"overflows on {self.overflowing} of {self.samples} samples"
        if self.found is not None:
            return f"overflows on a changed sample, found in {self.tries} tries"
        return (
            f"no network input found that overflows ({self.samples} samples, {self.tries} tries; the nearest "
            f"sum is {self.largest:.0%} of the limit): the layer alone can"
        )


def reach(
    graph: onnx.ModelProto,
    risky: Sequence[tuple[IntegerLayer, Kernel, Risk]],
    samples: Mapping[str, Array],
    *,
    rounds: int | None = None,
    seed: int = 0,
) -> list[Reach]:
    """Looks for inputs of the network that make its layers overflow.

    Args:
        graph: The QDQ graph.
        risky: Layers of it that can overflow.
        samples: Real inputs by name, batch first.
        rounds: How often to change inputs where no sample overflows, `BATCH` at a time; `ROUNDS`, or fewer of
            large inputs, if left out.
        seed: Draws the samples and their changes.

    Returns:
        One for each of `risky`.
    """
    if not risky:
        return []
    random = np.random.default_rng(seed)
    count = len(next(iter(samples.values())))
    size = sum(v[:1].size for v in samples.values())
    rows = np.sort(random.permutation(count)[: max(2, min(SAMPLES, VALUES // size))])
    chosen = {n: v[rows] for n, v in samples.items()}
    run = _activations(graph, sorted({layer.value for layer, _, _ in risky}))
    shares = _looked_at(run, risky, chosen, range(len(risky)))
    best = [int(s.argmax()) for s in shares]
    nearest = [{n: v[i : i + 1] for n, v in chosen.items()} for i in best]
    largest = [float(s.max()) for s in shares]
    overflowing = [int((s > 1).sum()) for s in shares]
    tries = [0] * len(risky)
    for turn in range(max(2, min(ROUNDS, VALUES // (BATCH * size))) if rounds is None else rounds):
        open_ones = [i for i, share in enumerate(largest) if share <= 1]
        if not open_ones:
            break
        at = open_ones[turn % len(open_ones)]
        changed = _changed(nearest[at], chosen, random)
        for i, found in zip(open_ones, _looked_at(run, risky, changed, open_ones), strict=True):
            tries[i] += BATCH
            if found.max() > largest[i]:
                k = int(found.argmax())
                largest[i], nearest[i] = float(found[k]), {n: v[k : k + 1] for n, v in changed.items()}
    return [
        Reach(
            overflowing=overflowing[i],
            samples=len(rows),
            tries=tries[i],
            largest=largest[i],
            found=nearest[i] if largest[i] > 1 else None,
        )
        for i in range(len(risky))
    ]


def _looked_at(
    run: Run,
    risky: Sequence[tuple[IntegerLayer, Kernel, Risk]],
    inputs: Arrays,
    which: Iterable[int],
) -> list[npt.NDArray[np.float64]]:
    """For each of these layers, how near each input's sums come to overflow."""
    count = len(next(iter(inputs.values())))
    at_once = max(1, BATCH_VALUES // sum(v[:1].size for v in inputs.values()))
    found: list[list[npt.NDArray[np.float64]]] = []
    for start in range(0, count, at_once):
        few = {n: v[start : start + at_once] for n, v in inputs.items()}
        values = run(few)
        size = min(at_once, count - start)
        found.append([_shares(*risky[i], values[risky[i][0].value], size) for i in which])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _activations(graph: onnx.ModelProto, names: Sequence[str]) -> Run:
    """The graph, computed without integer kernels, giving these values."""
    run = onnx_function(graph, names)
    constants = {i.name for i in graph.graph.initializer}
    inputs = [i for i in graph.graph.input if i.name not in constants]
    if not any(i.type.tensor_type.shape.dim[0].dim_value for i in inputs if i.type.tensor_type.shape.dim):
        return run

    def one_by_one(feed: Mapping[str, Array]) -> Arrays:  # the batch is fixed, at 1 or filled up
        size = next(d for i in inputs if (d := i.type.tensor_type.shape.dim[0].dim_value))
        count = len(next(iter(feed.values())))
        parts = [
            run({n: np.repeat(v[i : i + 1], size, axis=0) for n, v in feed.items()}) for i in range(count)
        ]
        return {n: np.concatenate([p[n][: len(p[n]) // size] for p in parts]) for n in names}

    return one_by_one


def _shares(
    layer: IntegerLayer, kernel: Kernel, risk: Risk, values: Array, count: int
) -> npt.NDArray[np.float64]:
    """How near each sample's sums come to overflow, (count,): beyond 1 they do."""
    stored = np.rint(values / np.float32(layer.scale)) + layer.zero_point
    limits = np.iinfo(layer.dtype)
    x = np.clip(stored, limits.min, limits.max).astype(np.int32) - activation_offset(layer, kernel)
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int32)
    result = np.zeros(count)
    for output, terms, total in _each(risk):
        value: Any = 0
        for term in terms:
            if term < weight.shape[1]:
                value = value + weight[output, term] * _of_term(layer, kernel, x, output, term)
        far = value.reshape(count, -1)
        share = far.max(axis=1) / HIGH if total > 0 else far.min(axis=1) / LOW
        result = np.maximum(result, share)
        if (result > 1).all():
            break
    return result


def _each(risk: Risk) -> list[tuple[int, list[int], int]]:
    """Some of a layer's pairs: the worst, and others from all of those kept."""
    some = np.unique(np.linspace(0, len(risk.sums) - 1, PAIRS).astype(np.int64))
    return [(int(risk.outputs[i]), [int(t) for t in risk.terms[i]], int(risk.sums[i])) for i in some]


def _of_term(layer: IntegerLayer, kernel: Kernel, x: Array, output: int, term: int) -> Array:
    """The activation that meets one weight, at every position of the result."""
    if layer.node.op_type != "Conv":
        return x[..., term]
    channel, *place = np.unravel_index(term, layer.weight.shape[1:])
    group = output // (len(layer.weight) // layer.groups)
    plane = x[:, group * layer.weight.shape[1] + int(channel)]
    settings = attributes(layer.node)
    rank = plane.ndim - 1
    strides = settings.get("strides", [1] * rank)
    dilations = settings.get("dilations", [1] * rank)
    pads = _pads(settings, plane.shape[1:], layer.weight.shape[2:], strides, dilations)
    if any(a or b for a, b in pads):
        zero = layer.zero_point - activation_offset(layer, kernel)
        plane = np.pad(plane, ((0, 0), *pads), constant_values=zero)
    cut = [slice(None)]
    for axis in range(rank):
        start = int(place[axis]) * dilations[axis]
        span = plane.shape[1 + axis] - (layer.weight.shape[2 + axis] - 1) * dilations[axis]
        cut.append(slice(start, start + max(span, 1), strides[axis]))
    return plane[tuple(cut)]


def _pads(
    settings: Mapping[str, Any],
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    rank = len(sizes)
    how = settings.get("auto_pad", b"NOTSET")
    if how not in (b"SAME_UPPER", b"SAME_LOWER"):
        given = settings.get("pads", [0] * 2 * rank)
        return [(given[a], given[a + rank]) for a in range(rank)]
    result = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        whole = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less = whole // 2
        result.append((less, whole - less) if how == b"SAME_UPPER" else (whole - less, less))
    return result


def _changed(nearest: Arrays, samples: Arrays, random: np.random.Generator) -> Arrays:
    """`BATCH` variations of an input, within the range of the samples."""
    changed: Arrays = {}
    kinds = random.integers(0, 4, BATCH)
    other = random.integers(0, len(next(iter(samples.values()))), BATCH)
    for name, one in nearest.items():
        seen = samples[name]
        low, high = seen.min(), seen.max()
        many = np.repeat(one, BATCH, axis=0)
        if one.dtype.kind != "f":  # numbers of a table's rows: some from other samples
            take = random.random(many.shape) < random.random((BATCH, *[1] * (many.ndim - 1)))
            changed[name] = np.where(take, seen[other], many)
            continue
        for i, kind in enumerate(kinds):
            strength = float(2.0 ** -random.integers(0, 6))
            if kind == 0:  # noise
                many[i] += (strength * (high - low) * random.standard_normal(many[i].shape)).astype(one.dtype)
            elif kind == 1:  # contrast
                middle = many[i].mean()
                many[i] = middle + (many[i] - middle) * (1 + 3 * strength)
            elif kind == 2:  # some values to the ends of the range
                hit = random.random(many[i].shape) < strength
                many[i] = np.where(hit, random.choice(np.array([low, high])), many[i])
            else:  # mixed with another sample
                many[i] += strength * (seen[other[i]] - many[i])
        changed[name] = np.clip(many, low, high)
    return changed
