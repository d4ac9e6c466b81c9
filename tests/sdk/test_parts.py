"""Parts: what the native engine lacks goes to ONNX Runtime, in few pieces, and all else stays exact."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from onnx import helper
from torch import Tensor, nn

from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.graph import float_function, onnx_function
from edgewright.parts import GraphPart, partition
from edgewright.profiling import profile
from edgewright.progress import Progress
from edgewright.statistics import sqnr_db
from edgewright.verification import verify
from edgewright.weights import byte_ranges
from edgewright_device import Artifact, Runner, RunnerError, Target, replay
from edgewright_kernels import Engine
from edgewright_kernels.plan import encode
from sdk.graphs import Node, graph, normal, quantize, rng, saved

TARGET = "x86-64"
AXIS = {"axis": np.int64(1)}


def dense(x: str, y: str, w: str = "w") -> Node:
    return ("Gemm", [x, w], y, {"transB": 1})


def sums(x: str, y: str) -> Node:
    """The operator that the engine lacks."""
    return ("CumSum", [x, "axis"], y, {})


def model(*nodes: Node, outputs: tuple[str, ...] = ("y",), **constants: Any) -> onnx.ModelProto:
    return graph(
        nodes,
        {"x": (6,)},
        dict.fromkeys(outputs, (6,)),
        {
            **({"axis": np.int64(1)} if any("axis" in n[1] for n in nodes) else {}),
            **{
                w: normal(6, 6, seed=i, scale=0.4)
                for i, w in enumerate("wvu")
                if any(w in n[1] for n in nodes)
            },
            **constants,
        },
    )


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "in the middle": (
        lambda: model(dense("x", "h"), sums("h", "s"), dense("s", "y", "v")),
        ["native", "other", "native"],
    ),
    "at the start": (lambda: model(sums("x", "s"), dense("s", "y")), ["other", "native"]),
    "at the end": (lambda: model(dense("x", "h"), sums("h", "y")), ["native", "other"]),
    "at both ends": (
        lambda: model(sums("x", "s"), dense("s", "h"), sums("h", "y")),
        ["other", "native", "other"],
    ),
    "two outputs": (
        lambda: model(
            dense("x", "h"),
            sums("h", "z"),
            dense("z", "y", "v"),
            dense("h", "q", "u"),
            outputs=("y", "z", "q"),
        ),
        ["native", "other", "native"],
    ),
    "a branch around it": (
        lambda: model(dense("x", "h"), sums("h", "s"), ("Add", ["h", "s"], "a", {}), dense("a", "y", "v")),
        ["native", "other", "native"],
    ),
    "twice, one beside the other": (
        lambda: model(
            dense("x", "h"),
            sums("h", "s"),
            ("Neg", ["h"], "n", {}),
            sums("n", "t"),
            ("Mul", ["s", "t"], "y", {}),
        ),
        ["native", "other", "native"],
    ),
    "twice in a row": (
        lambda: model(dense("x", "h"), sums("h", "s"), sums("s", "t"), dense("t", "y", "v")),
        ["native", "other", "native"],
    ),
    "twice with a layer between": (
        lambda: model(dense("x", "h"), sums("h", "s"), dense("s", "t", "v"), sums("t", "y")),
        ["native", "other", "native", "other"],
    ),
    "only a move between": (
        lambda: model(
            dense("x", "h"),
            sums("h", "s"),
            ("Reshape", ["s", "two"], "r", {}),
            sums("r", "t"),
            ("Reshape", ["t", "one"], "k", {}),
            dense("k", "y", "v"),
            two=np.array([-1, 2, 3]),
            one=np.array([-1, 6]),
        ),
        ["native", "other", "native"],
    ),
    "whole numbers and truths inside": (
        lambda: model(
            dense("x", "h"),
            ("Greater", ["h", "zero"], "g", {}),
            ("ArgMax", ["h"], "i", {"axis": 1}),
            ("GatherElements", ["h", "i"], "m", {"axis": 1}),
            ("Where", ["g", "h", "m"], "p", {}),
            dense("p", "y", "v"),
            zero=np.float32(0),
        ),
        ["native", "other", "native"],
    ),
    "a whole number that two parts need": (
        lambda: model(
            dense("x", "h"),
            ("ArgMax", ["h"], "i", {"axis": 1}),
            ("GatherElements", ["h", "i"], "m", {"axis": 1}),
            ("Mul", ["h", "m"], "p", {}),
            dense("p", "q", "v"),
            ("GatherElements", ["q", "i"], "n", {"axis": 1}),
            ("Mul", ["q", "n"], "r", {}),
            dense("r", "y", "u"),
        ),
        ["native", "other", "native", "other", "native"],
    ),
}


def parts_of(floating: onnx.ModelProto) -> tuple[tuple[GraphPart, ...], bytes, onnx.ModelProto]:
    made = quantize(floating, {"x": normal(200, 6)})
    weights = safetensors.numpy.save(dict(sorted(made.weights.items())))
    return partition(made.model, byte_ranges(weights), len(weights)), weights, made.model


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_cut_into_as_few_parts_as_can_be_and_computes_the_same(name: str) -> None:
    make, kinds = MODELS[name]
    parts, weights, whole = parts_of(make())
    assert ["other" if p.plan is None else "native" for p in parts] == kinds
    values: dict[str, Any] = {"x": normal(50, 6, seed=1)}
    for part in parts:
        assert part.inputs, part.outputs
        assert values.keys() >= set(part.inputs), "each value is given before it is read"
        assert values.keys().isdisjoint(part.outputs), "and given once"
        onnx.checker.check_model(part.model, full_check=True)
        assert {
            v.type.tensor_type.elem_type for v in (*part.model.graph.input, *part.model.graph.output)
        } == {onnx.TensorProto.FLOAT}
        feed = {n: values[n] for n in part.inputs}
        run = onnx_function(part.model) if part.plan is None else Engine(encode(part.plan), weights).run
        values |= {n: run(feed)[n] for n in part.outputs}
    want = onnx_function(whole)({"x": values["x"]})
    for output, expected in want.items():
        assert sqnr_db(expected, values[output]) > 25


def test_only_the_outputs_that_somebody_reads_are_given() -> None:
    parts, _, _ = parts_of(MODELS["two outputs"][0]())
    read = {n for p in parts for n in p.inputs} | {"y", "z", "q"}
    assert all(set(p.outputs) <= read for p in parts)


def test_each_fallback_says_why() -> None:
    parts, _, _ = parts_of(MODELS["only a move between"][0]())
    found = {f.node: (f.operator, f.lacking, f.reason) for p in parts for f in p.fallbacks}
    assert found == {
        "cumsum_s": ("CumSum", True, "the native engine has no such operator"),
        "cumsum_t": ("CumSum", True, "the native engine has no such operator"),
        "reshape_r": ("Reshape", False, "it computes in floating point, beside such operators"),
    }


def test_a_form_that_the_engine_lacks_says_which() -> None:
    made = model(
        ("Reshape", ["x", "s"], "r", {}),
        ("Conv", ["r", "k"], "c", {}),
        ("Reshape", ["c", "t"], "f", {}),
        dense("f", "y"),
        s=np.array([-1, 1, 1, 1, 1, 6]),
        k=normal(1, 1, 1, 1, 1, 1),
        t=np.array([-1, 6]),
    )
    parts, _, _ = parts_of(made)
    (reason,) = [f.reason for p in parts for f in p.fallbacks if f.operator == "Conv"]
    assert reason == "only one to three spatial axes are in the native engine"


# Artifacts


class Recurrent(nn.Module):
    """A convolution, an LSTM across the columns, a layer; the skip goes around the LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(1, 8, 3, padding=1), nn.LSTM(64, 16, batch_first=True)
        self.head, self.skip = nn.Linear(16, 5), nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x))
        columns = h.permute(0, 3, 1, 2).flatten(2)
        last = self.lstm(columns)[0][:, -1]
        out: Tensor = self.head(last) + self.skip(h.flatten(1))
        return out


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent().eval()


