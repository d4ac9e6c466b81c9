"""A QDQ graph whose integers and grids were trained: as one ONNX model, and back.

The graph is the one that goes into an artifact, so export takes it as it is: nothing is calibrated or chosen
again. What a graph cannot say stands in its metadata, under `edgewright.trained`, as JSON: the least and
largest value of inputs and outputs in calibration, and which constants are weights. Without that entry, the
file is a QDQ graph like those of other tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx

from edgewright.calibrate import BINS, Observed
from edgewright.errors import ExportError
from edgewright.graph import TRAINED
from edgewright.qdq_graph import grid_of
from edgewright.quantization import Quantized
from edgewright.wiring import initializers


def with_trained(quantized: Quantized, observed: Mapping[str, Observed]) -> onnx.ModelProto:
    """The graph, with its metadata."""
    made = onnx.ModelProto()
    made.CopyFrom(quantized.model)
    ports = [v.name for v in (*made.graph.input, *made.graph.output) if v.name in observed]
    table = {
        "ranges": {n: [observed[n].minimum, observed[n].maximum] for n in ports},
        "weights": sorted(quantized.weights),
    }
    onnx.helper.set_model_props(made, {TRAINED: json.dumps(table)})
    return made


def read_trained(model: onnx.ModelProto) -> tuple[Quantized, dict[str, Observed]] | None:
    """What `with_trained` was given, as far as export needs it; None for any other graph.

    Raises:
        ExportError: The metadata is damaged, or does not fit the graph.
    """
    text = next((p.value for p in model.metadata_props if p.key == TRAINED), None)
    if text is None:
        return None
    constants = initializers(model)
    try:
        table = json.loads(text)
        weights = {str(n): constants[n] for n in table["weights"]}
        ranges = {str(n): (float(low), float(high)) for n, (low, high) in table["ranges"].items()}
        grids = {
            node.output[0].removesuffix("_quantized"): grid_of(node, constants)
            for node in model.graph.node
            if node.op_type == "QuantizeLinear"
        }
        onnx.checker.check_model(model)
    except (ValueError, KeyError, TypeError, AttributeError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f"the file's metadata, {TRAINED!r}, does not fit its graph ({error}); write the file anew, or "
            "remove that entry, and it is read as a quantized file of another tool"
        ) from None
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    nothing = np.zeros(BINS, np.int64)
    observed = {n: Observed(minimum=a, maximum=b, counts=nothing) for n, (a, b) in ranges.items()}
    return Quantized(model=bare, grids=grids, weights=weights, kept_grids=0), observed
