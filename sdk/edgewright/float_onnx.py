"""Float ONNX: a model written as a file that any runtime reads, simplified on request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.graph import float_graph, onnx_function
from edgewright.normalform import normalize
from edgewright.samples import as_tuple
from edgewright.wiring import check_ports, value_shapes

if TYPE_CHECKING:
    from torch import nn

OPTIMIZED_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A float32 ONNX file that was written.

    Attributes:
        path: Where.
        nodes: Operators in the graph.
        size_bytes: Of the file.
        largest_error: Largest absolute difference that optimization made on random inputs, relative to the
            largest output; None when it was not asked for.
    """

    path: Path
    nodes: int
    size_bytes: int
    largest_error: float | None


def export_onnx(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    optimize: bool = False,
) -> OnnxFile:
    """Writes a model as float32 ONNX.

    Args:
        model: A module, or the path of a `.pt2` or `.onnx` file.
        out: The file to write.
        example_inputs: For a module: the arguments of one call.
        optimize: Simplify the graph (onnxslim, then one form for equal things); the result is compared with
            the graph before on random inputs, and refused when it differs.

    Raises:
        ExportError: The model cannot be read or traced, or the optimized graph is not equal.
    """
    source = Path(model) if isinstance(model, str | os.PathLike) else model
    path = Path(out)
    if isinstance(source, Path) and path.exists() and source.exists() and path.samefile(source):
        raise ExportError(f"{path}: is the model itself, which would be lost; write it to another file")
    graph = float_graph(source, None if example_inputs is None else as_tuple(example_inputs), slim=False)
    error = None
    if optimize:
        before, graph = graph, normalize(graph)
        error = _largest_error(before, graph)
        if not error <= OPTIMIZED_TOLERANCE:
            raise ExportError(
                f"the optimized graph differs by {error:.2g} of the largest output; nothing was written"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return OnnxFile(
        path=path, nodes=len(graph.graph.node), size_bytes=path.stat().st_size, largest_error=error
    )


def _largest_error(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Largest absolute difference of two graphs on random inputs, relative to the largest output."""
    random = np.random.default_rng(0)
    shapes = value_shapes(before)
    names = [i.name for i in before.graph.input]
    check_ports(before)
    kinds = {i.name: i.type.tensor_type.elem_type for i in before.graph.input}
    feed: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        shape = (8, *(d or 1 for d in shapes[name][1:]))
        whole = kinds[name] == onnx.TensorProto.INT64
        feed[name] = random.integers(0, 2, shape) if whole else random.random(shape, np.float32)
    a, b = onnx_function(before)(feed), onnx_function(after)(feed)
    return float(np.max([np.abs(a[n] - b[n]).max() / max(np.abs(a[n]).max(), 1e-30) for n in a]))