X = rng(3).random((64, 1, 8, 8), np.float32)


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Progress]]:
    seen: list[Progress] = []
    out = tmp_path_factory.mktemp("parts") / "net.ew"
    return export(network, target=TARGET, calibration=X, out=out, progress=seen.append), seen


def test_native_parts_keep_their_bits_and_the_whole_is_near_the_float_model(
    exported: tuple[Artifact, list[Progress]], network: nn.Module
) -> None:
    artifact, _ = exported
    assert [p.file for p in artifact.parts] == ["part-0.bin", "part-1.onnx", "part-2.bin"]
    native = Runner(artifact, threads=2).run({"x": X[:20]})["y"]
    assert native.tobytes() == Runner(artifact, "reference").run({"x": X[:20]})["y"].tobytes()
    assert sqnr_db(float_function(network)([X[:20]])[0], native) > 20
    assert sqnr_db(native, Runner(artifact, "onnxruntime").run({"x": X[:20]})["y"]) > 20
    alone = np.concatenate([Runner(artifact).run({"x": x[None]})["y"] for x in X[:3]])
    np.testing.assert_allclose(alone, native[:3], atol=1e-5)


def test_what_fell_back_is_told(exported: tuple[Artifact, list[Progress]]) -> None:
    artifact, seen = exported
    notes = [p.note for p in seen if p.step == "fallback"]
    assert any("LSTM" in n and n.endswith("the native engine has no such operator") for n in notes)
    (other,) = [p for p in artifact.parts if not p.native]
    assert "LSTM" in other.operators
    assert 1e-4 <= other.tolerance < 0.01


