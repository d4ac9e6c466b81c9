"""Lengths: one model, quantized once, with an integer program for each of several lengths of its sequences.

The graph is traced with a free length and made fixed for each length, one after the other. The largest is
calibrated and quantized; the others take its grids, and so its weights. A shorter sequence may be padded
where a mask hides the padding. That this changes nothing is tried, not believed: integers are exact, so the
results of a sequence by itself and of the same, padded, must be the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from edgewright.calibrate import Grid
from edgewright.errors import ExportError
from edgewright.golden import GOLDEN_BYTES, GOLDEN_SAMPLES
from edgewright.indices import tabulate
from edgewright.int4 import INT4
from edgewright.lower import lower
from edgewright.normalform import normalize
from edgewright.post_training import PostTraining
from edgewright.quantization import BaseGrids, Quantized, activations_to_observe, quantize_graph
from edgewright.recipe import Quantize
from edgewright.rounding import like
from edgewright.samples import Samples
from edgewright.weights import byte_ranges
from edgewright.wiring import check_ports, initializers, value_shapes
from edgewright_device import Lengths
from edgewright_kernels import Engine
from edgewright_kernels.plan import Plan, encode

MOST_LENGTHS = 16
TRIED = 16  # samples that padding is tried on, for each pair of lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """A graph whose sequences have a free length.

    Attributes:
        graph: As it was traced.
        sizes: The lengths asked for, ascending.
        axes: The axis of each input that has the length, by its name.
    """

    graph: onnx.ModelProto
    sizes: tuple[int, ...]
    axes: Mapping[str, int]

    @classmethod
    def of(cls, graph: onnx.ModelProto, lengths: Sequence[int]) -> Sequences:
        """Finds the axes of sequences: those beside the batch that are free.

        Raises:
            ExportError: There is none, or they are of several kinds; or the lengths are none.
        """
        sizes = tuple(sorted(set(lengths)))
        if not 0 < len(sizes) <= MOST_LENGTHS or sizes[0] < 1:
            raise ExportError(f"lengths {list(lengths)}: 1 to {MOST_LENGTHS} positive ones are needed")
        axes: dict[str, int] = {}
        symbols: set[str] = set()
        constants = {i.name for i in graph.graph.initializer}
        for value in graph.graph.input:
            if value.name in constants:
                continue
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis and not dim.HasField("dim_value"):
                    if value.name in axes:
                        raise ExportError(
                            f"input {value.name!r} has two free sizes beside the batch; one may be"
                        )
                    axes[value.name] = axis
                    symbols.add(dim.dim_param)
        if len(symbols) != 1:
            what = (
                f"free sizes of several names, {sorted(symbols)}" if symbols else "no free size but the batch"
            )
            raise ExportError(
                f"lengths {list(sizes)}: the inputs have {what}; trace the model with one free length"
            )
        return cls(graph=graph, sizes=sizes, axes=axes)

    def at(self, length: int) -> onnx.ModelProto:
        """The normalized graph of one length.

        Raises:
            ExportError: The graph cannot have that length.
        """
        fixed = onnx.ModelProto()
        fixed.CopyFrom(self.graph)
        del fixed.graph.value_info[:]
        for value in fixed.graph.input:
            if value.name in self.axes:
                value.type.tensor_type.shape.dim[self.axes[value.name]].dim_value = length
        for value in fixed.graph.output:
            for dim in value.type.tensor_type.shape.dim[1:]:
                if dim.HasField("dim_param"):
                    dim.Clear()  # inferred anew
        normal = normalize(fixed)
        check_ports(normal)
        return tabulate(normal)

    def cropped(self, values: Samples, length: int) -> Samples:
        """The beginning of each sequence."""
        return {
            n: np.ascontiguousarray(np.take(v, range(length), self.axes[n])) if n in self.axes else v
            for n, v in values.items()
        }

    def padded(self, values: Samples, size: int, filling: Samples) -> Samples:
        """Sequences with more behind them: what `filling` has there."""
        made: Samples = {}
        for name, value in values.items():
            axis = self.axes.get(name)
            made[name] = value
            if axis is not None:
                more = np.take(filling[name], range(value.shape[axis], size), axis)
                made[name] = np.concatenate([value, more], axis)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs of a model.

    Attributes:
        plans: By length.
        weights: weights.safetensors.
        lengths: What the manifest says.
        golden: Inputs and outputs of each length but the largest.
        free: The outputs that have the length, and its axis.
        note: What became of padding, in a sentence.
    """

    plans: Mapping[int, Plan]
    weights: bytes
    lengths: Lengths
    golden: Mapping[int, tuple[Samples, Samples]]
    free: Mapping[str, int]
    note: str


