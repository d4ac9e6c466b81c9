"""The float graph that an artifact was made of, from the reference that it is verified with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.graph import float_graph, quantizes
from edgewright.indices import tabulate
from edgewright.lengths import Sequences
from edgewright.normalform import normalize
from edgewright.soundness.bare import Bare, Integers, bare
from edgewright.subject import Subject
from edgewright.wiring import Wiring

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[Any]


def reference_graph(
    model: nn.Module | Path, subject: Subject, samples: Mapping[str, Array]
) -> tuple[onnx.ModelProto, bool]:
    """The reference as one normalized float graph, its inputs called as the subject's; had it grids?

    Args:
        model: As `verify` takes it.
        subject: Its inputs are listed in the same order.
        samples: By the subject's names, (samples, ...).

    Raises:
        ExportError: It cannot be read or traced.
    """
    lengths = subject.artifact.lengths if subject.artifact else None
    example = None if isinstance(model, Path) else [samples[p.name][:2] for p in subject.inputs]
    axes = [1 + p.shape[1:].index(None) if None in p.shape[1:] else None for p in subject.inputs]
    if _is_trained(model):
        raw = model.trained_graph()  # type: ignore[union-attr,operator]
    else:
        raw = float_graph(model, example, slim=False, sequence=axes if lengths and example else None)
    grids = quantizes(raw)
    if grids:
        raw = bare(raw).graph.model()
    if lengths:
        return renamed(Sequences.of(raw, lengths.sizes).at(lengths.sizes[-1]), subject), grids
    return renamed(tabulate(normalize(raw)), subject), grids


def _is_trained(model: nn.Module | Path) -> bool:
    if isinstance(model, Path):
        return False
    from edgewright.fake_quantized import FakeQuantized  # torch is loaded, as the model is a module

    return isinstance(model, FakeQuantized)


def renamed(model: onnx.ModelProto, subject: Subject) -> onnx.ModelProto:
    """The graph with inputs and outputs called as the subject's, which are listed in the same order."""
    graph = Wiring(model)
    names: dict[str, str] = {}
    if len(graph.inputs) == len(subject.inputs) and len(graph.outputs) == len(subject.outputs):
        names = dict(zip(graph.inputs, (p.name for p in subject.inputs), strict=True))
        names |= dict(zip(graph.outputs, (p.name for p in subject.outputs), strict=True))
    names = {old: new for old, new in names.items() if old != new}
    if not names:
        return model
    taken = {*graph.constants, *(o for n in graph.nodes for o in n.output)} - names.keys()
    clash = {n: graph.fresh(n) for n in names.values() if n in taken}
    every = {**clash, **names}
    graph.constants = {every.get(n, n): v for n, v in graph.constants.items()}
    for node in graph.nodes:
        node.input[:] = [every.get(n, n) for n in node.input]
        node.output[:] = [every.get(n, n) for n in node.output]
    made = graph.model()
    for value in (*made.graph.input, *made.graph.output):
        value.name = every.get(value.name, value.name)
    return made


def normal(found: Bare) -> Bare:
    """A bare graph of another tool in normal form, its grids and integers under their new names.

    Raises:
        ExportError: It cannot be normalized.
    """
    graph = Wiring(tabulate(normalize(found.graph.model())))
    values = {*graph.inputs, *(o for n in graph.nodes for o in n.output)}
    integers: dict[str, Integers] = {}
    for name, value in graph.constants.items():
        if name in found.integers and found.integers[name].steps.shape == value.shape:
            integers[name] = found.integers[name]
            continue
        for known in found.integers.values() if value.dtype.kind == "f" and value.ndim else ():
            if (moved := _moved(known, value)) is not None:
                integers[name] = moved
                break
    return Bare(graph=graph, pairs=[p for p in found.pairs if p.value in values], integers=integers)


def _moved(known: Integers, value: Array) -> Integers | None:
    """The integers of a constant that simplifying turned or reshaped."""
    if known.steps.size != value.size:
        return None
    turned = known.steps.ndim == 2 and known.steps.T.shape == value.shape
    for steps, scale, axis in (
        (known.steps.reshape(value.shape), known.scale.reshape(value.shape), known.axis)
        if known.steps.shape == value.shape or not turned
        else (known.steps.T, known.scale.T, None if known.axis is None else 1 - known.axis),
        (known.steps.T, known.scale.T, None if known.axis is None else 1 - known.axis)
        if turned
        else (known.steps.reshape(value.shape), known.scale.reshape(value.shape), known.axis),
    ):
        if np.allclose(steps * scale, value, rtol=1e-5, atol=0):
            return known.moved(steps, scale, axis if axis is None or axis < value.ndim else None)
    return None