def test_weights_are_stored_once_for_all_parts(exported: tuple[Artifact, list[Progress]]) -> None:
    artifact, _ = exported
    file = artifact.path / "part-1.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    graph_alone = onnx.load(str(file), load_external_data=False).graph
    kept = [i for i in graph_alone.initializer if i.data_location != onnx.TensorProto.EXTERNAL]
    names = set(safetensors.numpy.load(artifact.read("weights.safetensors")))
    assert names.isdisjoint(i.name for i in kept)


def test_golden_vectors_hold_what_passes_between_parts_and_replay(
    exported: tuple[Artifact, list[Progress]],
) -> None:
    artifact, _ = exported
    values = artifact.golden_values()
    for part, given in Runner(artifact).run_parts(values):
        for name, value in given.items():
            if part.native:
                assert value.tobytes() == values[name].tobytes()
    assert replay(Runner(artifact)) == replay(Runner(artifact, "reference")) == ""


def test_verification_runs_the_parts_and_passes(
    exported: tuple[Artifact, list[Progress]], network: nn.Module
) -> None:
    report = verify(exported[0], reference=network, data=X, cases=200, max_flip_rate=0.5)
    assert report.passed, report.checks
    assert report.bit_mismatches == 0


def test_a_profile_times_parts_of_onnx_runtime_as_wholes(exported: tuple[Artifact, list[Progress]]) -> None:
    artifact, _ = exported
    times = profile(artifact, rounds=3)
    (other,) = [t for t in times if t.operator == "onnxruntime"]
    assert "LSTM" in other.shape
    assert other.microseconds > 0
    assert [t.operator for t in times].count("Quantize") >= 3
    assert sum(t.share for t in times) == pytest.approx(1)


def test_the_same_input_gives_the_same_artifact(tmp_path: Path) -> None:
    path = saved(MODELS["two outputs"][0](), tmp_path / "m.onnx")
    x, outs = normal(50, 6), [tmp_path / "a" / "m.ew", tmp_path / "b" / "m.ew"]
    one, two = (export(path, target=TARGET, calibration=x, out=out) for out in outs)
    assert one.digest == two.digest