def programs(
    sequences: Sequences,
    largest: PostTraining,
    samples: Samples,
    settings: Quantize,
    base: BaseGrids | None,
    mask: str | None,
) -> Programs:
    """Lowers a program for each length, and tries whether padding changes anything.

    Args:
        sequences: The graph and its lengths.
        largest: The graph of the largest length, quantized.
        samples: By input name, of the largest length.
        settings: As for the largest.
        base: As for the largest.
        mask: The input whose zeros hide padding; found, if there is one, when left out.

    Raises:
        ExportError: A graph cannot be lowered, or has other values than the largest; or padding changes
            results in spite of the mask that was named.
        KernelError: The native engine refuses a program.
    """
    *shorter, top = sequences.sizes
    if mask is not None and mask not in sequences.axes:
        raise ExportError(f"mask {mask!r}: the inputs with a length are {sorted(sequences.axes)}")
    quantized = {top: largest.quantized}
    store, free = dict(largest.quantized.weights), dict[str, int]()
    names = {top: {n: n for n in store}}
    tried = 1 + sequences.sizes[0] // 2  # a length without a program of its own
    for length in dict.fromkeys((*shorter, tried)):
        graph = largest.preparation.of(sequences.at(length))
        free |= _free_outputs(graph, length, largest.quantized.model)
        quantized[length] = _like(graph, length, settings, base, largest)
        if length in sequences.sizes:
            names[length] = _shared(quantized[length].weights, store, length)
    weights = _saved(store)
    plans = {n: _lowered(quantized[n].model, names[n], weights) for n in sequences.sizes}
    engines = {n: Engine(encode(plan), weights) for n, plan in plans.items()}
    if tried not in engines:
        where = _shared(quantized[tried].weights, store, tried)
        engines[tried] = Engine(encode(_lowered(quantized[tried].model, where, _saved(store))), _saved(store))
    found = mask or _mask_in(samples, sequences.axes)
    wrong = _difference(sequences, engines, free, samples, found) if found else ""
    if wrong and mask:
        raise ExportError(f"padding that the mask {mask!r} hides changes the results: {wrong}")
    padded = found is not None and not wrong
    why = f"padding behind the mask {found!r} changes results ({wrong})" if wrong else "no input is a mask"
    some = {n: v[:GOLDEN_SAMPLES] for n, v in samples.items()}
    golden: dict[int, tuple[Samples, Samples]] = {}
    for length in sequences.sizes[:-1]:
        inputs = _fewer(sequences.cropped(some, length), len(sequences.sizes))
        golden[length] = inputs, engines[length].run(inputs)
    return Programs(
        plans=plans,
        weights=weights,
        lengths=Lengths(sizes=sequences.sizes, mask=found if padded else None),
        golden=golden,
        free=free,
        note=(
            f"any length up to {top} is taken: padding behind the mask {found!r} changes no bit"
            if padded
            else f"only the lengths {', '.join(map(str, sequences.sizes))} are taken: {why}"
        ),
    )


