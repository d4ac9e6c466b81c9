"""An integer program as a .tflite file, so that LiteRT runs the very same integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgewright.litert import functions, layers, moves
from edgewright.litert.draft import Draft
from edgewright_kernels.plan import (
    OP_KINDS,
    Add,
    AveragePool,
    Concat,
    Constant,
    Convolution,
    Dequantize,
    Embedding,
    FullyConnected,
    LayerNorm,
    Lookup,
    MatMul,
    MaxPool,
    Multiply,
    Op,
    Plan,
    Quantize,
    Requantize,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Transpose,
    TransposedConvolution,
)

_TRANSLATIONS: Mapping[type[Op], Callable[[Draft, Any], None]] = {
    Add: functions.pair,
    AveragePool: layers.average_pool,
    Concat: moves.concat,
    Constant: moves.constant,
    Convolution: layers.convolution,
    Dequantize: moves.dequantize,
    Embedding: moves.embedding,
    FullyConnected: layers.fully_connected,
    LayerNorm: functions.layer_norm,
    Lookup: functions.lookup,
    MatMul: layers.matrix_product,
    MaxPool: layers.max_pool,
    Multiply: functions.pair,
    Quantize: moves.quantize,
    Requantize: functions.requantize,
    Reshape: moves.reshape,
    Resize: moves.resize,
    Slice: moves.slice_,
    Softmax: functions.softmax,
    Transpose: moves.transpose,
    TransposedConvolution: layers.transposed_convolution,
}
assert set(_TRANSLATIONS) == set(OP_KINDS)


def tflite_of(plan: Plan, weights: bytes) -> bytes:
    """The bytes of model.tflite: float32 ports as the program has them, in its order, batch 1.

    Weights, scales and zero points are the program's; uint8 is int8 here, 128 lower. LiteRT rounds in other
    ways than the program says, so that results may differ by a step or two.

    Args:
        plan: Of one sample.
        weights: weights.safetensors, that the plan points into.

    Raises:
        ExportError: An operator that LiteRT has no kernel for, named; or a value of 16 bits.
    """
    draft = Draft(plan, weights)
    for number in plan.inputs:
        draft.give(number)
    for op in plan.ops:
        _TRANSLATIONS[type(op)](draft, op)
    ports = [
        [(plan.tensors[n].name, draft.numbers[n]) for n in numbers] for numbers in (plan.inputs, plan.outputs)
    ]
    return draft.file.finish(*ports)