def test_without_onnx_runtime_the_operators_that_need_it_are_named(
    exported: tuple[Artifact, list[Progress]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for backend in ("native", "reference"):
        with pytest.raises(RunnerError, match=r"needs ONNX Runtime for .*LSTM.*: pip install onnxruntime"):
            Runner(exported[0], backend)


# What is not cut


def test_a_target_without_onnx_runtime_refuses_the_operator(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(
        'name = "board"\ntitle = "B"\narch = "x86_64"\ninstruction_sets = []\nmemory_bytes = 10000000\n'
        'backends = ["native"]\nstrategy = "S"\nstatus = "documented"\n'
    )
    path = saved(MODELS["in the middle"][0](), tmp_path / "m.onnx")
    board = Target.load(tmp_path / "board.toml")
    with pytest.raises(ExportError, match=r"operator CumSum \(node 'cumsum_s'\)"):
        export(path, target=board, calibration=normal(50, 6), out=tmp_path / "m.ew")
    assert not (tmp_path / "m.ew").exists()


def test_a_graph_of_which_nothing_could_run_natively_is_refused(tmp_path: Path) -> None:
    nodes: list[Node] = [("Conv", ["x", "w"], "c", {}), ("CumSum", ["c", "axis"], "y", {})]
    made = graph(
        nodes, {"x": (1, 1, 1, 1, 6)}, {"y": (1, 1, 1, 1, 6)}, {"w": normal(1, 1, 1, 1, 1, 1), **AXIS}
    )
    with pytest.raises(
        ExportError, match=r"nothing is left that could run natively: use backend='onnxruntime'"
    ):
        export(
            saved(made, tmp_path / "m.onnx"),
            target=TARGET,
            calibration=normal(9, 1, 1, 1, 1, 6),
            out=tmp_path / "m",
        )


def test_token_numbers_go_to_onnx_runtime_where_it_needs_them(tmp_path: Path) -> None:
    """Places counted over a mask, as RoBERTa has them: int64 all the way to a table."""
    tensor, whole = helper.make_tensor_value_info, onnx.TensorProto.INT64
    nodes = [
        helper.make_node("CumSum", ["mask", "axis"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["p"]),
        helper.make_node("Gather", ["words", "ids"], ["e"]),
        helper.make_node("Add", ["p", "e"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    constants = {"table": normal(9, 4), "words": normal(20, 4, seed=1), "w": normal(4, 3, seed=2), **AXIS}
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "roberta",
            [tensor("ids", whole, ["N", 5]), tensor("mask", whole, ["N", 5])],
            [tensor("y", onnx.TensorProto.FLOAT, ["N", 5, 3])],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    path = saved(made, tmp_path / "m.onnx")
    x = {"ids": rng(1).integers(0, 20, (80, 5)), "mask": rng(2).integers(0, 2, (80, 5))}
    artifact = export(path, target=TARGET, calibration=x, out=tmp_path / "m.ew")
    assert [p.native for p in artifact.parts] == [False, True]
    got = Runner(artifact).run(x)["y"]
    assert got.tobytes() == Runner(artifact, "reference").run(x)["y"].tobytes()
    assert sqnr_db(float_function(path)([x["ids"], x["mask"]])[0], got) > 25


def test_parts_differ_where_onnx_runtime_would_not_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewright import golden

    monkeypatch.setattr(golden, "_optimized", lambda _: lambda feed: {"s": feed["h_dequantized"]})
    path = saved(MODELS["in the middle"][0](), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"results for CumSum differ by .* no device could check them"):
        export(path, target=TARGET, calibration=normal(50, 6), out=tmp_path / "m.ew")


def test_onnx_runtime_is_asked_for_exact_products() -> None:
    """The version here still knows the setting that the parts rely on."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
