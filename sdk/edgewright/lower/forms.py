"""Which forms of each operator run natively, in words; docs/guides/operators.md is made of them."""

from __future__ import annotations

from collections.abc import Mapping

from edgewright.elementwise import FUNCTIONS

_TABLE = "of one value, its other operands single numbers: a table of 256 entries"
_PAIR = "two values, one of which may broadcast to the other, or a constant of 8 bits"
_CLAMP = "constant bounds; part of the layer before it, or a change of scale"

FORMS: Mapping[str, str] = {
    **dict.fromkeys(FUNCTIONS, _TABLE),
    "Add": f"{_PAIR}; behind MatMul, its bias; before Softmax, a mask",
    "AveragePool": "one to three axes; padding that counts as zero (count_include_pad = 1)",
    "Clip": _CLAMP,
    "Concat": "any axis but the batch",
    "Conv": "one to three axes; any groups, strides, dilations, padding, auto_pad; constant weights",
    "ConvTranspose": "one to three axes; any groups; constant weights; no auto_pad, no output_shape",
    "Flatten": "each sample for itself",
    "Gather": "rows of a constant table by an int64 input, which are embeddings; of constant places, a Slice",
    "Gemm": "constant weights; alpha = beta = 1, transA = 0",
    "GlobalAveragePool": "one to three axes",
    "LayerNormalization": "the last axes; constant gain and offset",
    "MatMul": "by a constant matrix, or of two values with equal leading sizes",
    "MaxPool": "one to three axes; ceil_mode where it changes nothing",
    "Mul": f"{_PAIR}; by a positive number behind MatMul, part of that",
    "Relu": _CLAMP,
    "Reshape": "each sample for itself",
    "Resize": "nearest and linear, along one or two axes; not cubic, not antialiased",
    "Slice": "any axis but the batch; constant places, steps of 1 or more",
    "Softmax": "any axis; a mask may be added before",
    "Sub": _PAIR,
    "Transpose": "any order that leaves the batch first",
}

# Operators that `normalize` writes as others, and as what.
REWRITTEN: Mapping[str, str] = {
    "BatchNormalization": "taken into the layer before, or a depthwise Conv",
    "Constant": "a constant",
    "DepthToSpace": "Reshape, Transpose, Reshape",
    "Dropout": "nothing",
    "ReduceMean": "GlobalAveragePool, over one to three axes",
    "SpaceToDepth": "Reshape, Transpose, Reshape",
    "Split": "Slice",
    "Squeeze": "Reshape",
    "Unsqueeze": "Reshape",
}


def operators_table() -> str:
    """The table of docs/guides/operators.md."""
    lines = ["| operator | forms that run natively |", "|---|---|"]
    lines += [f"| {name} | {FORMS[name]} |" for name in sorted(FORMS)]
    lines += ["", "Written as others before:", "", "| operator | becomes |", "|---|---|"]
    lines += [f"| {name} | {REWRITTEN[name]} |" for name in sorted(REWRITTEN)]
    return "\n".join(lines) + "\n"
