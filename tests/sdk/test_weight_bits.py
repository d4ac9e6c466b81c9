"""Weights of 4 bits: stored once, exact everywhere, and where the outputs bear them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import numpy_helper

import edgewright as ew
from edgewright.graph import float_graph, onnx_function
from edgewright.int4 import INT4, best_scale, packed, possible
from edgewright.statistics import sqnr_db
from edgewright_kernels.plan import Convolution, FullyConnected, decode
from sdk.graphs import rng, saved
from sdk.test_lengths import Tagger, tokens
from sdk.test_rounding import Net, images


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(
        float_graph(Net().eval(), [images(2)], slim=False), tmp_path_factory.mktemp("net") / "net.onnx"
    )


def exported(net: Path, out: Path, **how: Any) -> ew.Artifact:
    backend = how.pop("backend", "native")
    quantize = ew.Quantize(**how)
    return ew.export(
        net, target="x86-avx2", calibration=images(128), out=out, quantize=quantize, backend=backend
    )


def sqnr(net: Path, artifact: ew.Artifact, backend: Any = "native") -> float:
    x = {"x": images(100, seed=5)}
    (want,) = onnx_function(onnx.load(net))(x).values()
    (got,) = ew.Runner(artifact, backend=backend).run(x).values()
    return sqnr_db(want, got)


def bits(artifact: ew.Artifact) -> list[int]:
    ops = decode(artifact.read("plan.bin")).ops
    return [op.weight_bits for op in ops if isinstance(op, Convolution | FullyConnected)]


def test_every_engine_gives_the_same_integers_and_they_are_stored_once(net: Path, tmp_path: Path) -> None:
    artifact = exported(net, tmp_path / "net.ew", weights="int4")
    assert bits(artifact) == [8, 8, 4, 4]  # 27 terms are odd, and depthwise is not taken
    weights = artifact.read("weights.safetensors")
    stored = safetensors.numpy.load(weights)
    graph = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    four = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    outside = [t for t in four if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {t.name for t in outside} == {n for n, w in stored.items() if w.dtype == np.uint8}
    for tensor in outside:
        integers = numpy_helper.to_array(tensor, str(artifact.path)).astype(np.int8)
        assert np.abs(integers).max() == 7
        np.testing.assert_array_equal(packed(integers), stored[tensor.name])
    full = exported(net, tmp_path / "full.ew")
    size = sum(w.nbytes for w in stored.values() if w.ndim > 1)
    assert size < 0.6 * sum(
        w.nbytes for w in safetensors.numpy.load(full.read("weights.safetensors")).values() if w.ndim > 1
    )
    x = {"x": images(8, seed=6)}
    native, reference, runtime = (
        next(iter(ew.Runner(artifact, backend=b).run(x).values()))
        for b in ("native", "reference", "onnxruntime")
    )
    np.testing.assert_array_equal(native, reference)
    assert sqnr_db(native, runtime) > 30


def test_an_artifact_for_onnx_runtime_alone_has_them_too(net: Path, tmp_path: Path) -> None:
    artifact = exported(net, tmp_path / "net.ew", weights="int4", backend="onnxruntime")
    assert sqnr(net, artifact, "onnxruntime") > 10


def test_second_order_rounding_is_worth_most_with_few_bits(net: Path, tmp_path: Path) -> None:
    plain = sqnr(net, exported(net, tmp_path / "plain.ew", weights="int4"))
    better = sqnr(net, exported(net, tmp_path / "better.ew", weights="int4", rounding="gptq"))
    assert better > plain + 3


def test_auto_lies_between_and_costs_no_more_than_it_may(net: Path, tmp_path: Path) -> None:
    eight = exported(net, tmp_path / "eight.ew", rounding="gptq")
    auto = exported(net, tmp_path / "auto.ew", weights="auto", rounding="gptq")
    assert sqnr(net, auto) > min(25, sqnr(net, eight) - 3) - 1.5  # on samples that judged nothing
    assert 4 in bits(auto)


def test_quads_hold_without_asking_and_8_bit_layers_keep_theirs(net: Path, tmp_path: Path) -> None:
    for rounding in ("nearest", "gptq"):
        artifact = exported(
            net, tmp_path / f"{rounding}.ew", weights="int4", overflow_safe="quads", rounding=rounding
        )
        assert bits(artifact) == [8, 8, 4, 4]
        assert sqnr(net, artifact) > 8


@pytest.mark.slow
def test_lengths_share_weights_of_4_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tagger().eval(), tokens(128)
    made = {
        weights: ew.export(
            model,
            target="x86-64",
            calibration=x,
            out=tmp_path / f"{weights}.ew",
            lengths=(6, 16),
            quantize=ew.Quantize(activations="mixed", weights=weights, rounding="gptq"),
        )
        for weights in ("int8", "int4")
    }
    names = [set(safetensors.numpy.load(a.read("weights.safetensors"))) for a in made.values()]
    assert names[0] == names[1]  # so no length has weights of its own
    short = {n: v[:8, :6] for n, v in x.items()}
    native, reference = (ew.Runner(made["int4"], backend=b).run(short) for b in ("native", "reference"))
    for name, value in reference.items():
        np.testing.assert_array_equal(native[name], value)


def test_what_can_have_4_bits() -> None:
    assert possible("Conv", (8, 4, 3, 3))
    assert possible("MatMul", (8, 6))
    assert not possible("Conv", (8, 3, 3, 3))
    assert not possible("Conv", (8, 1, 4, 4))
    assert not possible("ConvTranspose", (8, 4, 2, 2))


def test_the_best_scale_clips_what_is_rare() -> None:
    weight = rng(0).normal(size=(5, 2000))
    weight[1, 7] = 40
    scale = best_scale(weight, np.zeros(5))

    def error(scale: Any) -> Any:
        steps = np.clip(np.rint(weight / scale[:, None]), -7, 7)
        return np.square(weight - steps * scale[:, None]).sum(axis=1)

    assert (error(scale) <= error(np.abs(weight).max(axis=1) / 7)).all()
    assert (error(scale) < 0.9 * error(np.abs(weight).max(axis=1) / 7))[[0, 2, 3, 4]].all()
    assert (best_scale(weight, np.full(5, 100.0)) == 100).all()


def test_pairs_share_a_byte_the_first_in_the_low_half() -> None:
    integers = np.array([[1, -1, 7, -7], [0, 2, -3, 4]])
    np.testing.assert_array_equal(packed(integers), [[0xF1, 0x97], [0x20, 0x4D]])
    tensor = numpy_helper.from_array(integers.astype(INT4), "w")
    assert tensor.raw_data == packed(integers).tobytes()
