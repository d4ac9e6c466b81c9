"""The float graph: every form of a model gives the same function, and normalizing keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgewright.errors import ExportError
from edgewright.graph import float_function, float_graph, onnx_function
from edgewright.models import save_model
from edgewright.normalform import normalize
from edgewright.wiring import initializers
from sdk.graphs import graph, mlp, normal, saved


class Net(nn.Module):
    """A convolution with batch norm that has learned something, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]  # a buffer
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(picture)).relu().mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()  # in training mode: reading a model must not depend on it


@pytest.fixture(scope="module")
def files(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_model(net, (normal(2, 2, 5, 5),), folder / "net.pt2")
    saved(float_graph(net, [normal(2, 2, 5, 5)], slim=False), folder / "net.onnx")
    return {suffix: folder / f"net.{suffix}" for suffix in ("pt2", "onnx")}


def test_module_program_and_onnx_give_the_same_outputs(net: nn.Module, files: dict[str, Path]) -> None:
    x = normal(7, 2, 5, 5, seed=3)
    (want,) = float_function(net)([x])
    assert want.shape == (7, 3)
    for source in files.values():
        (got,) = float_function(source)([x])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for made in (float_graph(net, [x[:1]]), *(float_graph(p) for p in files.values())):
        (name,) = (i.name for i in made.graph.input)
        assert name == "picture"
        for batch in (1, 7):
            got = onnx_function(made)({name: x[:batch]})["y"]
            np.testing.assert_allclose(got, want[:batch], rtol=1e-4, atol=1e-5)


def test_reading_a_module_leaves_it_as_it_was(net: nn.Module) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    float_graph(net, [normal(2, 2, 5, 5)])
    float_function(net)([normal(2, 2, 5, 5)])
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_normal_form_has_batch_norm_folded_and_the_mean_a_pool(files: dict[str, Path]) -> None:
    kinds = [n.op_type for n in float_graph(files["pt2"]).graph.node]
    assert kinds == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_nothing_of_the_machine_is_in_a_graph(net: nn.Module) -> None:
    data = float_graph(net, [normal(2, 2, 5, 5)], slim=False).SerializeToString()
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data


class TakesY(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * 2


class TakesMany(nn.Module):
    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        return values[0] + values[1], values[0] - values[1]


def test_an_input_may_have_the_name_of_an_output() -> None:
    made = float_graph(TakesY(), [normal(2, 3)])
    (output,) = onnx_function(made)({"y": normal(4, 3)}).values()
    np.testing.assert_array_equal(output, 2 * normal(4, 3))


def test_inputs_without_names_and_several_outputs_keep_their_order() -> None:
    a, b = normal(4, 3), normal(4, 3, seed=1)
    made = float_graph(TakesMany(), [a[:2], b[:2]])
    assert [i.name for i in made.graph.input] == ["x0", "x1"]
    total, difference = onnx_function(made)({"x0": a, "x1": b}).values()
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(difference, a - b)


# What cannot be read


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_module_that_branches_on_values_is_refused_with_the_reason() -> None:
    with pytest.raises(ExportError, match=r"torch cannot export this model: .*must not branch on values"):
        float_graph(Branches(), [normal(2, 3)])


def test_samples_that_the_module_does_not_take_are_named_by_shape() -> None:
    with pytest.raises(ExportError, match=r"does not take inputs of shape \(2, 4\): mat1 and mat2"):
        float_graph(nn.Linear(3, 2), [normal(2, 4)])


def test_a_module_needs_an_example() -> None:
    with pytest.raises(ExportError, match="needs example_inputs"):
        float_graph(nn.Linear(3, 2))


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("read", [float_graph, float_function])
def test_missing_and_damaged_files_are_named(
    tmp_path: Path, files: dict[str, Path], suffix: str, read: Callable[[Path], Any]
) -> None:
    missing = tmp_path / f"none.{suffix}"
    with pytest.raises(ExportError, match=rf"none\.{suffix}: there is no such file"):
        read(missing)
    for name, data in (("empty", b""), ("text", b"hello"), ("cut", files[suffix].read_bytes()[:-100])):
        damaged = tmp_path / f"{name}.{suffix}"
        damaged.write_bytes(data)
        with pytest.raises(ExportError, match=rf"{name}\.{suffix}: (not an? |an ONNX file without)"):
            read(damaged)


@pytest.mark.parametrize("read", [float_graph, float_function])
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model", "model.h5"])
def test_a_file_of_another_kind_says_which_are_taken(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ExportError, match=rf"{name}: not a model; give a \.pt2 or \.onnx file"):
        read(tmp_path / name)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    onnx.save_model(
        mlp(features=64, hidden=64),
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    assert len(float_function(tmp_path / "m.onnx")([normal(2, 64)])) == 1
    (tmp_path / "m.data").unlink()
    with pytest.raises(ExportError, match=r"m\.onnx: its external data"):
        float_graph(tmp_path / "m.onnx")


@pytest.mark.parametrize("domain", ["vendor", ""])
def test_an_operator_that_onnx_runtime_lacks_is_named(domain: str) -> None:
    model = mlp()
    model.opset_import.append(onnx.helper.make_opsetid("vendor", 1))
    node = model.graph.node[1]
    node.op_type, node.domain, node.name = "Rulu", domain, "odd"
    operator = "vendor.Rulu" if domain else "Rulu"
    with pytest.raises(ExportError, match=rf"no operator {operator} \(node 'odd'\); write the model"):
        onnx_function(model)


def test_a_graph_that_is_not_valid_is_refused() -> None:
    model = mlp()
    model.graph.node[1].op_type = "Rulu"
    with pytest.raises(ExportError, match=r"not a valid ONNX graph: .*Rulu"):
        normalize(model)


# The normal form

W = normal(6, 3, seed=1)
FORMS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "MatMul and Add": (
        lambda: graph(
            [("MatMul", ["x", "w"], "m", {}), ("Add", ["m", "b"], "y", {})],
            {"x": (6,)},
            {"y": (3,)},
            {"w": W, "b": normal(3)},
        ),
        ["Gemm"],
    ),
    "Add and MatMul the other way": (
        lambda: graph(
            [("MatMul", ["x", "w"], "m", {}), ("Add", ["b", "m"], "y", {})],
            {"x": (6,)},
            {"y": (3,)},
            {"w": W, "b": normal(3)},
        ),
        ["Gemm"],
    ),
    "MatMul alone": (
        lambda: graph([("MatMul", ["x", "w"], "y", {})], {"x": (6,)}, {"y": (3,)}, {"w": W}),
        ["Gemm"],
    ),
    "MatMul read twice": (
        lambda: graph(
            [
                ("MatMul", ["x", "w"], "m", {}),
                ("Add", ["m", "b"], "a", {}),
                ("Sub", ["a", "m"], "s", {}),
                ("Mul", ["s", "a"], "y", {}),
            ],
            {"x": (6,)},
            {"y": (3,)},
            {"w": W, "b": normal(3)},
        ),
        ["Gemm", "Add", "Sub", "Mul"],
    ),
    "Gemm without transB": (
        lambda: graph(
            [("Gemm", ["x", "w", "b"], "y", {})], {"x": (6,)}, {"y": (3,)}, {"w": W, "b": normal(3)}
        ),
        ["Gemm"],
    ),
    "one weight, straight and transposed": (
        lambda: graph(
            [("Gemm", ["x", "w"], "h", {}), ("Gemm", ["h", "w"], "y", {"transB": 1})],
            {"x": (6,)},
            {"y": (6,)},
            {"w": W},
        ),
        ["Gemm", "Gemm"],
    ),
    "Gemm with a bias of shape (1, O)": (
        lambda: graph(
            [("Gemm", ["x", "w", "b"], "y", {})], {"x": (6,)}, {"y": (3,)}, {"w": W, "b": normal(1, 3)}
        ),
        ["Gemm"],
    ),
    "Gemm with one number for a bias": (
        lambda: graph(
            [("Gemm", ["x", "w", "b"], "y", {})], {"x": (6,)}, {"y": (3,)}, {"w": W, "b": normal(1)}
        ),
        ["Gemm"],
    ),
    "Gemm with alpha": (
        lambda: graph([("Gemm", ["x", "w"], "y", {"alpha": 0.5})], {"x": (6,)}, {"y": (3,)}, {"w": W}),
        ["Gemm"],
    ),
    "mean over height and width": (
        lambda: graph(
            [("ReduceMean", ["x", "axes"], "y", {"keepdims": 0})],
            {"x": (3, 4, 5)},
            {"y": (3,)},
            {"axes": np.array([-1, 2])},
        ),
        ["GlobalAveragePool", "Flatten"],
    ),
    "mean that keeps the axes": (
        lambda: graph(
            [("ReduceMean", ["x", "axes"], "y", {"keepdims": 1})],
            {"x": (3, 4, 5)},
            {"y": (3, 1, 1)},
            {"axes": np.array([2, 3])},
        ),
        ["GlobalAveragePool"],
    ),
    "mean over channels": (
        lambda: graph(
            [("ReduceMean", ["x", "axes"], "y", {"keepdims": 0})],
            {"x": (3, 4, 5)},
            {"y": (4, 5)},
            {"axes": np.array([1])},
        ),
        ["Transpose", "Reshape", "GlobalAveragePool", "Reshape"],
    ),
    "mean over all": (
        lambda: graph([("ReduceMean", ["x"], "y", {"keepdims": 1})], {"x": (3,)}, {"y": (1,)}, batch=1),
        ["ReduceMean"],
    ),
    "Reshape to features": (
        lambda: graph(
            [("Reshape", ["x", "s"], "y", {})], {"x": (3, 4)}, {"y": (12,)}, {"s": np.array([-1, 12])}
        ),
        ["Flatten"],
    ),
    "Reshape that moves the batch": (
        lambda: graph(
            [("Reshape", ["x", "s"], "y", {})], {"x": (3, 4)}, {"y": (6,)}, {"s": np.array([-1, 6])}, batch=2
        ),
        ["Reshape"],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_normal_form_is_the_same_function(name: str) -> None:
    make, kinds = FORMS[name]
    model = make()
    before = model.SerializeToString()
    made = normalize(model)
    assert model.SerializeToString() == before
    assert [n.op_type for n in made.graph.node] == kinds
    assert all(n.name for n in made.graph.node)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 5
    feed = {
        i.name: normal(batch, *(d.dim_value for d in i.type.tensor_type.shape.dim[1:]))
        for i in model.graph.input
    }
    got = onnx_function(made)(feed)
    if name == "Reshape that moves the batch":
        onnx.checker.check_model(made)
        return
    for output, want in onnx_function(model)(feed).items():
        np.testing.assert_allclose(got[output], want, rtol=1e-5, atol=1e-5)


def test_the_form_of_the_gemms_is_one(subtests: pytest.Subtests) -> None:
    for name, (make, kinds) in FORMS.items():
        if "Gemm" not in kinds or name == "Gemm with alpha":
            continue
        with subtests.test(name):
            made = normalize(make())
            constants = initializers(made)
            for node in made.graph.node:
                if node.op_type == "Gemm":
                    assert {a.name: a.i for a in node.attribute} == {"transB": 1}
                    outputs = len(constants[node.input[1]])
                    assert all(constants[n].shape == (outputs,) for n in node.input[2:])


def test_old_opsets_are_brought_up_with_constants_that_are_listed_as_inputs() -> None:
    model = graph(
        [("Conv", ["x", "w"], "c", {}), ("Clip", ["c"], "y", {"min": 0.0, "max": 6.0})],
        {"x": (2, 5, 5)},
        {"y": (3, 3, 3)},
        {"w": normal(3, 2, 3, 3)},
        opset=9,
    )
    model.ir_version = 3
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 2, 3, 3]))
    made = normalize(model)
    assert [i.name for i in made.graph.input] == ["x"]
    assert made.opset_import[0].version >= 13
    x = normal(4, 2, 5, 5)
    np.testing.assert_allclose(
        onnx_function(made)({"x": x})["y"], onnx_function(model)({"x": x})["y"], rtol=1e-5, atol=1e-6
    )


def test_any_value_of_a_graph_can_be_watched() -> None:
    values = onnx_function(mlp(), ["r", "h", "y"])({"x": normal(3, 8)})
    assert list(values) == ["r", "h", "y"]
    np.testing.assert_array_equal(values["r"], np.maximum(values["h"], 0))
    with pytest.raises(ExportError, match="ONNX Runtime cannot load this graph"):
        onnx_function(mlp(), ["no such value"])


def test_an_example_is_traced_the_same_whatever_its_strides() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = normal(2, 5, 5, 1).transpose(0, 3, 1, 2)
    graph = float_graph(model, [images])
    assert [n.op_type for n in graph.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
