"""Post-training quantization as a recipe says: biases corrected, 16 bits where they gain, float layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from edgewright import post_training
from edgewright.digits import Digits
from edgewright.errors import DataError, ExportError
from edgewright.exporting import export
from edgewright.graph import onnx_function
from edgewright.indices import tabulate
from edgewright.layer_sensitivity import sensitivity
from edgewright.normalform import normalize
from edgewright.progress import Progress
from edgewright.recipe import Quantize
from edgewright.statistics import sqnr_db
from edgewright_device import Runner
from sdk.graphs import graph, mlp, normal, saved
from sdk.test_precision import X as TOKENS
from sdk.test_precision import encoder
from sdk.test_seams import IMAGES, images

POSITIVE = {"x": np.abs(normal(256, 8, seed=3))}


def ignore(_: Progress) -> None:
    pass


def made(model: onnx.ModelProto, samples: Any, **how: Any) -> post_training.PostTraining:
    return post_training.quantize(tabulate(normalize(model)), Quantize(**how), samples, report=ignore)


def biased() -> onnx.ModelProto:
    """Two layers, of whose first each output has one large weight, and all others are rounded down."""
    weights = np.full((16, 8), 0.49, np.float32)
    weights[:, 0] = 127
    return graph(
        [
            ("Gemm", ["x", "w1", "b1"], "h", {"transB": 1}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "w2"], "y", {"transB": 1}),
        ],
        {"x": (8,)},
        {"y": (4,)},
        {"w1": weights, "b1": normal(16, seed=1), "w2": np.abs(normal(4, 16, seed=2))},
    )


def tokenwise() -> onnx.ModelProto:
    """Layers on each token, the last without a bias."""
    return graph(
        [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Add", ["h", "b1"], "hb", {}),
            ("Relu", ["hb"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ],
        {"x": (6, 16)},
        {"y": (6, 8)},
        {"w1": normal(16, 32, seed=1), "b1": normal(32, seed=2), "w2": normal(32, 8, seed=3)},
    )


@pytest.mark.parametrize("model", ["layers", "images", "tokens"])
def test_corrected_biases_leave_the_means_of_every_channel(model: str) -> None:
    floats, samples = {
        "layers": (biased(), POSITIVE),
        "images": (images(), IMAGES),
        "tokens": (tokenwise(), TOKENS),
    }[model]
    before, after = (made(floats, samples, correct_bias=c) for c in (False, True))
    exact = onnx_function(floats)(samples)["y"]
    rows = [
        (onnx_function(q.quantized.model)(samples)["y"] - exact).reshape(-1, exact.shape[-1])
        for q in (before, after)
    ]
    error = [np.abs(r.mean(axis=0)) for r in rows]
    step = after.quantized.grids["y"].scale
    assert error[1].max() < max(0.6 * error[0].max(), 0.25 * step)
    if model == "layers":
        assert error[1].max() < 0.1 * error[0].max()
    biases = [n for n, v in after.quantized.weights.items() if v.dtype == np.int32]
    assert biases
    assert all(np.abs(after.quantized.weights[n].astype(np.int64)).max() < 1 << 30 for n in biases)


def test_bias_correction_changes_biases_and_nothing_else() -> None:
    before, after = (made(biased(), POSITIVE, correct_bias=c) for c in (False, True))
    for name, value in before.quantized.weights.items():
        if value.dtype != np.int32:
            np.testing.assert_array_equal(value, after.quantized.weights[name])
    assert before.quantized.grids == after.quantized.grids


def test_auto_widens_the_outlier_and_little_else() -> None:
    uint8 = made(encoder(), TOKENS)
    exact = onnx_function(encoder())(TOKENS)["y"]
    before = sqnr_db(exact, onnx_function(uint8.quantized.model)(TOKENS)["y"])
    notes: list[str] = []
    auto = post_training.quantize(
        tabulate(normalize(encoder())),
        Quantize(activations="auto", min_sqnr_db=before + 6),
        TOKENS,
        report=lambda p: notes.append(p.note),
    )
    after = sqnr_db(exact, onnx_function(auto.quantized.model)(TOKENS)["y"])
    assert after > before + 5
    widened = auto.quantized.widened
    assert {"stream"} <= widened.keys()
    assert len(widened) < 8
    (note,) = (n for n in notes if n)
    assert "stream" in note
    assert "dB on the calibration samples" in note


def test_auto_leaves_uint8_where_it_is_enough_and_says_what_could_be_had_where_nothing_is() -> None:
    assert made(mlp(), {"x": normal(64, 8)}, activations="auto", min_sqnr_db=20).quantized.widened == {}
    with pytest.raises(ExportError, match=r"reach \d+\.\d dB with int16 wherever the engine has it"):
        made(mlp(), {"x": normal(64, 8)}, activations="auto", min_sqnr_db=99)


def test_auto_has_layers_read_int16_only_where_it_must() -> None:
    exact = onnx_function(mlp())({"x": normal(64, 8)})["y"]
    auto = made(mlp(), {"x": normal(64, 8)}, activations="auto", min_sqnr_db=42)
    found = onnx_function(auto.quantized.model)({"x": normal(64, 8)})["y"]
    assert sqnr_db(exact, found) > 41.9
    assert any(auto.quantized.widened.values())


@pytest.mark.parametrize("layer", ["conv_e", "gemm_y", "conv_d"])
def test_a_layer_kept_in_floating_point_runs_there_and_the_others_natively(
    layer: str, tmp_path: Path
) -> None:
    path = saved(images(), tmp_path / "images.onnx")
    notes: list[str] = []
    artifact = export(
        path,
        target="x86-64",
        calibration=IMAGES["x"],
        out=tmp_path / "images.ew",
        quantize=Quantize(keep_float=(layer,)),
        progress=lambda p: notes.append(p.note),
    )
    parts = artifact.parts
    assert any(p.native for p in parts)
    assert any(not p.native for p in parts)
    assert any(f"kept in floating point, for ONNX Runtime: {layer}" in n for n in notes)
    exact = onnx_function(images())(IMAGES)["y"]
    got = Runner(artifact).run(IMAGES)["y"]
    assert sqnr_db(exact, got) > 20


def test_a_layer_that_is_not_there_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    path = saved(images(), tmp_path / "images.onnx")
    with pytest.raises(ExportError, match=r"no layer 'conv_ee'; did you mean 'conv_e'\?"):
        export(
            path,
            target="x86-64",
            calibration=IMAGES["x"],
            out=tmp_path / "images.ew",
            quantize=Quantize(keep_float=("conv_ee",)),
        )


def test_sensitivity_names_the_layer_that_costs_most(tmp_path: Path) -> None:
    path = saved(encoder(), tmp_path / "encoder.onnx")
    found = sensitivity(path, calibration=TOKENS["x"])
    assert found.layers[0].value in {"d", "stream"}
    assert found.samples == 64
    assert sum(row.share for row in found.layers) == pytest.approx(1)
    assert all(row.sqnr_db >= found.layers[0].sqnr_db for row in found.layers)
    alone = sum(10 ** (-row.sqnr_db / 10) for row in found.layers)
    assert -10 * np.log10(alone) == pytest.approx(found.sqnr_db, abs=3)
    assert {row.layer for row in found.layers if row.macs} >= {"matmul_q", "matmul_u"}
    assert all(row.accuracy_lost is None for row in found.layers)


def test_sensitivity_counts_accuracy_with_labels_and_calls_layers_as_torch_does(
    compressed: nn.Module, scans: Digits
) -> None:
    calibration = next(iter(scans.data.train))[0].numpy()
    found = sensitivity(compressed, calibration=calibration, data=scans.x_test[:96], labels=scans.y_test[:96])
    layers = {n for n, m in compressed.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers <= {row.layer for row in found.layers}
    assert found.accuracy is not None
    assert found.accuracy > 0.8
    assert all(row.accuracy_lost is not None and abs(row.accuracy_lost) < 0.1 for row in found.layers)
    with pytest.raises(DataError, match="labels of shape"):
        sensitivity(compressed, calibration=calibration, labels=scans.y_test[:3])


def test_a_quantized_model_is_not_equalized_and_says_so(tmp_path: Path) -> None:
    file = saved(made(mlp(), {"x": normal(64, 8)}).quantized.model, tmp_path / "quantized.onnx")
    with pytest.raises(ExportError, match="quantized already; equalize, correct_bias: for float"):
        export(
            file,
            target="x86-64",
            calibration=normal(64, 8),
            out=tmp_path / "quantized.ew",
            quantize=Quantize(equalize=True, correct_bias=True),
        )
