"""Soundness: healthy artifacts have no findings; what is wrong is found where it is, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from edgewright.exporting import export
from edgewright.golden import golden_inputs
from edgewright.lower import lower
from edgewright.overflow import OverflowSafe, safe_integers
from edgewright.recipe import Quantize
from edgewright.soundness.bare import Integers
from edgewright.soundness.examining import Examination, examine
from edgewright.soundness.program import differences
from edgewright.soundness.weights import ROUNDED, Residual, residual
from edgewright.subject import of_artifact, of_onnx
from edgewright.weights import byte_ranges, with_external_data
from edgewright.wiring import Wiring
from edgewright_device import Artifact, encode_golden, write_artifact
from edgewright_kernels import Engine
from edgewright_kernels.plan import Convolution, FullyConnected, decode, encode
from sdk import foreign
from sdk.graphs import FloatArray, graph, normal, rng, saved

ROWS, WIDTH, HEADS = 6, 16, 4


def images() -> onnx.ModelProto:
    """Convolutions, one of them depthwise, a residual, pools, a flattened image, two square layers."""
    return graph(
        [
            ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c1"], "r1", {}),
            ("Conv", ["r1", "w2", "b2"], "c2", {"pads": [1, 1, 1, 1], "group": 8}),
            ("Clip", ["c2", "zero", "six"], "r2", {}),
            ("Add", ["r1", "r2"], "s", {}),
            ("AveragePool", ["s"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Flatten", ["p"], "f", {}),
            ("Gemm", ["f", "w3", "b3"], "h", {"transB": 1}),
            ("Relu", ["h"], "r3", {}),
            ("Gemm", ["r3", "w4", "b4"], "g", {"transB": 1}),
            ("Sigmoid", ["g"], "e", {}),
            ("Gemm", ["e", "w5", "b5"], "y", {"transB": 1}),
        ],
        {"x": (2, 6, 6)},
        {"y": (5,)},
        {
            "w1": normal(8, 2, 3, 3, seed=1, scale=0.4),
            "b1": normal(8, seed=2, scale=0.3),
            "w2": normal(8, 1, 3, 3, seed=3, scale=0.6),
            "b2": normal(8, seed=4, scale=0.3),
            "w3": normal(WIDTH, 72, seed=5, scale=0.1),
            "b3": normal(WIDTH, seed=6, scale=0.3),
            "w4": normal(WIDTH, WIDTH, seed=7, scale=0.3),
            "b4": normal(WIDTH, seed=8, scale=0.3),
            "w5": normal(5, WIDTH, seed=9, scale=0.5),
            "b5": normal(5, seed=10, scale=0.3),
            "zero": np.float32(0),
            "six": np.float32(6),
        },
    )


def encoder() -> onnx.ModelProto:
    """One layer of a transformer: attention of four heads, norms, a feed-forward with GELU."""
    shape = np.array([0, ROWS, HEADS, WIDTH // HEADS], np.int64)
    nodes: list[Any] = []
    for name in ("q", "k", "v"):
        nodes += [
            ("MatMul", ["x", f"w{name}"], f"{name}0", {}),
            ("Add", [f"{name}0", f"b{name}"], f"{name}1", {}),
            ("Reshape", [f"{name}1", "split"], f"{name}2", {}),
            ("Transpose", [f"{name}2"], name, {"perm": [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]}),
        ]
    nodes += [
        ("MatMul", ["q", "k"], "scores", {}),
        ("Mul", ["scores", "half"], "scaled", {}),
        ("Softmax", ["scaled"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "v"], "mixed", {}),
        ("Transpose", ["mixed"], "turned", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["turned", "merge"], "merged", {}),
        ("MatMul", ["merged", "wo"], "o0", {}),
        ("Add", ["o0", "bo"], "o", {}),
        ("Add", ["o", "x"], "s1", {}),
        ("LayerNormalization", ["s1", "g1", "n1"], "l1", {"axis": -1}),
        ("MatMul", ["l1", "w1"], "f0", {}),
        ("Add", ["f0", "b1"], "f1", {}),
        ("Gelu", ["f1"], "f2", {}),
        ("MatMul", ["f2", "w2"], "f3", {}),
        ("Add", ["f3", "b2"], "f4", {}),
        ("Add", ["f4", "l1"], "s2", {}),
        ("LayerNormalization", ["s2", "g2", "n2"], "y", {"axis": -1}),
    ]
    square = {
        f"w{n}": normal(WIDTH, WIDTH, seed=i, scale=0.4) for i, n in enumerate(("q", "k", "v", "o"), 20)
    }
    biases = {f"b{n}": normal(WIDTH, seed=i, scale=0.2) for i, n in enumerate(("q", "k", "v", "o", "2"), 30)}
    norms = {n: 1 + normal(WIDTH, seed=i, scale=0.3) for i, n in enumerate(("g1", "g2"), 40)}
    return graph(
        nodes,
        {"x": (ROWS, WIDTH)},
        {"y": (ROWS, WIDTH)},
        {
            **square,
            **biases,
            **norms,
            "n1": normal(WIDTH, seed=50, scale=0.2),
            "n2": normal(WIDTH, seed=51, scale=0.2),
            "w1": normal(WIDTH, 2 * WIDTH, seed=52, scale=0.3),
            "b1": normal(2 * WIDTH, seed=53, scale=0.2),
            "w2": normal(2 * WIDTH, WIDTH, seed=54, scale=0.3),
            "split": shape,
            "merge": np.array([0, ROWS, WIDTH], np.int64),
            "half": np.float32(0.5),
        },
    )


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "images": (images, (2, 6, 6)),
    "encoder": (encoder, (ROWS, WIDTH)),
}
RECIPES = {
    "images": {
        "min-max": Quantize(),
        "gptq": Quantize(calibration="mse", rounding="gptq", correct_bias=True),
        "overflow-safe": Quantize(overflow_safe="pairs", calibration="percentile"),
        "equalized": Quantize(equalize=True, calibration="entropy"),
        "int4": Quantize(weights="int4", rounding="gptq"),
        "int16": Quantize(activations="int16"),
    },
    "encoder": {"min-max": Quantize(), "smooth": Quantize(activations="mixed", smooth="fixed")},
}


def samples(name: str, count: int, seed: int) -> FloatArray:
    return rng(seed).standard_normal((count, *MODELS[name][1])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Made:
    path: Path
    artifact: Artifact
    data: FloatArray

    @property
    def qdq(self) -> onnx.ModelProto:
        return onnx.load(self.artifact.path / "model.onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    folder = tmp_path_factory.mktemp("sound")
    known: dict[tuple[str, str], Made] = {}

    def get(name: str, recipe: str = "min-max") -> Made:
        if (name, recipe) not in known:
            path = saved(MODELS[name][0](), folder / f"{name}.onnx")
            artifact = export(
                path,
                target="x86-avx2",
                calibration=samples(name, 128, 0),
                out=folder / f"{name}-{recipe}.ew",
                quantize=RECIPES[name][recipe],
            )
            known[name, recipe] = Made(path=path, artifact=artifact, data=samples(name, 64, 1))
        return known[name, recipe]

    return get


def examined(made: Made, artifact: Artifact | None = None) -> Examination:
    subject = of_artifact(artifact or made.artifact)
    return examine(subject, made.path, {subject.inputs[0].name: made.data}, lambda _: None)


def with_graph(made: Made, model: onnx.ModelProto, out: Path) -> Artifact:
    """An artifact of another QDQ graph, its program made of that, as a wrong exporter would."""
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    stored = safetensors.numpy.load(made.artifact.read("weights.safetensors"))
    weights = safetensors.numpy.save({n: constants[n] for n in sorted(stored) if n in constants})
    ranges = byte_ranges(weights)
    plan = encode(lower(model, ranges, len(weights)))
    inputs = golden_inputs({made.artifact.inputs[0].name: made.data})
    golden = encode_golden(inputs, Engine(plan, weights).run(inputs))
    files = {
        "weights.safetensors": weights,
        "model.onnx": with_external_data(model, ranges),
        "plan.bin": plan,
        "golden.npz": golden,
    }
    return rewritten(made.artifact, out, files)


def rewritten(artifact: Artifact, out: Path, files: dict[str, bytes], **more: Any) -> Artifact:
    return write_artifact(
        out,
        **{
            "name": artifact.name,
            "producer": artifact.producer,
            "targets": artifact.targets,
            "inputs": artifact.inputs,
            "outputs": artifact.outputs,
            "files": {n: artifact.read(n) for n in artifact.files} | files,
            **more,
        },
    )


def failed(found: Examination) -> list[str]:
    return [c.name for c in found.checks if c.verdict != "passed"]


# Healthy ones


@pytest.mark.parametrize(("name", "recipe"), [(n, r) for n, each in RECIPES.items() for r in each])
def test_a_healthy_artifact_has_no_findings(made: Callable[[str, str], Made], name: str, recipe: str) -> None:
    found = examined(made(name, recipe))
    assert found.findings == ()
    assert {c.name: c.verdict for c in found.checks} == dict.fromkeys(
        ("files", "program", "grids", "weights", "operators"), "passed"
    )


@pytest.mark.parametrize("types", ["U8S8", "U8U8"])
def test_files_of_another_quantizer_have_no_findings_as_they_are_or_as_artifacts(
    tmp_path: Path, types: str
) -> None:
    path = foreign.float_file("cnn", tmp_path / "cnn.onnx")
    calibration, data = foreign.inputs("cnn", 128), foreign.inputs("cnn", 64, seed=1)
    file = foreign.quantize_static(path, tmp_path / "q.onnx", calibration, types)
    artifact = export(file, target="x86-avx2", calibration=calibration, out=tmp_path / "q.ew")
    for subject in (of_onnx(file, data), of_artifact(artifact)):
        found = examine(subject, path, {subject.inputs[0].name: data}, lambda _: None)
        assert found.findings == ()
        (compared,) = [c.what for c in found.checks if c.name == "weights"]
        layers = [n for n in subject.graph.graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
        count = int(compared.rpartition("(of ")[2].removesuffix(")"))
        # Weights and biases, those too that are in two pieces; but not where the pieces are those of groups.
        assert count >= 2 * len(layers) - 2


def test_a_float_file_has_nothing_to_examine(made: Callable[[str, str], Made]) -> None:
    one = made("images", "min-max")
    found = examine(of_onnx(one.path, one.data), one.path, {"x": one.data}, lambda _: None)
    assert found == Examination()


def test_another_model_as_reference_is_told_apart_from_defects(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    one = made("images", "min-max")
    notes: list[str] = []
    other = saved(encoder(), tmp_path / "other.onnx")
    subject = of_artifact(one.artifact)
    found = examine(subject, other, {"x": samples("encoder", 8, 0)}, lambda p: notes.append(p.note))
    assert {"weights", "operators"}.isdisjoint(c.name for c in found.checks)
    assert "not compared with the float model" in notes[-1]


# The graph: what an exporter may have done wrong, program and golden vectors true to it

Change = Callable[[Wiring], None]


def flip(graph_: Wiring) -> None:
    graph_.constants["w4"][3, 5] ^= 64


def swap(graph_: Wiring) -> None:
    graph_.constants["w4"][[1, 2]] = graph_.constants["w4"][[2, 1]]


def transpose(graph_: Wiring) -> None:
    graph_.constants["w4"] = graph_.constants["w4"].T.copy()


def cut_off(graph_: Wiring) -> None:
    steps = images_weight("w3") / graph_.constants["w3.scale"][:, None]
    graph_.constants["w3"] = np.trunc(steps).astype(np.int8)


def lose_bits(graph_: Wiring) -> None:
    graph_.constants["w3"] = np.maximum(graph_.constants["w3"] >> 2 << 2, -127).astype(np.int8)


def scale_one(graph_: Wiring) -> None:
    rescale(graph_, np.where(np.arange(WIDTH) == 4, 2.0, 1.0))


def permute(graph_: Wiring) -> None:
    scales = graph_.constants["w4.scale"]
    rescale(graph_, np.roll(scales, 1) / scales)


def along_inputs(graph_: Wiring) -> None:
    node = next(n for n in graph_.nodes if n.name == "w4_dq")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("axis", 1))


def negate(graph_: Wiring) -> None:
    graph_.constants["w4"][7] *= -1


def zero_point(graph_: Wiring) -> None:
    graph_.constants["w4_zero_point"] = graph_.constants["w4_zero_point"] + np.int8(3)


def drop_bias(graph_: Wiring) -> None:
    graph_.constants["b4"][:] = 0


def coarse_bias(graph_: Wiring) -> None:
    graph_.constants["b4"] = graph_.constants["b4"] // 2


def rescale(graph_: Wiring, factor: Any) -> None:
    """Other scales, of the bias too, whose value stays."""
    graph_.constants["w4.scale"] = (graph_.constants["w4.scale"] * factor).astype(np.float32)
    graph_.constants["b4.scale"] = (graph_.constants["b4.scale"] * factor).astype(np.float32)
    graph_.constants["b4"] = np.rint(graph_.constants["b4"] / factor).astype(np.int32)


def images_weight(name: str) -> FloatArray:
    values = {i.name: onnx.numpy_helper.to_array(i) for i in images().graph.initializer}
    return values[name].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, "one flipped bit"),
        (swap, "the weights of channel 2 are those of channel 1"),
        (transpose, "transposed"),
        (cut_off, "cut off towards zero"),
        (lose_bits, "low bits are lost"),
        (scale_one, "the scale of channel 4 is 2 times what it should be"),
        (permute, "belong to other channels"),
        (negate, "the sign of the weights of channel 7 is wrong"),
        (drop_bias, "the bias is missing"),
        (coarse_bias, "a grid 0.5 times as coarse"),
    ],
)
def test_what_rounding_does_not_do_to_weights_is_found_and_named(
    made: Callable[[str, str], Made], tmp_path: Path, change: Change, said: str
) -> None:
    one = made("images", "min-max")
    found = examined(one, changed(one, change, tmp_path))
    assert failed(found) == ["weights"]
    (finding,) = found.findings
    assert said in finding.found + finding.cause, finding
    assert "'w" in finding.place or "'b" in finding.place
    check = next(c for c in found.checks if c.name == "weights")
    assert finding.place in check.what
    assert check.remedy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (along_inputs, "its scales lie along axis 1, its output channels along axis 0"),
        (zero_point, "zero point"),
    ],
)
def test_a_weight_that_no_program_takes_is_found_in_the_graph(
    made: Callable[[str, str], Made], tmp_path: Path, change: Change, said: str
) -> None:
    one = made("images", "min-max")
    wiring = Wiring(one.qdq)
    change(wiring)
    weights = safetensors.numpy.load(one.artifact.read("weights.safetensors"))
    ranges = byte_ranges(safetensors.numpy.save(weights))
    broken = rewritten(
        one.artifact, tmp_path / "b.ew", {"model.onnx": with_external_data(wiring.model(), ranges)}
    )
    found = examined(one, broken)
    assert "weights" in failed(found)
    assert any(said in f.cause for f in found.findings)


def changed(one: Made, change: Change, folder: Path) -> Artifact:
    wiring = Wiring(one.qdq)
    wiring.constants = {n: v.copy() for n, v in wiring.constants.items()}
    change(wiring)
    wiring.drop_dead()
    return with_graph(one, wiring.model(), folder / "changed.ew")


def _node(graph_: Wiring, kind: str, place: int = 0) -> onnx.NodeProto:
    return [n for n in graph_.nodes if n.op_type == kind][place]


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def move_padding(graph_: Wiring) -> None:
    _set(_node(graph_, "Conv"), "pads", [0, 1, 2, 1])


def double_a_residual(graph_: Wiring) -> None:
    node = _node(graph_, "Add")
    node.input[1] = node.input[0]


def another_function(graph_: Wiring) -> None:
    _node(graph_, "Sigmoid").op_type = "HardSigmoid"


def another_bound(graph_: Wiring) -> None:
    _node(graph_, "Clip").input[2] = graph_.constant("three", np.float32(1))


def no_clamp(graph_: Wiring) -> None:
    node = _node(graph_, "Relu")
    graph_.read_instead(node.output[0], node.input[0])
    regrid(graph_, "r1", 2.0, 128)


def epsilon(graph_: Wiring) -> None:
    _set(_node(graph_, "LayerNormalization"), "epsilon", 0.1)


def rolled_gains(graph_: Wiring) -> None:
    graph_.constants["g1"] = np.roll(graph_.constants["g1"], 1)


def swapped_heads(graph_: Wiring) -> None:
    names = [n for n in graph_.constants if n.endswith(".scale") and graph_.constants[n].shape == (WIDTH,)]
    layer = next(n.removesuffix(".scale") for n in names if graph_.constants[n[:-6]].ndim == 2)
    order = np.concatenate([np.arange(4, 8), np.arange(4), np.arange(8, WIDTH)])
    graph_.constants[layer] = graph_.constants[layer][order]


@pytest.mark.parametrize(
    ("name", "change", "place", "said"),
    [
        ("images", move_padding, "Conv giving 'c1'", "attribute 'pads'"),
        ("images", double_a_residual, "Add giving 's'", "it reads r1, r1"),
        ("images", another_function, "HardSigmoid giving 'e'", "the float model has Sigmoid"),
        ("images", another_bound, "Clip giving 'r2'", "constant"),
        ("encoder", epsilon, "LayerNormalization giving 'l1'", "attribute 'epsilon'"),
        ("encoder", rolled_gains, "LayerNormalization giving 'l1'", "constant"),
    ],
)
def test_an_operator_that_is_another_is_found_and_named(
    made: Callable[[str, str], Made], tmp_path: Path, name: str, change: Change, place: str, said: str
) -> None:
    one = made(name, "min-max")
    found = examined(one, changed(one, change, tmp_path))
    assert "operators" in failed(found)
    finding = next(f for f in found.findings if f.check == "operators")
    assert place in finding.place
    assert said in finding.cause, finding.cause


def test_swapped_heads_are_found_in_the_layer_where_they_are(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    one = made("encoder", "min-max")
    found = examined(one, changed(one, swapped_heads, tmp_path))
    assert failed(found) == ["weights"]
    assert "of channel" in found.findings[0].found


# Grids


def regrid(graph_: Wiring, value: str, factor: float, zero: int | None = None) -> None:
    """Another grid for a value; the bias of the layer behind it goes along."""
    constants = graph_.constants
    old = float(constants[f"{value}_scale"])
    constants[f"{value}_scale"] = np.array(old * factor, np.float32)
    if zero is not None:
        constants[f"{value}_zero_point"] = np.array(zero, constants[f"{value}_zero_point"].dtype)
    readers = graph_.readers()
    for node in readers.get(f"{value}_dequantized", []):
        if node.op_type in {"Conv", "Gemm"}:
            bias = next(n for n in graph_.nodes if node.input[2] in n.output)
            constants[bias.input[1]] = (constants[bias.input[1]] * factor).astype(np.float32)
            constants[bias.input[0]] = np.rint(constants[bias.input[0]] / factor).astype(np.int32)


def clip_half(graph_: Wiring) -> None:
    regrid(graph_, "r3", 0.5)


def waste(graph_: Wiring) -> None:
    regrid(graph_, "r3", 8)


def below_zero(graph_: Wiring) -> None:
    regrid(graph_, "r3", 1.0, 40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (clip_half, "real samples go beyond its grid"),
        (waste, "times as wide as its values"),
        (below_zero, "it cannot be below 0"),
    ],
)
def test_a_grid_that_does_not_suit_real_samples_is_found(
    made: Callable[[str, str], Made], tmp_path: Path, change: Change, said: str
) -> None:
    one = made("images", "min-max")
    found = examined(one, changed(one, change, tmp_path))
    finding = next(f for f in found.findings if f.check == "grids")
    assert said in finding.found
    assert finding.place == "value 'r3'"


@pytest.mark.parametrize("what", ["scale", "zero_point"])
def test_both_sides_of_a_grid_must_agree(made: Callable[[str, str], Made], tmp_path: Path, what: str) -> None:
    one = made("images", "min-max")
    wiring = Wiring(one.qdq)
    node = next(n for n in wiring.nodes if n.op_type == "DequantizeLinear" and n.input[0] == "r3_quantized")
    at = 1 if what == "scale" else 2
    other = wiring.constants[node.input[at]] + (1 if at == 2 else np.float32(0.001))
    node.input[at] = wiring.constant("other", other.astype(wiring.constants[node.input[at]].dtype))
    ranges = byte_ranges(one.artifact.read("weights.safetensors"))
    broken = rewritten(
        one.artifact, tmp_path / "b.ew", {"model.onnx": with_external_data(wiring.model(), ranges)}
    )
    found = examined(one, broken)
    assert "grids" in failed(found)
    assert any(what.replace("_", " ") in f.found and "'r3'" in f.place for f in found.findings)


def test_a_bias_on_another_grid_than_its_sums_is_found(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    def change(graph_: Wiring) -> None:
        graph_.constants["b3.scale"] = graph_.constants["b3.scale"] * np.float32(1.2)

    one = made("images", "min-max")
    found = examined(one, changed(one, change, tmp_path))
    assert "grids" in failed(found)
    assert any("1.2 times" in f.found for f in found.findings)


# Programs


def _first(ops: Any, kind: type) -> int:
    return next(i for i, op in enumerate(ops) if isinstance(op, kind))


@pytest.mark.parametrize("field", ["multiplier", "shift", "padding", "bias", "low", "zero_point", "weight"])
def test_a_field_of_the_program_that_its_graph_does_not_give_is_named(
    made: Callable[[str, str], Made], tmp_path: Path, field: str
) -> None:
    one = made("images", "min-max")
    plan = decode(one.artifact.read("plan.bin"))
    at = _first(plan.ops, Convolution if field == "padding" else FullyConnected)
    op: Any = plan.ops[at]
    tensors = list(plan.tensors)
    if field == "padding":
        op = replace(op, window=replace(op.window, padding=(0, 1, 2, 1)))
    elif field == "bias":
        op = replace(op, bias=None)
    elif field == "weight":
        second: Any = [o for o in plan.ops if isinstance(o, FullyConnected)][1]
        at, op = list(plan.ops).index(second), replace(second, bias=op.bias)
        field = "bias"
    elif field == "zero_point":
        tensors[op.y] = replace(tensors[op.y], zero_point=tensors[op.y].zero_point ^ 5)
    elif field == "low":
        op = replace(op, rescale=replace(op.rescale, low=op.rescale.low + 1))
    else:
        values = getattr(op.rescale, field).copy()
        values[3] += 1
        op = replace(op, rescale=replace(op.rescale, **{field: values}))
    other = replace(plan, ops=(*plan.ops[:at], op, *plan.ops[at + 1 :]), tensors=tuple(tensors))
    found = list(differences("plan.bin", other, plan))
    assert {d.field for d in found} == {field}
    assert found[0].operator == at
    if field in {"padding", "bias"}:
        return  # a reader may refuse such a file
    broken = rewritten(one.artifact, tmp_path / "b.ew", {"plan.bin": encode(other)})
    check = next(c for c in examined(one, broken).checks if c.name == "program")
    assert check.verdict == "failed"
    assert f"operator {found[0].operator}" in check.what
    assert f"{field} is" in check.what


def test_a_program_of_another_version_that_computes_the_same_passes_and_else_nobody_can_tell(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    one = made("images", "min-max")
    plan = decode(one.artifact.read("plan.bin"))
    at = _first(plan.ops, FullyConnected)
    op: Any = plan.ops[at]

    number = op.y
    renamed = list(plan.tensors)
    renamed[number] = replace(renamed[number], name="of_old")
    rescale = replace(op.rescale, shift=op.rescale.shift - 1)
    other = replace(plan, ops=(*plan.ops[:at], replace(op, rescale=rescale), *plan.ops[at + 1 :]))
    verdicts: list[str] = []
    for each in (replace(plan, tensors=tuple(renamed)), other):
        broken = rewritten(
            one.artifact,
            tmp_path / f"{len(verdicts)}.ew",
            {"plan.bin": encode(each)},
            producer="edgewright 0.0.1",
        )
        verdicts.append(next(c.verdict for c in examined(one, broken).checks if c.name == "program"))
    assert verdicts == ["passed", "cannot tell"]


# Files


def test_ports_of_the_manifest_must_have_the_grids_and_the_order_of_the_graph(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    one = made("images", "min-max")
    (port,) = one.artifact.inputs
    other = replace(port, scale=port.scale * 2)
    broken = rewritten(one.artifact, tmp_path / "a.ew", {}, inputs=(other,))
    check = next(c for c in examined(one, broken).checks if c.name == "files")
    assert check.verdict == "failed"
    assert "the grid of 'x' is (scale" in check.what


def test_a_constant_that_lies_elsewhere_than_the_weights_file_says_is_found(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    one = made("images", "min-max")
    ranges = dict(byte_ranges(one.artifact.read("weights.safetensors")))
    ranges["w4"] = replace(ranges["w4"], offset=ranges["w4"].offset + 1)
    broken = rewritten(one.artifact, tmp_path / "a.ew", {"model.onnx": with_external_data(one.qdq, ranges)})
    check = next(c for c in examined(one, broken).checks if c.name == "files")
    assert "model.onnx takes 'w4' from byte" in check.what


def test_a_report_about_another_artifact_is_found(made: Callable[[str, str], Made], tmp_path: Path) -> None:
    one = made("images", "min-max")
    copy = rewritten(one.artifact, tmp_path / "a.ew", {})
    (copy.path / "report.json").write_text('{"artifact": "0", "passed": true}', "utf-8")
    assert failed(examined(one, copy)) == ["files"]


@pytest.mark.parametrize("safe", ["pairs", "quads"])
def test_weights_bent_to_be_safe_from_overflow_are_healthy_and_a_changed_one_is_not(
    safe: OverflowSafe,
) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 3, 3, 3))
    largest = np.abs(weight).reshape(16, -1).max(axis=1)
    scale = (largest / 127).astype(np.float32)
    steps = safe_integers(weight, scale, safe).astype(np.int64)
    by_channel = scale.astype(np.float64).reshape(-1, 1, 1, 1)

    def judged(integers: np.ndarray) -> Residual:
        held = Integers(name="w", steps=integers, scale=by_channel, most=127, axis=0, zero_point=False)
        return residual(weight, held, 0, ROUNDED)

    assert not judged(steps).broken
    changed = steps.copy()
    at = np.unravel_index(np.abs(steps).argmax(), steps.shape)
    changed[at] -= 32 * np.sign(changed[at])
    assert "channel" in judged(changed).broken
