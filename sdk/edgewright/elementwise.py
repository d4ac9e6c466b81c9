"""Functions of one value: what each elementwise ONNX operator computes, in float64.

A *region* is a part of a graph that computes one value from one other, element by element, with constants of
a single number: GELU in any spelling, x * sigmoid(x), a scale. In integers each is one table of 256 entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import attributes

FloatArray = npt.NDArray[np.float64]
_Function = Callable[[Mapping[str, Any], Sequence[FloatArray]], FloatArray]


def _erf(x: FloatArray) -> FloatArray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def _gelu(given: Mapping[str, Any], x: FloatArray) -> FloatArray:
    if given.get("approximate", b"none") == b"tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        inner = _erf(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + inner))


def _elu(x: FloatArray, alpha: float) -> FloatArray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(given: Mapping[str, Any], x: FloatArray) -> FloatArray:
    gamma, alpha = given.get("gamma", 1.0507009873554804), given.get("alpha", 1.6732632423543772)
    return np.asarray(gamma * _elu(x, alpha))


def _clip(inputs: Sequence[FloatArray]) -> FloatArray:
    x, low, high = [*inputs, *[np.array(math.nan)] * 2][:3]
    x = x if np.isnan(low).all() else np.maximum(x, low)
    return x if np.isnan(high).all() else np.minimum(x, high)


def _unary(function: Callable[[FloatArray], Any]) -> _Function:
    return lambda _, inputs: np.asarray(function(inputs[0]))


def _binary(function: Callable[[FloatArray, FloatArray], Any]) -> _Function:
    return lambda _, inputs: np.asarray(function(inputs[0], inputs[1]))


FUNCTIONS: Mapping[str, _Function] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "Celu": lambda g, i: _celu(i[0], g.get("alpha", 1.0)),
    "Ceil": _unary(np.ceil),
    "Clip": lambda _, i: _clip(i),
    "Cos": _unary(np.cos),
    "Div": _binary(np.divide),
    "Elu": lambda g, i: _elu(i[0], g.get("alpha", 1.0)),
    "Equal": _binary(np.equal),
    "Erf": _unary(_erf),
    "Exp": _unary(np.exp),
    "Floor": _unary(np.floor),
    "Gelu": lambda g, i: _gelu(g, i[0]),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "HardSigmoid": lambda g, i: np.clip(g.get("alpha", 0.2) * i[0] + g.get("beta", 0.5), 0, 1),
    "HardSwish": _unary(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": lambda g, i: np.where(i[0] < 0, g.get("alpha", 0.01) * i[0], i[0]),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Log": _unary(np.log),
    "Max": lambda _, i: np.asarray(_folded(np.maximum, i)),
    "Min": lambda _, i: np.asarray(_folded(np.minimum, i)),
    "Mish": _unary(lambda x: x * np.tanh(np.logaddexp(0.0, x))),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "PRelu": _binary(lambda x, slope: np.where(x < 0, slope * x, x)),
    "Pow": _binary(np.power),
    "Reciprocal": _unary(np.reciprocal),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Round": _unary(np.rint),
    "Selu": lambda g, i: _selu(g, i[0]),
    "Sigmoid": _unary(_sigmoid),
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Softplus": _unary(lambda x: np.logaddexp(0.0, x)),
    "Softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _unary(np.sqrt),
    "Sub": _binary(np.subtract),
    "Tanh": _unary(np.tanh),
    "ThresholdedRelu": lambda g, i: np.where(i[0] > g.get("alpha", 1.0), i[0], 0),
    "Where": lambda _, i: np.where(i[0] != 0, i[1], i[2]),
}


def _celu(x: FloatArray, alpha: float) -> FloatArray:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _folded(function: Callable[[Any, Any], Any], inputs: Sequence[FloatArray]) -> Any:
    result: Any = inputs[0]
    for other in inputs[1:]:
        result = function(result, other)
    return result


def moving_inputs(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> list[str] | None:
    """The inputs of an elementwise node that are no constants; None for a node that is of another kind.

    A constant of more than one number makes the node depend on the place, so it is one of another kind.
    """
    if node.op_type not in FUNCTIONS or node.domain not in {"", "ai.onnx"}:
        return None
    moving = [n for n in node.input if n and n not in constants]
    fixed = [constants[n] for n in node.input if n and n in constants]
    if not moving or any(c.size != 1 for c in fixed):
        return None
    return moving


def evaluate(
    target: str,
    source: str,
    values: FloatArray,
    producer: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[Any]],
) -> FloatArray:
    """Values of `target` where `source` has `values`, through the region between them.

    Args:
        target: A value of the graph.
        source: The one value that its region starts from.
        values: float64 (n,).
        producer: The node that gives each value.
        constants: The graph's constants.

    Returns:
        float64 (n,).
    """
    known: dict[str, FloatArray] = {source: values}

    def value(name: str) -> FloatArray:
        if name in known:
            return known[name]
        if name in constants:
            return np.asarray(constants[name].reshape(-1)[0], np.float64)
        node = producer[name]
        given = [value(n) if n else np.array(math.nan) for n in node.input]
        with np.errstate(all="ignore"):
            known[name] = np.asarray(FUNCTIONS[node.op_type](attributes(node), given), np.float64)
        return known[name]

    return np.broadcast_to(value(target), values.shape)
