"""Each operator of a bare graph by itself, fed with the float model's values.

Weights are those of the float model, where they have the same place, and are looked at by themselves
(weights.py). So nothing is left that may differ but the rounding of float32: an operator that gives something
else is another operator, has other attributes, or reads something else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.fusion import MASKED
from edgewright.graph import onnx_function
from edgewright.soundness.grids import Seen, seen
from edgewright.soundness.pairing import Pairing

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
MOST_BYTES = 64 << 20  # of values held of one graph
SAMPLES = 64  # of the float model
FEWEST = 8
MOST_WORK = 256 << 20  # bytes of values that the float model gives for the grids
ENOUGH = 4  # samples for each operator by itself, which differs on any or on none
LOCAL = ".here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What an operator gives for the float model's values.

    Attributes:
        value: Its result.
        operator: Its kind.
        exact: Whether it has none but the float model's constants.
        sqnr_db: What it gives against the float model's result.
    """

    value: str
    operator: str
    exact: bool
    sqnr_db: float


def float_values(
    pairing: Pairing, samples: Mapping[str, Array], most: int = SAMPLES
) -> tuple[dict[str, Array], dict[int, Seen]]:
    """The float model's values by their names in the bare graph, and what its grids are to them.

    Values are those of the first few samples, as many as memory allows; more go through for the grids.

    Args:
        pairing: Of the two.
        samples: Inputs by name, (samples, ...).
        most: Samples that are used at most.
    """
    shapes = pairing.shapes[1]
    size = 4 * sum(math.prod(shapes[n]) for n in pairing.values)
    count = min(most, len(next(iter(samples.values()))), max(FEWEST, MOST_WORK // max(size, 1)))
    piece = max(1, min(count, MOST_BYTES // max(size, 1)))
    inside = {their: mine for their, mine in pairing.values.items() if mine not in pairing.floats.inputs}
    run = onnx_function(pairing.floats.model(), list(inside.values()))
    first: dict[str, Array] = {}
    found: dict[int, Seen] = {}
    few = min(ENOUGH, piece)
    ends = [0, *range(few, count, piece), count]
    for start, end in itertools.pairwise(dict.fromkeys(ends)):
        feed = {n: v[start:end] for n, v in samples.items()}
        got = _given(run, feed)
        values = {**feed, **{their: got[mine] for their, mine in inside.items()}}
        first = first or values
        for place, what in seen(pairing.bare, values).items():
            found[place] = found[place].joined(what) if place in found else what
    return first, found


def _given(run: Run, feed: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return run(feed)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise ExportError(f"ONNX Runtime cannot run its operators one by one: {error}") from error


def local_results(pairing: Pairing, values: Mapping[str, Array]) -> tuple[dict[str, Array], set[str]]:
    """What each operator gives for the float model's values, and those that have only its constants."""
    graph, known = pairing.bare.graph, set(pairing.values)
    made = onnx.ModelProto()
    made.CopyFrom(graph.model())
    del made.graph.node[:], made.graph.initializer[:], made.graph.input[:], made.graph.output[:]
    del made.graph.value_info[:]
    constants = {
        n: pairing.floats.constants[pairing.constants[n]]
        if n in pairing.constants and n in pairing.bare.integers
        else v
        for n, v in graph.constants.items()
    }
    loose = {n for n in pairing.bare.integers if n not in pairing.constants}
    outputs: list[str] = []
    for node in graph.nodes:
        if loose.intersection(node.input):
            loose.update(n if n not in known else f"{n}{LOCAL}" for n in node.output)
        twin = made.graph.node.add()
        twin.CopyFrom(node)
        for index, name in enumerate(node.output):
            if name in known:
                twin.output[index] = f"{name}{LOCAL}"
                outputs.append(name)
    used = {n for node in made.graph.node for n in node.input}
    for name in used & (known | set(graph.inputs)):
        kind = onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype)
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values[name].shape))
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in constants.items() if n in used
    )
    made.graph.output.extend(
        onnx.helper.make_tensor_value_info(f"{n}{LOCAL}", onnx.TensorProto.FLOAT, None) for n in outputs
    )
    feed = {i.name: values[i.name] for i in made.graph.input}
    got = _given(onnx_function(made), feed)
    return {n: got[f"{n}{LOCAL}"] for n in outputs}, {n for n in outputs if f"{n}{LOCAL}" not in loose}


def locals_of(pairing: Pairing, values: Mapping[str, Array]) -> list[Local]:
    """Every operator whose result the float model has too."""
    got, exact = local_results(pairing, values)
    kinds = {o: n.op_type for n in pairing.bare.graph.nodes for o in n.output}
    ends = {p.value: p.ends for p in pairing.bare.pairs}
    found = []
    for name, value in got.items():
        db = _sqnr_db(values[name], value)
        if db < 60 and name in ends:
            low, high = ends[name]
            db = max(db, _sqnr_db(values[name], np.clip(value, low if abs(low) < 1e-9 else None, high)))
        found.append(Local(value=name, operator=kinds[name], exact=name in exact, sqnr_db=db))
    return found


def _sqnr_db(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape:
        return -np.inf
    off = np.where((wanted <= MASKED) & (got <= MASKED), 0, got - wanted)
    signal = np.where(wanted <= MASKED, 0, wanted)
    noise = float(np.vdot(off, off))
    power = float(np.vdot(signal, signal))
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(power / noise)) if power else -np.inf