def _saved(store: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return safetensors.numpy.save(dict(sorted(store.items())))


def _lowered(graph: onnx.ModelProto, names: Mapping[str, str], weights: bytes) -> Plan:
    """The program of a graph, of whose constants `names` says under which name they are stored."""
    ranges = byte_ranges(weights)
    return lower(graph, {n: ranges[stored] for n, stored in names.items()}, len(weights))


def _fewer(inputs: Samples, lengths: int) -> Samples:
    one = sum(v[:1].nbytes for v in inputs.values())
    return {n: v[: max(1, GOLDEN_BYTES // (one * lengths))] for n, v in inputs.items()}


def _like(
    graph: onnx.ModelProto,
    length: int,
    settings: Quantize,
    base: BaseGrids | None,
    largest: PostTraining,
) -> Quantized:
    """The graph of one length on the grids of the largest."""
    if missing := set(activations_to_observe(graph)) - largest.observed.keys():
        raise ExportError(
            f"at length {length} the graph has a value {min(missing)!r} that the largest lacks, so they "
            "cannot share their grids; export it for one length"
        )
    constants = initializers(largest.quantized.model)
    grids = {
        node.input[0]: Grid(
            scale=float(constants[node.input[1]]),
            zero_point=int(constants[node.input[2]]),
            dtype="int16" if constants[node.input[0]].dtype == np.int16 else "uint8",
        )
        for node in largest.quantized.model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].dtype in (np.uint8, np.int16)
    }
    made = quantize_graph(
        graph,
        largest.observed,
        method=settings.calibration,
        percentile=settings.percentile,
        base=base,
        overflow_safe=settings.overflow_safe,
        activations=settings.activations,
        constants=grids,
        widened=largest.quantized.widened,
        four_bits=[n for n, v in constants.items() if v.dtype == INT4],
    )
    return like(made, largest.quantized.model)


def _shared(
    weights: Mapping[str, npt.NDArray[Any]], store: dict[str, npt.NDArray[Any]], length: int
) -> dict[str, str]:
    """Where each constant of a length is stored: with the others where it is the same, else by itself."""
    names: dict[str, str] = {}
    for name, value in weights.items():
        kept = store.get(name)
        same = kept is not None and kept.dtype == value.dtype and np.array_equal(kept, value)
        names[name] = name if same or kept is None else f"{name}.{length}"
        store[names[name]] = value
    return names


def _free_outputs(graph: onnx.ModelProto, length: int, largest: onnx.ModelProto) -> dict[str, int]:
    here, there = value_shapes(graph), value_shapes(largest)
    found: dict[str, int] = {}
    for value in graph.graph.output:
        changed = [
            i for i, (a, b) in enumerate(zip(here[value.name], there[value.name], strict=True)) if a != b
        ]
        if not changed:
            continue
        if len(changed) > 1 or here[value.name][changed[0]] != length:
            raise ExportError(
                f"output {value.name!r} is {here[value.name]} at length {length}; one size may be the length"
            )
        found[value.name] = changed[0]
    return found


# Padding


def _mask_in(samples: Samples, axes: Mapping[str, int]) -> str | None:
    """The input of zeros and ones; where there are several, the one that is called a mask."""
    binary = [n for n in axes if np.isin(samples[n], (0, 1)).all() and samples[n].any()]
    named = [n for n in binary if "mask" in n.lower()]
    for found in (binary, named):
        if len(found) == 1:
            return found[0]
    return None


def _difference(
    sequences: Sequences, engines: Mapping[int, Engine], free: Mapping[str, int], samples: Samples, mask: str
) -> str:
    """What padding changes, or an empty string.

    Each length is padded to the next one and to the largest: with zeros, as a device does it; and with other
    samples, which must not matter either where the mask hides them.
    """
    random = np.random.default_rng(0)
    ordered = sorted(engines)
    for length, after in pairwise(ordered):
        for size in dict.fromkeys((after, ordered[-1])):
            some = {n: v[:TRIED] for n, v in samples.items()}
            nothing = {n: np.zeros_like(v) for n, v in some.items()}
            other = {n: v[random.permutation(len(v))[:TRIED]] for n, v in samples.items()}
            alone = sequences.cropped(some, length)
            np.moveaxis(alone[mask], sequences.axes[mask], 0)[0] = 1  # of nothing at all there is no result
            want = engines[length].run(alone)
            for what, filling in (("zeros", nothing), ("other values", {**other, mask: nothing[mask]})):
                got = engines[size].run(sequences.padded(alone, size, filling))
                for name, value in want.items():
                    axis = free.get(name)
                    kept = got[name] if axis is None else np.take(got[name], range(length), axis)
                    if not np.array_equal(value, kept):
                        return f"output {name!r} at length {length} padded to {size} with {what}"
    return ""
