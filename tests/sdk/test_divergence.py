"""Divergence: the node that is damaged is the one that is named, with its cause; a healthy model has none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgewright.divergence import (
    Divergence,
    conversion_divergence,
    kernel_divergence,
    quantization_divergence,
)
from edgewright.graph import float_graph, onnx_function, read_onnx
from edgewright.layer_findings import measure
from edgewright.value_matching import on_grids
from edgewright_kernels import reference
from sdk import foreign
from sdk.graphs import Lowered, lowered
from sdk.test_layer_findings import changed, constants

X = foreign.inputs("cnn", 96)
Run = Callable[[Mapping[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def source(cnn_file: Path) -> Path:
    return cnn_file


@pytest.fixture(scope="module")
def made(source: Path) -> Lowered:
    return lowered(float_graph(source), {"x": X})


def diverges(qdq: onnx.ModelProto, made: Lowered, *, anyway: bool = False) -> Divergence | None:
    floats = made.floating
    return quantization_divergence(measure(qdq, floats, {"x": X}), floats, min_sqnr_db=20, anyway=anyway)


def test_a_healthy_model_does_not_diverge(made: Lowered) -> None:
    qdq = made.quantized.model
    assert diverges(qdq, made) is None
    assert kernel_divergence(qdq, {"x": X}, stock=onnx_function) is None
    assert conversion_divergence(qdq, {"x": X}, reference.trace(made.plan, made.weights, {"x": X})) is None


def test_a_healthy_model_names_what_adds_most_when_asked_all_the_same(made: Lowered) -> None:
    found = diverges(made.quantized.model, made, anyway=True)
    assert found is not None
    assert 0 < found.share <= 1
    assert found.own_db > 30


def test_a_range_that_is_too_small_is_named(made: Lowered) -> None:
    found = diverges(changed(made.quantized.model, "relu_3_scale", lambda s: s / 10), made)
    assert found is not None
    assert (found.layer, found.value, found.cause) == ("second.depthwise", "relu_3", "saturates")
    assert found.share > 0.8
    assert found.input_db > 25
    assert "beyond it" in found.because


def test_of_two_damaged_layers_the_first_is_named(made: Lowered) -> None:
    twice = changed(made.quantized.model, "relu6_scale", lambda s: s / 20)
    found = diverges(changed(twice, "relu_2_scale", lambda s: s / 20), made)
    assert found is not None
    assert found.value == "relu_2"


def test_weights_that_are_others_are_named(made: Lowered) -> None:
    qdq = made.quantized.model
    name = next(n for n in constants(qdq) if "last" in n)
    found = diverges(changed(qdq, name, np.negative), made)
    assert found is not None
    assert (found.layer, found.cause) == ("last", "weights")


def test_steps_that_are_too_coarse_are_named(made: Lowered) -> None:
    qdq = made.quantized.model
    found = diverges(changed(qdq, "relu_2_scale", lambda s: s * 80), made)
    assert found is not None
    assert (found.value, found.cause) == ("relu_2", "too coarse")


class _Wrong:
    """ONNX Runtime with a kernel that gives other integers for one value, and what follows from them."""

    def __init__(self, value: str) -> None:
        self._value, self.loaded = value, 0

    def __call__(self, model: onnx.ModelProto) -> Run:
        self.loaded += 1
        made = onnx.ModelProto()
        made.CopyFrom(model)
        for node in made.graph.node:
            if node.output[0] == self._value:
                node.output[0] = "right"
                at = list(made.graph.node).index(node)
                twice = onnx.helper.make_node("Max", ["right", "least"], [self._value])
                made.graph.node.insert(at + 1, twice)
                made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(135, np.uint8), "least"))
                break
        return onnx_function(made)


def test_a_kernel_that_gives_other_integers_is_located(made: Lowered) -> None:
    wrong = _Wrong("getitem_6_quantized")
    found = kernel_divergence(made.quantized.model, {"x": X}, stock=wrong)
    assert found is not None
    assert found.kind == "kernel"
    assert (found.operator, found.value) == ("Conv", "getitem_6")
    assert found.input_db > 60 > found.own_db
    assert found.share > 0.1
    assert wrong.loaded <= 5


def test_what_follows_from_other_integers_is_not_blamed(made: Lowered) -> None:
    found = kernel_divergence(made.quantized.model, {"x": X}, stock=_Wrong("x_quantized"))
    assert found is not None
    assert found.value == "x"


def test_a_program_that_computes_something_else_is_located(made: Lowered) -> None:
    trace = reference.trace(made.plan, made.weights, {"x": X})
    wrong = changed(made.quantized.model, "getitem_12_scale", lambda s: s * 3)
    found = conversion_divergence(wrong, {"x": X}, trace)
    assert found is not None
    assert (found.kind, found.value) == ("conversion", "getitem_12")


AVX2 = """
import sys
import numpy as np
from edgewright.verification import verify
found = verify(sys.argv[1], reference=sys.argv[2], data=np.load(sys.argv[3]), cases=60, max_flip_rate=0.9)
print({c.name: c.verdict for c in found.checks}["kernels"], found.errors.kernel_db < 60)
print([(d.kind, d.operator, d.cause) for d in found.divergences])
"""


@pytest.fixture(scope="module")
def avx2_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that hides all beyond AVX2; skips where that cannot be."""
    source = Path(__file__).parents[2] / "benchmarks" / "avx2_only.c"
    library = tmp_path_factory.mktemp("avx2") / "avx2_only.so"
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler for x86-64 here")
    tried = subprocess.run(
        [sys.executable, "-c", "print(1)"], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True
    )
    if tried.returncode or tried.stdout.strip() != "1":
        pytest.skip("this machine cannot fault on cpuid")
    return library


def test_a_kernel_that_saturates_is_located_though_its_noise_is_within_bounds(
    avx2_only: Path, source: Path, tmp_path: Path
) -> None:
    path = foreign.quantize_static(source, tmp_path / "q.onnx", X, "U8S8", per_channel=True)
    np.save(tmp_path / "x.npy", X)
    ran = subprocess.run(
        [sys.executable, "-c", AVX2, str(path), str(source), str(tmp_path / "x.npy")],
        env={"LD_PRELOAD": str(avx2_only), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "passed True\n[('kernel', 'Conv', '16-bit overflow')]\n"


def test_other_integers_are_not_taken_for_overflow_because_weights_are_large(
    source: Path, tmp_path: Path
) -> None:
    qdq = read_onnx(foreign.quantize_static(source, tmp_path / "q.onnx", X, "U8S8", per_channel=True))
    value = next(v for v in on_grids(qdq) if v.operator == "Conv")
    found = kernel_divergence(qdq, {"x": X}, stock=_Wrong(value.quantized))
    assert found is not None
    assert (found.value, found.cause) == (value.source, "other integers")
