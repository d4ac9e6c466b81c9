"""model.tflite: LiteRT computes what the integer program says, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgewright.errors import ExportError
from edgewright.int4 import packed, unpacked
from edgewright_kernels.operators import OP_KINDS
from edgewright_kernels.plan import Dequantize
from sdk.graphs import Lowered, graph, lowered, mlp, normal
from sdk.test_lower import GRAPHS, feed_for

pytest.importorskip("ai_edge_litert")
from edgewright.litert.program import tflite_of

REFUSED = {
    "Conv 3-D": "Convolution that gives 'c': over three axes",
    "ConvTranspose in groups": "TransposedConvolution that gives 'y': in groups",
    "GlobalAveragePool 3-D": "Convolution that gives 'c'",
    "MaxPool 3-D": "Convolution that gives 'c'",
    "MaxPool with dilations": "MaxPool that gives 'y': dilated",
    "Resize of a line": "Resize that gives 'y",
}


def in_litert(program: Lowered, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """LiteRT's outputs for each sample, as it runs on a device."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=tflite_of(program.plan, program.weights), num_threads=1)
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(feed.values())))
    results = [run(**{n: v[i : i + 1] for n, v in feed.items()}) for i in range(count)]
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}


def steps_of(program: Lowered) -> dict[str, float]:
    """The step of each output's grid."""
    tensors = program.plan.tensors
    return {tensors[o.y].name: tensors[o.x].scale for o in program.plan.ops if isinstance(o, Dequantize)}


@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - REFUSED))
def test_litert_computes_what_the_program_says(name: str) -> None:
    model = GRAPHS[name]()
    program = lowered(model, feed_for(model, 64, seed=10))
    feed = feed_for(model, 8, seed=11)
    exact, found = program.native(feed), in_litert(program, feed)
    assert found.keys() == exact.keys()
    for output, step in steps_of(program).items():
        assert found[output].shape == exact[output].shape
        # LiteRT rounds each operator's result in its own way, and attention widens what differs.
        apart = np.abs(found[output] - exact[output]) / step
        assert apart.max() <= (3.01 if "attention" in name else 1.01)
        assert np.mean(apart > 0.5) < 0.1


@pytest.mark.parametrize("name", REFUSED)
def test_what_litert_has_no_kernel_for_is_named(name: str) -> None:
    model = GRAPHS[name]()
    program = lowered(model, feed_for(model, 64, seed=10))
    with pytest.raises(ExportError, match=REFUSED[name]):
        tflite_of(program.plan, program.weights)


def test_every_operator_of_a_program_is_tried_here() -> None:
    names = (
        "attention",
        "Clip with a lower bound alone",
        "Concat of rows with a constant",
        "Conv 1x1",
        "ConvTranspose",
        "Gather of rows by tokens",
        "GlobalAveragePool",
        "image to rows",
        "LayerNormalization",
        "MaxPool",
        "Mul",
        "Resize nearest",
        "Slice",
        "Sub",
    )
    models = [GRAPHS[name]() for name in names]
    plans = [lowered(m, feed_for(m, 16, seed=10)).plan for m in models]
    assert {type(op) for plan in plans for op in plan.ops} == set(OP_KINDS)


def test_weights_of_four_bits_become_the_same_integers_in_eight() -> None:
    integers = np.arange(-7, 8, dtype=np.int8)[[0, 14, 7, 3, 11, 5]].reshape(2, 3)
    even = np.concatenate([integers, np.zeros((2, 1), np.int8)], axis=1)
    assert np.array_equal(unpacked(packed(even), 3), integers)
    model = mlp(features=20)
    program = lowered(model, feed_for(model, 64, seed=10), four_bits=("w1",))
    assert any(getattr(op, "weight_bits", 8) == 4 for op in program.plan.ops)
    feed = feed_for(model, 8, seed=11)
    exact, found = program.native(feed), in_litert(program, feed)
    assert np.abs(found["y"] - exact["y"]).max() <= 1.01 * steps_of(program)["y"]


def test_activations_of_16_bits_are_refused() -> None:
    model = mlp(features=20)
    program = lowered(model, feed_for(model, 64, seed=10), activations="int16")
    with pytest.raises(ExportError, match=r"is int16, and .* has 8 bits alone"):
        tflite_of(program.plan, program.weights)


def test_rows_under_a_mask_that_hides_all_are_zero() -> None:
    model = graph(
        [
            ("MatMul", ["x", "w"], "m", {}),
            ("Sub", ["one", "keep"], "hide", {}),
            ("Mul", ["hide", "low"], "mask", {}),
            ("Add", ["m", "mask"], "masked", {}),
            ("Softmax", ["masked"], "y", {"axis": -1}),
        ],
        {"x": (4, 4), "keep": (4, 4)},
        {"y": (4, 4)},
        {"w": normal(4, 4), "one": np.float32(1), "low": np.float32(-1e4)},
    )
    random = np.random.default_rng(0)

    def feed(count: int) -> dict[str, npt.NDArray[np.float32]]:
        keep = random.integers(0, 2, (count, 4, 4)).astype(np.float32)
        keep[:, 0] = 0
        return {"x": random.standard_normal((count, 4, 4)).astype(np.float32), "keep": keep}

    program, taken = lowered(model, feed(64)), feed(8)
    exact, found = program.native(taken)["y"], in_litert(program, taken)["y"]
    assert not found[:, 0].any()
    assert np.ptp(found[:, 1:]) > 0.5
    assert np.abs(found - exact).max() <= 2.01 * steps_of(program)["y"]


def test_the_file_is_the_same_each_time_and_holds_weights_once() -> None:
    model = mlp(features=64, hidden=256)
    program = lowered(model, feed_for(model, 64, seed=10))
    first = tflite_of(program.plan, program.weights)
    assert first == tflite_of(program.plan, program.weights)
    assert len(first) < len(program.weights) + 8192
