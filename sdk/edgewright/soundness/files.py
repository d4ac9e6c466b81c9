"""Files of an artifact that tell one story: constants, ports, a report beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx

from edgewright.checks import Check, at_most
from edgewright.weights import byte_ranges
from edgewright.wiring import initializers, value_shapes
from edgewright_device import Artifact, Port

NAMED = 3


def file_checks(artifact: Artifact, graph: onnx.ModelProto) -> list[Check]:
    """Whether files agree with one another.

    Args:
        artifact: Its digests hold.
        graph: Its model.onnx, constants inside.
    """
    wrong = [*_constants(artifact), *_ports(artifact, graph), *_report(artifact)]
    what = "files of the artifact that contradict one another"
    if wrong:
        more = " and more" if len(wrong) > NAMED else ""
        what = f"{what}: {'; '.join(wrong[:NAMED])}{more}"
    remedy = "the files are of different exports: export again, and put nothing together by hand"
    return [at_most("files", what, len(wrong), 0, "contradictions", remedy=remedy)]


def _constants(artifact: Artifact) -> Iterator[str]:
    """Each constant of model.onnx that lies outside lies where weights.safetensors has it."""
    ranges = byte_ranges(artifact.read("weights.safetensors"))
    for tensor in onnx.load_from_string(artifact.read("model.onnx")).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        given = {e.key: e.value for e in tensor.external_data}
        place = ranges.get(tensor.name)
        if place is None:
            yield f"model.onnx takes {tensor.name!r} from weights.safetensors, which does not list it"
            continue
        at, size = int(given.get("offset", 0)), int(given.get("length", place.size))
        if (at, size) != (place.offset, place.size):
            yield (
                f"model.onnx takes {tensor.name!r} from byte {at} of weights.safetensors, "
                f"where it lies at {place.offset}"
            )


def _ports(artifact: Artifact, graph: onnx.ModelProto) -> Iterator[str]:
    constants = initializers(graph)
    shapes = value_shapes(graph)
    for side, ports, values in (
        ("inputs", artifact.inputs, [i for i in graph.graph.input if i.name not in constants]),
        ("outputs", artifact.outputs, list(graph.graph.output)),
    ):
        names = [v.name for v in values]
        if [p.name for p in ports] != names:
            yield f"the manifest lists {side} {[p.name for p in ports]}, model.onnx {names}"
            continue
        for port in ports:
            shape = shapes[port.name]
            if len(shape) != len(port.shape) or any(
                a is not None and b is not None and a != b for a, b in zip(shape, port.shape, strict=False)
            ):
                yield f"{port.name!r} is {port.shape} in the manifest, {shape} in model.onnx"
            grids = list(_grids(graph, port, side == "inputs"))
            if grids and (port.scale, port.zero_point) not in grids:
                yield (
                    f"the grid of {port.name!r} is (scale {port.scale:.6g}, zero point {port.zero_point}) in "
                    f"the manifest, (scale {grids[0][0]:.6g}, zero point {grids[0][1]}) in model.onnx"
                )
            if not port.minimum <= port.maximum:
                yield f"the range of {port.name!r} is {port.minimum}..{port.maximum} in the manifest"


def _grids(graph: onnx.ModelProto, port: Port, is_input: bool) -> Iterator[tuple[float, int]]:
    """The grids that a float input is put on, or that a float output lies on, as model.onnx has them."""
    constants = initializers(graph)
    kind = "QuantizeLinear" if is_input else "DequantizeLinear"
    for node in graph.graph.node:
        name = node.input[0] if is_input else node.output[0]
        if port.dtype == "float32" and node.op_type == kind and name == port.name:
            scale = constants[node.input[1]]
            zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
            yield float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])


def _report(artifact: Artifact) -> Iterator[str]:
    path = artifact.path / "report.json"
    if not path.is_file():
        return
    try:
        about = json.loads(path.read_text("utf-8")).get("artifact")
    except (ValueError, AttributeError, OSError, UnicodeDecodeError):
        yield "report.json is not a report"
        return
    if about != artifact.digest:
        yield "report.json is about another artifact"
