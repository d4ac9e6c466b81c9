"""symmetric.onnx keeps to what TensorRT's documentation asks of Q/DQ graphs, and computes the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgewright.calibrate import Grid
from edgewright.exporting import export
from edgewright.graph import onnx_function, read_onnx
from edgewright.recipe import Quantize
from edgewright.statistics import sqnr_db
from edgewright.symmetric import WEIGHTED, symmetric_graph, symmetric_scale
from edgewright.verification import verify
from edgewright_device import SYMMETRIC


class Residual(nn.Module):
    """A convolution, a sum with what went around it, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        y = (self.second(y) + y).relu()
        out: torch.Tensor = self.head(y.mean((2, 3)))
        return out


class Encoder(nn.Module):
    """One attention with a norm and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).view(-1, 6, 4, 4).transpose(1, 2) for p in self.qkv)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1)
        x = self.norm(x + (weights @ v).transpose(1, 2).reshape(-1, 6, 16))
        out: torch.Tensor = self.down(nn.functional.gelu(self.up(x)))
        return out


IMAGES = np.random.default_rng(0).random((64, 3, 8, 8), np.float32)
TOKENS = np.random.default_rng(1).standard_normal((64, 6, 16), np.float32)


def made(make: Callable[[], nn.Module], x: np.ndarray, out: Path, **how: str) -> onnx.ModelProto:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().eval()
    export(net, target="x86-64", calibration=x, out=out / "m.ew", quantize=Quantize(**how))  # type: ignore[arg-type]
    return read_onnx(out / "m.ew" / "model.onnx")


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.parametrize(
    ("make", "x", "how"),
    [
        (Residual, IMAGES, {}),
        (Residual, IMAGES, {"weights": "int4"}),
        (Encoder, TOKENS, {}),
        (Encoder, TOKENS, {"activations": "mixed"}),
    ],
)
def test_the_rules_hold_and_the_model_is_the_same(
    make: Callable[[], nn.Module], x: np.ndarray, how: dict[str, str], tmp_path: Path
) -> None:
    qdq = made(make, x, tmp_path, **how)
    model = symmetric_graph(qdq)
    values, producers = constants(model), {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not values[node.input[2]].any(), "every zero point is 0"
            assert values[node.input[2]].dtype == np.int8
            assert (values[node.input[1]] > 0).all()
        if node.op_type in WEIGHTED:
            for name in node.input[:2]:
                if producers[name].op_type == "Transpose":  # of a weight, as torch writes linear layers
                    name = producers[name].input[0]
                assert producers[name].op_type == "DequantizeLinear", "weighted operators read integers"
        if node.op_type in ("Softmax", "LayerNormalization", "Gelu"):
            source = producers.get(node.input[0])
            assert source is None or source.op_type != "DequantizeLinear", "these read floats"
    name = qdq.graph.input[0].name
    want, got = (onnx_function(m)({name: x})["y"] for m in (qdq, model))
    assert sqnr_db(want, got) > 22


def test_one_side_of_a_residual_sum_is_left_in_floating_point(tmp_path: Path) -> None:
    model = symmetric_graph(made(Residual, IMAGES, tmp_path))
    producers = {o: n for n in model.graph.node for o in n.output}
    (add,) = (n for n in model.graph.node if n.op_type == "Add")
    kinds = sorted(producers[name].op_type for name in add.input)
    assert kinds == ["Conv", "DequantizeLinear"]


def test_weights_are_the_same_integers(tmp_path: Path) -> None:
    qdq = made(Residual, IMAGES, tmp_path)
    before, after = constants(qdq), constants(symmetric_graph(qdq))
    weights = [n for n, v in before.items() if v.dtype == np.int8 and v.ndim > 1]
    assert len(weights) == 3
    for name in weights:
        assert (before[name] == after[name]).all()


def test_an_artifact_for_tensorrt_has_the_file_and_no_other_has(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Residual().eval()
    plain = export(net, target="x86-64", calibration=IMAGES, out=tmp_path / "plain.ew")
    orin = export(net, target="jetson-orin", calibration=IMAGES, out=tmp_path / "orin.ew")
    assert SYMMETRIC not in plain.files
    assert orin.native
    stored = read_onnx(orin.path / SYMMETRIC)
    assert "int8" in {str(v.dtype) for v in constants(stored).values()}
    linked = onnx.load_from_string(orin.read(SYMMETRIC)).graph.initializer
    outside = [i for i in linked if i.data_location == onnx.TensorProto.EXTERNAL]
    assert len([i for i in outside if i.data_type == onnx.TensorProto.INT8]) == 3, "weights are stored once"
    assert orin.files["plan.bin"] == plain.files["plan.bin"]


def test_verification_judges_it_and_certifies_how_far_it_lies(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Residual().eval()
    artifact = export(net, target="jetson-orin", calibration=IMAGES, out=tmp_path / "orin.ew")
    report = verify(artifact, reference=net, data=IMAGES, cases=400, max_flip_rate=0.3)
    (check,) = (c for c in report.checks if c.name == "symmetric")
    assert check.verdict == "passed"
    assert report.certificate is not None
    assert 2 <= report.certificate.bounds[SYMMETRIC] <= 60


def test_a_grid_that_is_symmetric_stays() -> None:
    assert symmetric_scale(Grid(scale=0.25, zero_point=128)) == 0.25
    assert symmetric_scale(Grid(scale=1.0, zero_point=0)) == pytest.approx(255 / 127)
    assert symmetric_scale(Grid(scale=1.0, zero_point=255)) == pytest.approx(255 / 127)
