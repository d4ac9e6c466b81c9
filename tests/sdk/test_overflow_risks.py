"""Which layers can overflow 16 bits in which runtime: proven, witnessed, and shown to the runtime itself."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgewright as ew
from edgewright.integer_layers import integer_layers, unread_layers
from edgewright.narrow_kernels import (
    HIGH,
    KERNELS,
    LOW,
    ONNX_RUNTIME,
    ONNX_RUNTIME_ARM,
    OPENVINO,
    Kernel,
    met,
)
from edgewright.overflow_proof import activation_offset, any_two_fit, risk, worst_32
from edgewright.overflow_reach import reach
from edgewright.overflow_risks import OverflowFinding, overflow_check, overflow_risks
from edgewright.overflow_witness import dequantized, layer_graph, run_stock, sums, witness
from edgewright.plain import from_plain, to_plain
from edgewright.value_ranges import integer_ranges
from edgewright.wiring import Wiring
from sdk import foreign
from sdk.overflow_layers import inputs, layer, of_output

TESTS = Path(__file__).parents[1]
AVX2_ONLY = TESTS.parent / "benchmarks" / "avx2_only.c"


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ONNX Runtime saturates."""
    asked = "from edgewright.overflow_witness import saturates_here; print(saturates_here())"
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environments = [common]
    if shutil.which("cc"):
        library = tmp_path_factory.mktemp("avx2") / "avx2_only.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, AVX2_ONLY], check=False)
        environments.append({**common, "LD_PRELOAD": str(library)})
    for environment in environments:
        seen = subprocess.run(
            [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=False
        )
        if seen.stdout.strip() == "True":
            return environment
    pytest.skip("ONNX Runtime is exact here, and cannot be held to AVX2 alone")


def asked(environment: dict[str, str], *arguments: object) -> Any:
    """What a program prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def check_peer(rows: list[dict[str, Any]]) -> None:
    """Holds what a runtime did against what is said of it."""
    assert {r["safe"] for r in rows if r["pairs"]} >= {"off"}
    assert all(r["pairs"] for r in rows if r["safe"] == "off")
    for row in rows:
        assert row["not_the_model"] == 0, row
        if row["pairs"]:
            assert row["not_exact"] > 0, row
            assert row["steps"] > 0 or "Conv" not in row["layer"], row
        else:
            assert row["not_exact"] == row["overflowed"] == 0, row


def test_the_runtime_differs_where_a_layer_is_flagged_and_nowhere_else(saturating: dict[str, str]) -> None:
    rows = asked(saturating, "sdk.overflow_layers", 1000)
    check_peer(rows)
    # The engine takes the terms of a convolution along three axes in another order than ONNX Runtime.
    safe = [r["layer"] for r in rows if r["pairs"] and r["safe"] != "off"]
    assert all("(4, 3, 2, 2, 2)" in name for name in safe)
    for row in rows:
        if row["pairs"]:
            assert row["confirmed"].startswith("differs by"), row
            assert f"{row['steps']} steps" in row["confirmed"] or not row["steps"], row


@pytest.mark.slow
def test_cleared_layers_agree_on_100000_inputs(saturating: dict[str, str]) -> None:
    check_peer(asked(saturating, "sdk.overflow_layers", 100_000))


@pytest.mark.slow
def test_openvino_differs_where_a_layer_is_flagged_and_nowhere_else(saturating: dict[str, str]) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed: pip install --no-deps openvino, for this test alone")
    rows = asked(saturating, "sdk.overflow_layers", 1000, "openvino")
    check_peer(rows)
    # Channels are padded to an even number, so other pairs meet than were made safe for ONNX Runtime.
    assert {r["layer"].split(" (")[0] for r in rows if r["pairs"] and r["safe"] == "pairs"} <= {"Conv"}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.runtime)
@pytest.mark.parametrize("seed", range(8))
def test_extremes_are_those_of_all_corners(kernel: Kernel, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = [(3, 5), (2, 3, 3, 3), (2, 4, 2), (3, 17)][seed % 4]
    dtype = (np.uint8, np.int8)[seed // 4]
    low, high = sorted(random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, 2))
    if seed % 2:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    weight = random.choice([-128, -127, 64, 65, 126, 127], shape)
    of = layer(weight, kind="Conv" if len(shape) > 2 else "Gemm", dtype=dtype, low=int(low), high=int(high))
    ends = [int(v) - activation_offset(of, kernel) for v in (low, high)]
    rows = np.pad(weight.reshape(shape[0], -1), ((0, 0), (0, 1)))
    over, worst = 0, 0
    for row, (a, b) in itertools.product(rows, met(kernel, shape, 1)):
        corners = [int(row[a]) * x + int(row[b]) * y for x in ends for y in ends]
        over += max(corners) > HIGH or min(corners) < LOW
        worst = max([worst, *corners], key=abs)
    found = risk(of, kernel)
    assert (found.count, abs(found.worst)) == (over, abs(worst))


@pytest.mark.parametrize(
    ("weights", "high", "safe"),
    [
        ((64, 64), 255, True),  # 32,640
        ((65, 64), 255, False),
        ((127, 90), 151, True),  # 217 * 151 = 32,767, the largest there is
        ((127, 90), 152, False),
        ((-128, -128), 128, True),  # -32,768, the smallest there is
        ((-128, -128), 129, False),
        ((127, -127), 255, True),
        ((127, 2), 255, False),
        ((127, 1), 255, True),
    ],
)
def test_a_sum_at_the_limit_is_safe_and_one_beyond_is_not(
    weights: tuple[int, int], high: int, safe: bool
) -> None:
    of = layer([weights], high=high)
    found = risk(of, ONNX_RUNTIME)
    assert (found.count == 0) is safe
    exact, peer = sums(of, ONNX_RUNTIME, 0, np.array([[high, high], [0, 0], [high, 0]]))
    assert (exact == peer).all() == safe


@pytest.mark.parametrize(("apart", "fits"), [(64, True), (65, False)])
def test_where_any_two_terms_may_meet_they_all_have_to_fit(apart: int, fits: bool) -> None:
    weight = np.zeros((2, 1, 3, 3))
    weight[0, 0, 0, 0], weight[0, 0, 2, 1] = 64, apart
    weight[1, 0, 0, 0], weight[1, 0, 2, 1] = -64, 127
    assert any_two_fit(layer(weight, kind="Conv"), OPENVINO) is fits
    assert risk(layer(weight, kind="Conv"), OPENVINO).count == 0


def test_which_terms_meet() -> None:
    assert met(ONNX_RUNTIME, (4, 5), 1).tolist() == [[0, 1], [2, 3], [4, 5]]  # 5 is no term
    # Channels run fastest: of 3 channels at 4 places, channel 2 of place 0 meets channel 0 of place 1.
    assert met(ONNX_RUNTIME, (4, 3, 2, 2), 1).tolist()[:2] == [[0, 4], [8, 1]]
    assert met(OPENVINO, (4, 3, 2, 2), 1).tolist()[:3] == [[0, 4], [8, 12], [1, 5]]
    assert met(OPENVINO, (4, 3, 2, 2), 2).tolist()[:2] == [[0, 4], [8, 1]]
    assert met(OPENVINO, (4, 1, 3, 3), 1).tolist()[:2] == [[0, 9], [1, 9]]
    assert met(ONNX_RUNTIME_ARM, (4, 32), 1).tolist()[7:9] == [[7, 15], [16, 24]]


def test_arm_overflows_for_two_products_of_minus_128_alone() -> None:
    weight = np.zeros((1, 16))
    weight[0, [3, 11]] = -128
    assert risk(layer(weight, dtype=np.int8), ONNX_RUNTIME_ARM).count == 1
    assert risk(layer(weight, dtype=np.int8, low=-127), ONNX_RUNTIME_ARM).count == 0
    assert risk(layer(np.maximum(weight, -127), dtype=np.int8), ONNX_RUNTIME_ARM).count == 0


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_witness_is_an_input_of_the_layer_and_says_what_becomes_of_it(kind: str, dtype: Any) -> None:
    random = np.random.default_rng(5)
    shape = (8, 3, 3, 3) if kind == "Conv" else (8, 27)
    of = layer(
        random.integers(-127, 128, shape),
        kind=kind,
        dtype=dtype,
        dilation=2,
        low=-20 if dtype == np.int8 else 9,
    )
    found = risk(of, ONNX_RUNTIME)
    told, x = witness(of, ONNX_RUNTIME, found)
    assert of.low <= x.min() <= x.max() <= of.high
    exact, peer = sums(of, ONNX_RUNTIME, told.output, of_output(of, x.astype(np.int64), told.output))
    assert (float(exact[0]), float(peer[0])) == (told.exact, told.peer)
    assert told.exact != told.peer
    got = run_stock(layer_graph(of), dequantized(of, x), exact=True).reshape(-1)[told.output]
    assert of.output is not None
    assert abs(got - np.clip(told.exact, *(of.output.scale * np.array([-128, 127])))) <= of.output.scale
    assert sum(w * a for w, a in zip(told.weights, told.activations, strict=True)) == told.total
    assert told.steps > 0


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> Wiring:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return Wiring(helper.make_model(graph))


@pytest.mark.parametrize(
    ("kinds", "zero", "expected"),
    [
        ([], 128, (0, 255)),
        (["Relu"], 128, (128, 255)),
        (["Sigmoid"], 0, (0, 10)),
        (["Tanh"], 128, (118, 138)),
        (["Softmax", "Transpose"], 0, (0, 10)),
        (["HardSwish"], 128, (124, 255)),
        (["Relu", "Clip"], 5, (5, 11)),
        (["Clip"], 5, (1, 11)),
        (["Erf"], 5, (0, 255)),
        (["Relu", "Double"], 5, (5, 255)),
        (["Sigmoid", "Double"], 5, (5, 25)),
    ],
)
def test_ranges_follow_what_bounds_a_value(kinds: list[str], zero: int, expected: tuple[int, int]) -> None:
    make = onnx.helper.make_node
    nodes, name = [], "x"
    for i, kind in enumerate(kinds):
        more = {"Clip": ["low", "high"], "Double": [name]}.get(kind, [])
        nodes.append(make("Add" if kind == "Double" else kind, [name, *more], [f"v{i}"]))
        name = f"v{i}"
    nodes.append(make("QuantizeLinear", [name, "scale", "zero"], ["q"]))
    graph = graph_of(
        nodes,
        {
            "scale": np.float32(0.1),
            "zero": np.uint8(zero),
            "low": np.float32(-0.4),
            "high": np.float32(0.6),
        },
    )
    assert integer_ranges(graph)["q"] == expected


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network."""
    return foreign.float_file("cnn", tmp_path_factory.mktemp("float") / "float.onnx")


def static(source: Path, folder: Path, types: str, **how: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The network as quantize_static makes it, and samples."""
    samples = foreign.inputs("cnn", 32)
    path = foreign.quantize_static(source, folder / f"{types}.onnx", samples, types, **how)
    return onnx.load(path), {"x": samples}


def test_no_input_leaves_a_range_that_was_found(float_file: Path, tmp_path: Path) -> None:
    model, _ = static(float_file, tmp_path, "S8S8", extra_options={"ActivationSymmetric": True})
    made = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    ranges = integer_ranges(Wiring(model))
    assert {ranges[n] for n in made} >= {(-128, 127), (0, 127)}
    assert any(-128 < ranges[n][0] < 0 for n in made)  # a sum of which one part is not negative
    one = onnx.ModelProto()
    one.CopyFrom(model)
    one.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made)
    wild = np.random.default_rng(0).normal(0, 100, (8, *foreign.SHAPES["cnn"])).astype(np.float32)
    got = foreign.operator_by_operator(one, {"x": wild})
    for name in made:
        assert ranges[name][0] <= got[name].min() <= got[name].max() <= ranges[name][1]


def test_a_file_of_int8_activations_overflows_on_its_own_samples(float_file: Path, tmp_path: Path) -> None:
    model, samples = static(float_file, tmp_path, "S8S8", per_channel=True)
    findings = overflow_risks(model, samples=samples, kernels=[ONNX_RUNTIME])
    flagged = [f for f in findings if f.verdict == "at risk"]
    assert flagged
    assert any(f.reached for f in flagged)
    for finding in flagged:
        assert finding.witness is not None
        assert finding.witness.total == finding.worst or abs(finding.witness.total) > HIGH
        assert "x64quantprecision" in finding.remedy
    check = overflow_check(findings)
    assert check is not None
    assert (check.verdict, check.value) == ("failed", len(flagged))
    assert from_plain(OverflowFinding, json.loads(json.dumps(to_plain(flagged[0])))) == flagged[0]
    unknown = overflow_check(overflow_risks(model, kernels=[ONNX_RUNTIME]))
    assert unknown is not None
    assert unknown.verdict == "cannot tell"


@pytest.mark.parametrize(
    ("types", "how"), [("U8S8", {"reduce_range": True}), ("S8S8", {"reduce_range": True})]
)
def test_reduce_range_is_cleared(float_file: Path, tmp_path: Path, types: str, how: dict[str, Any]) -> None:
    model, samples = static(float_file, tmp_path, types, per_channel=True, **how)
    findings = overflow_risks(model, samples=samples)
    assert {f.verdict for f in findings} == {"safe"}
    check = overflow_check(findings)
    assert check is not None
    assert check.verdict == "passed"


def test_uint8_weights_have_no_narrow_kernel(float_file: Path, tmp_path: Path) -> None:
    model, samples = static(float_file, tmp_path, "U8U8")
    assert len(integer_layers(model)) > 3
    findings = overflow_risks(model, samples=samples)
    assert findings == ()
    assert overflow_check(findings) is None


@pytest.mark.parametrize("safe", ["pairs", "quads"])
def test_overflow_safe_artifacts_are_cleared(float_file: Path, tmp_path: Path, safe: Any) -> None:
    samples = {"x": foreign.inputs("cnn", 32)}
    made = ew.export(
        float_file,
        target="x86-avx2",
        calibration=samples,
        out=tmp_path / "safe.ew",
        quantize=ew.Quantize(overflow_safe=safe),
    )
    findings = overflow_risks(onnx.load(made.path / "model.onnx"), samples=samples, kernels=[ONNX_RUNTIME])
    assert findings
    assert {f.verdict for f in findings} == {"safe"}


def test_a_cleared_network_is_exact_and_a_flagged_one_is_not(
    saturating: dict[str, str], float_file: Path, tmp_path: Path
) -> None:
    samples = {"x": foreign.inputs("cnn", 32)}
    np.savez(tmp_path / "x.npz", x=foreign.inputs("cnn", 200, seed=1))
    how = ew.Quantize(overflow_safe="pairs")
    out = tmp_path / "safe.ew"
    made = ew.export(float_file, target="x86-avx2", calibration=samples, out=out, quantize=how)
    static(float_file, tmp_path, "S8S8", per_channel=True)
    cleared = asked(saturating, "sdk.overflow_layers", made.path / "model.onnx", tmp_path / "x.npz")
    flagged = asked(saturating, "sdk.overflow_layers", tmp_path / "S8S8.onnx", tmp_path / "x.npz")
    assert cleared == 0
    assert flagged > 3 / 255  # of the range: more than three steps


@pytest.mark.parametrize(
    ("kind", "narrow"), [("Relu", False), ("Relu", True), ("Clip", True), ("Erf", False)]
)
def test_layers_that_stay_in_floating_point_are_told_apart(kind: str, narrow: bool) -> None:
    make, numpy_helper = onnx.helper.make_node, onnx.numpy_helper
    constants: dict[str, Any] = {
        "scale": np.float32(1),
        "zero": np.uint8(3 if narrow else 0),
        "w": np.full((2, 4, 1, 1), 127, np.int8),
        "low": np.float32(0),
        "high": np.float32(9),
    }
    more = ["low", "high"] if kind == "Clip" else []
    nodes = [
        make("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        make("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        make("DequantizeLinear", ["w", "scale"], ["wd"]),
        make("Conv", ["xd", "wd"], ["c"]),
        make(kind, ["c", *more], ["r"]),
        make("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 4, 2, 2])],
        [onnx.helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    stock, intel, _ = overflow_risks(onnx.helper.make_model(graph))
    fused = kind == "Relu" and not narrow
    assert stock.verdict == ("at risk" if fused else "not in integers")
    assert intel.verdict == "at risk"


def test_what_cannot_be_read_is_not_called_safe(float_file: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    qdq, samples = static(float_file, tmp_path, "U8S8", per_channel=True, reduce_range=True)
    path = foreign.quantize_static(
        float_file, tmp_path / "q.onnx", samples["x"], "U8S8", quant_format=QuantFormat.QOperator
    )
    findings = overflow_risks(onnx.load(path), kernels=[ONNX_RUNTIME])
    assert len(findings) >= len(integer_layers(qdq)) - 2  # a depthwise layer is one of these too
    assert {f.verdict for f in findings} == {"not proven"}
    check = overflow_check(findings)
    assert check is not None
    assert check.verdict == "cannot tell"
    assert not unread_layers(qdq)


def test_sums_beyond_32_bits_are_found() -> None:
    fits, beyond = layer(np.full((1, 65_000), 127)), layer(np.full((2, 70_000), 127))
    assert worst_32(fits)[1] == 0
    assert worst_32(beyond) == (70_000 * 127 * 255, 2)
    assert worst_32(beyond)[0] > 2**31 - 1


def test_a_search_finds_what_the_samples_do_not_show(float_file: Path, tmp_path: Path) -> None:
    model, samples = static(float_file, tmp_path, "U8S8", per_channel=True)
    faint = {
        "x": np.concatenate([0.05 * samples["x"][:4], samples["x"][:1] * 0 + 3, samples["x"][:1] * 0 - 3])
    }
    layers = overflow_risks(model, samples=faint, kernels=[ONNX_RUNTIME], rounds=0)
    risky = [(of, ONNX_RUNTIME, risk(of, ONNX_RUNTIME)) for of in integer_layers(model)]
    risky = [r for r in risky if r[2].count and not r[0].depthwise]
    found = reach(model, risky, faint, rounds=60)
    assert len(found) == sum(f.verdict == "at risk" for f in layers)
    assert sum(f.found is not None for f in found) >= sum(bool(f.reached) for f in layers)
    for one, (of, kernel, of_layer) in zip(found, risky, strict=True):
        if one.found is None:
            assert "no network input found" in one.said()
            continue
        again = reach(model, [(of, kernel, of_layer)], one.found, rounds=0)[0]
        assert again.overflowing == 1


@pytest.mark.slow
def test_the_example_breaks_where_the_proof_says_so(saturating: dict[str, str], tmp_path: Path) -> None:
    program = [sys.executable, str(TESTS.parent / "examples" / "broken_int8.py"), "--out", str(tmp_path)]
    subprocess.run([*program, "--remedies"], env=saturating, check=True, capture_output=True)
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "x.npz", x=data["x"])
    for name in ("s8s8.onnx", "reduced.onnx", "u8u8.onnx", "safe.ew/model.onnx"):
        findings = overflow_risks(onnx.load(tmp_path / name), kernels=[ONNX_RUNTIME])
        risky = any(f.verdict == "at risk" for f in findings)
        far = asked(saturating, "sdk.overflow_layers", tmp_path / name, tmp_path / "x.npz")
        assert risky == (name == "s8s8.onnx") == (far > 0.2), name
        assert risky or far == 0


def test_inputs_of_layers_hold_ends_and_all_between() -> None:
    of = layer(np.ones((1, 8)), low=3, high=9)
    x = inputs(np.random.default_rng(0), of, 500)
    assert (x.min(), x.max()) == (3, 9)
    assert len(np.unique(x)) == 7
