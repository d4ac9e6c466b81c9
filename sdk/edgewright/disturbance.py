"""What other weights do to a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.graph import onnx_function
from edgewright.hessian import Layer
from edgewright.samples import Samples
from edgewright.wiring import set_initializer


class Outputs:
    """The float model's outputs for some samples, to measure others against.

    Errors are squared, over the variance of an output, and the mean over all outputs.
    """

    def __init__(self, floats: onnx.ModelProto, samples: Samples) -> None:
        self._floats, self._samples = floats, samples
        self.want = onnx_function(floats)(samples)

    def error_of(self, model: onnx.ModelProto) -> float:
        """Of another graph of the same inputs and outputs."""
        got = onnx_function(model)(self._samples)
        errors = [np.square(got[n] - v).mean() / max(v.var(), 1e-30) for n, v in self.want.items()]
        return float(np.mean(errors))

    def error_with(self, layer: Layer, weight: npt.NDArray[Any]) -> float:
        """Of the float model with other weights in one layer, of the shape of `layer.weight`."""
        changed = onnx.ModelProto()
        changed.CopyFrom(self._floats)
        stored = weight.T if layer.node.op_type == "MatMul" else weight
        set_initializer(changed, layer.own, np.ascontiguousarray(stored, np.float32))
        return self.error_of(changed)


def divergence(want: Mapping[str, npt.NDArray[Any]], got: Mapping[str, npt.NDArray[Any]]) -> float:
    """How far outputs are from those of the float model, the mean over its outputs.

    Of scores of classes, (samples, 2 or more): the relative entropy of their softmax, in nats. Of other
    outputs: the squared error over the variance.
    """
    found = []
    for name, value in want.items():
        a, b = value.astype(np.float64), got[name].astype(np.float64)
        if a.ndim == 2 and a.shape[1] > 1:
            p, q = (x - x.max(axis=1, keepdims=True) for x in (a, b))
            p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
            found.append(float((np.exp(p) * (p - q)).sum(axis=1).mean()))
        else:
            found.append(float(np.square(a - b).mean() / max(a.var(), 1e-30)))
    return float(np.mean(found))
