"""The float model as it was before its weights were rounded: with the factors that a recipe moved.

Equalization and smoothing divide channels by factors before a seam and multiply them behind it (seams.py). An
artifact does not say by which. They are read off its weights here, and done to the float model, whose
function they leave as it is: so whatever is read off, nothing that is wrong can become right by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.seams import Seam, scale, seams, weight_rows
from edgewright.soundness.bare import Bare
from edgewright.soundness.pairing import Pairing
from edgewright.wiring import Wiring

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
CHANGED = 0.01  # relative: what rounding alone does not do to a channel of weights
CHANGED_NORM = 1e-4  # nor float32 to the gain of a norm
LARGEST = 1e4  # of a factor


def prepared(floats: onnx.ModelProto, other: Bare) -> tuple[Wiring, frozenset[str]]:
    """The float graph with an artifact's factors at its seams, and the constants that they changed.

    Args:
        floats: A normalized float graph.
        other: The bare graph of the artifact.
    """
    graph = Wiring(floats)
    pairing = Pairing(floats=Wiring(floats), bare=other)
    names = {mine: theirs for theirs, mine in pairing.constants.items()}
    touched: set[str] = set()
    for seam in seams(graph):
        found = _of_norm(seam, graph, other) if _is_norm(seam) else _of_layer(seam, graph, other, names)
        if found is None:
            continue
        factor, offset = found
        trial = _copied(graph)
        twin = next(s for s in seams(trial) if s.value == seam.value and s.before.name == seam.before.name)
        scale(trial, twin, factor, offset if twin.moves else None)
        if _misfit(twin, trial, other, names) < 0.8 * _misfit(seam, graph, other, names):
            scale(graph, seam, factor, offset if seam.moves else None)
            touched.update(n for node in (seam.before, *seam.after) for n in node.input[1:] if n)
            touched.add(seam.bias)
            readers = graph.readers()
            for node in seam.after:
                touched.update(
                    n
                    for after in readers.get(node.output[0], [])
                    for n in after.input
                    if n in graph.constants
                )
    return graph, frozenset(touched - {""})


def _is_norm(seam: Seam) -> bool:
    return seam.before.op_type == "LayerNormalization"


def _copied(graph: Wiring) -> Wiring:
    return Wiring(graph.model())


def _of_norm(seam: Seam, graph: Wiring, other: Bare) -> tuple[Floats, Floats | None] | None:
    """Factor and offset by which the norm before a layer differs."""
    producers = other.graph.producers()
    layer = next((n for n in other.graph.nodes if n.output and n.output[0] in _results(seam)), None)
    norm = producers.get(layer.input[0]) if layer is not None else None
    if norm is None or norm.op_type != "LayerNormalization" or norm.input[1] not in other.graph.constants:
        return None
    gain = graph.constants[seam.before.input[1]].astype(np.float64)
    theirs = other.graph.constants[norm.input[1]].astype(np.float64)
    if gain.shape != theirs.shape:
        return None
    usable = (np.abs(theirs) > 1e-12) & (np.abs(gain) > 1e-12)
    factor = np.divide(gain, theirs, out=np.ones_like(gain), where=usable)
    shifts = [
        g[n.input[2]].astype(np.float64) if len(n.input) > 2 and n.input[2] in g else np.zeros(gain.shape)
        for g, n in ((graph.constants, seam.before), (other.graph.constants, norm))
    ]
    offset = shifts[0] - shifts[1] * factor
    if not ((factor > 1 / LARGEST) & (factor < LARGEST)).all():
        return None
    moved = np.abs(offset).max() > CHANGED_NORM * max(np.abs(shifts[0]).max(), 1e-12)
    if np.abs(factor - 1).max() < CHANGED_NORM and not moved:
        return None
    return factor, offset if moved else None


def _results(seam: Seam) -> set[str]:
    given = {o for n in seam.after for o in n.output}
    return given | {f"{n}.product" for n in given}


def _of_layer(seam: Seam, graph: Wiring, other: Bare, names: dict[str, str]) -> tuple[Floats, None] | None:
    """Factor by which the channels of the layer before differ, where that is all they differ by."""
    theirs = names.get(seam.before.input[1])
    if theirs is None:
        return None
    rows = _rows(weight_rows(seam.before, graph))
    dequantized = other.graph.constants[theirs]
    got = _rows(dequantized.T if seam.before.op_type == "MatMul" else dequantized)
    product = (rows * got).sum(axis=1)
    power = np.square(rows).sum(axis=1)
    usable = (product > 0) & (power > 0)
    factor = np.divide(power, product, out=np.ones_like(power), where=usable)
    factor = np.clip(factor, 1 / LARGEST, LARGEST)
    if np.count_nonzero(np.abs(factor - 1) > CHANGED) * 2 < len(factor):
        return None
    return factor, None


def _misfit(seam: Seam, graph: Wiring, other: Bare, names: dict[str, str]) -> float:
    """How far the weights behind a seam are from an artifact's, each channel up to a factor."""
    worst = 0.0
    for node in seam.after:
        theirs = names.get(node.input[1])
        if theirs is None:
            continue
        want = _rows(weight_rows(node, graph))
        dequantized = other.graph.constants[theirs]
        got = _rows(dequantized.T if node.op_type == "MatMul" else dequantized)
        if want.shape != got.shape:
            continue
        power = np.square(want).sum(axis=1)
        ratio = (want * got).sum(axis=1) / np.maximum(power, 1e-30)
        off = np.square(got - ratio[:, None] * want).sum()
        if _depthwise(node):  # of which a factor is not one between its inputs
            off += np.square((ratio - 1)[:, None] * want).sum()
        worst = max(worst, float(off / max(np.square(got).sum(), 1e-30)))
    return worst


def _depthwise(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def _rows(values: Array) -> Floats:
    return values.reshape(len(values), -1).astype(np.float64)
