"""Samples: calibration data in any form that people have it in, as arrays by input name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid
from edgewright.errors import ExportError
from edgewright.graph import forward_parameters
from edgewright.wiring import Wiring, value_shapes

if TYPE_CHECKING:
    from torch import nn

MAX_CALIBRATION_SAMPLES = 1024
DRAWN = 64

Samples = dict[str, npt.NDArray[Any]]


def calibration_samples(calibration: Any, graph: onnx.ModelProto) -> Samples:
    """Calibration data in any accepted form, as arrays by input name, shape (samples, ...), of its dtype.

    Raises:
        ExportError: Names or shapes do not fit the graph's inputs, or there is not one sample.
    """
    shapes = value_shapes(graph)
    whole = {i.name for i in graph.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    names = [i.name for i in graph.graph.input]
    samples: Samples = {}
    if isinstance(calibration, Mapping):
        samples = {
            str(k): np.atleast_1d(_array(v, k in whole))[:MAX_CALIBRATION_SAMPLES]
            for k, v in calibration.items()
        }
    elif hasattr(calibration, "shape"):
        samples = {names[0]: np.atleast_1d(_array(calibration, names[0] in whole))[:MAX_CALIBRATION_SAMPLES]}
    else:
        batches: list[tuple[npt.NDArray[Any], ...]] = []
        count = 0
        for batch in calibration:
            parts = zip(_inputs_of(batch, names), names, strict=False)
            batches.append(tuple(_array(part, name in whole) for part, name in parts))
            if len(batches[-1]) < len(names) or any(part.ndim == 0 for part in batches[-1]):
                raise ExportError(f"each batch of calibration data must begin with the inputs {names}")
            count += len(batches[-1][0])
            if count >= MAX_CALIBRATION_SAMPLES:
                break
        if batches:
            columns = zip(*batches, strict=True)
            samples = {
                name: _joined(name, column)[:MAX_CALIBRATION_SAMPLES]
                for name, column in zip(names, columns, strict=False)
            }
    if not samples or any(len(v) == 0 for v in samples.values()):
        raise ExportError("no calibration data: give at least one sample, better some hundred")
    if samples.keys() != set(names):
        raise ExportError(
            f"calibration data is for inputs {sorted(samples)}; the model takes {sorted(names)}"
        )
    if len({len(v) for v in samples.values()}) > 1:
        counts = {n: len(v) for n, v in samples.items()}
        raise ExportError(f"the inputs differ in their number of calibration samples: {counts}")
    for name, value in samples.items():
        if value.shape[1:] != tuple(shapes[name][1:]):
            want = ", ".join(map(str, shapes[name][1:]))
            raise ExportError(
                f"calibration data for {name!r} has shape {value.shape}; (samples, {want}) is needed"
            )
    return {name: samples[name] for name in names}


def _inputs_of(batch: Any, names: Iterable[str]) -> tuple[Any, ...]:
    """The inputs that a batch begins with, in order: one, several, or a tuple or mapping of several."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Mapping):
        return tuple(first[name] for name in names if name in first)
    return tuple(first) if isinstance(first, tuple | list) else as_tuple(batch)


def _joined(name: str, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise ExportError(f"calibration batches for {name!r} do not fit together ({error})") from None


def example_of(model: nn.Module, calibration: Any) -> Sequence[Any]:
    """Arguments of one call of a module, from calibration data."""
    parameters = forward_parameters(model)
    if isinstance(calibration, Mapping):
        if unknown := calibration.keys() - parameters.keys():
            raise ExportError(
                f"calibration data is for inputs {sorted(map(str, calibration))}; forward takes "
                f"{list(parameters)}, not {min(map(str, unknown))!r}"
            )
        return _examples(model, [calibration[n] for n in parameters if n in calibration])
    if hasattr(calibration, "shape"):
        return _examples(model, [calibration])
    first = next(iter(calibration), None) if isinstance(calibration, Iterable) else None
    if first is None:
        raise ExportError("no calibration data: give at least one sample, better some hundred")
    count = max(1, sum(parameters.values()))  # what follows the inputs in a batch are labels
    return _examples(model, _inputs_of(first, parameters)[:count])


def _examples(model: nn.Module, parts: Sequence[Any]) -> list[npt.NDArray[Any]]:
    """Two samples of each input: whole numbers as int64 where the model takes them so, else float32."""
    import torch

    whole = [np.asarray(p.detach().cpu() if hasattr(p, "detach") else p).dtype.kind in "iu" for p in parts]
    if any(whole):
        given = [_array(p, w)[:2] for p, w in zip(parts, whole, strict=True)]
        try:
            with torch.no_grad():
                model(*(torch.from_numpy(x) for x in given))
        except Exception:  # a model may raise anything; with float32 it says what it does not take
            return [_array(p)[:2] for p in parts]
        return given
    return [_array(p)[:2] for p in parts]


def _array(value: Any, whole: bool = False) -> npt.NDArray[Any]:
    """An array of float32, or of int64 where whole numbers are wanted."""
    try:
        if whole:
            given = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if given.dtype.kind not in "biu" and not np.array_equal(given, np.rint(given)):
                raise TypeError("whole numbers are needed")
            return given.astype(np.int64)
        with np.errstate(over="ignore"):  # what is too large becomes infinity, which calibration refuses
            return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float32)
    except (TypeError, ValueError) as error:
        raise ExportError(f"calibration data must be arrays of numbers ({error})") from None


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The arguments of one call: what was given, or what is in it."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def drawn_samples(graph: onnx.ModelProto, grids: Mapping[str, Grid]) -> Samples:
    """Samples for a graph that has none: drawn from the range of each input's grid, the same ones each time.

    Args:
        graph: A normalized float graph.
        grids: Of its float32 inputs; one without is drawn from [-1, 1].

    Returns:
        By input name, (64, ...): float32, or int64 row numbers that every table of the input has.
    """
    random, wiring, shapes = np.random.default_rng(0), Wiring(graph), value_shapes(graph)
    samples: Samples = {}
    for value in graph.graph.input:
        shape = (DRAWN, *(d or 1 for d in shapes[value.name][1:]))
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            rows = [
                len(wiring.constants[n.input[0]])
                for n in wiring.nodes
                if n.op_type == "Gather" and n.input[1] == value.name and n.input[0] in wiring.constants
            ]
            samples[value.name] = random.integers(0, min(rows, default=2), shape)
        else:
            grid = grids.get(value.name) or Grid.around(-1.0, 1.0)
            samples[value.name] = random.uniform(grid.low, grid.high, shape).astype(np.float32)
    return samples
