"""Export refuses what a target cannot run, with the layer and the remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.progress import Progress
from edgewright.recipe import Quantize
from edgewright.target_limits import check_providers
from edgewright_device import Runner, Target
from sdk.graphs import Node, graph, mlp, normal, saved

X = normal(64, 8)


def made(path: Path, target: Target | str, **how: Any) -> Any:
    return export(path, target=target, calibration=X, out=path.parent / "m.ew", backend="onnxruntime", **how)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(mlp(), tmp_path / "m.onnx")


@pytest.mark.parametrize("target", ["qnn-htp", "openvino-npu"])
def test_what_edgewright_writes_by_default_fits_npus(model: Path, target: str) -> None:
    artifact = made(model, target)
    assert artifact.targets == (target,)
    assert Runner(artifact, "onnxruntime").run({"x": X[:2]})["y"].shape == (2, 4)


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        (
            Quantize(activations="int16"),
            r"target 'qnn-htp' cannot run it: QNN: layer '.*': its activations are int16, .* = \"uint8\"",
        ),
        (
            Quantize(weights="int4"),
            r"QNN: layer '.*': its weights are int4, QNN takes .*; quantize with weights = \"int8\"",
        ),
    ],
)
def test_integers_that_no_engine_takes_are_refused(model: Path, quantize: Quantize, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        made(model, "qnn-htp", quantize=quantize)
    assert not (model.parent / "m.ew").exists()
    assert made(model, "x86-avx2", quantize=quantize)  # its CPU takes them


def test_an_operator_that_no_engine_has_is_refused_with_its_layer(tmp_path: Path) -> None:
    nodes: list[Node] = [("CumSum", ("x", "axis"), "s", {}), ("MatMul", ("s", "w"), "y", {})]
    constants = {"axis": np.int64(1), "w": normal(8, 4, seed=1)}
    path = saved(graph(nodes, {"x": (8,)}, {"y": (4,)}, constants), tmp_path / "sums.onnx")
    with pytest.raises(
        ExportError, match=r"QNN: layer 'cumsum_s': QNN has no operator CumSum; choose a target"
    ):
        made(path, "qnn-htp")
    assert made(path, "rk3588")


def test_lengths_are_refused_where_every_size_is_fixed(model: Path) -> None:
    with pytest.raises(ExportError, match=r"'qnn-htp' wants every size fixed.*for each of 16, 32, without"):
        export(model, target="qnn-htp", calibration=X, out=model.parent / "m.ew", lengths=(16, 32))


def test_an_engine_that_the_target_lacks_is_refused_with_one_that_it_has(model: Path) -> None:
    with pytest.raises(ExportError, match=r"has no backend 'native'.*--backend onnxruntime"):
        export(model, target="qnn-htp", calibration=X, out=model.parent / "m.ew")


def test_where_a_preferred_engine_does_not_take_it_the_next_is_named(model: Path) -> None:
    notes: list[str] = []

    def note(progress: Progress) -> None:
        notes.append(progress.note)

    phone = replace(Target.load("qnn-htp"), providers=("QNN", "CPU"))
    made(model, phone, quantize=Quantize(activations="int16"), progress=note)
    (said,) = [n for n in notes if "runs it" in n]
    assert said.startswith("CPU runs it; not QNN: layer ")
    assert "its activations are int16, QNN takes uint16 or uint8" in said


@pytest.mark.parametrize("target", ["jetson-orin", "ascend-310", "t4"])
def test_engines_of_symmetric_integers_get_their_own_form(model: Path, target: str) -> None:
    notes: list[str] = []
    artifact = made(model, target, progress=lambda p: notes.append(p.note))
    assert "symmetric.onnx" in artifact.files
    assert [n for n in notes if "runs it" in n] == []


def test_memory_counts_for_onnx_runtime_too(model: Path) -> None:
    small = replace(Target.load("qnn-htp"), memory_bytes=100)
    with pytest.raises(ExportError, match=r"the model needs \d+ bytes .*target 'qnn-htp' has 100"):
        export(model, target=small, calibration=X, out=model.parent / "m.ew", backend="onnxruntime")


def test_a_target_without_providers_runs_nothing_by_onnx_runtime(model: Path) -> None:
    artifact = made(model, "x86-avx2")
    none = replace(Target.load("qnn-htp"), providers=())
    with pytest.raises(ExportError, match="it has no provider"):
        check_providers(none, {"model.onnx": artifact.read("model.onnx")})
