from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright_device import Port, encode_golden, write_artifact
from edgewright_studio.document import Document, digits_example, identify, open_document
from edgewright_studio.errors import DocumentError


def write_onnx(path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Relu", ["r"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("w0", TensorProto.FLOAT, [4, 3], weight.raw_data, raw=True)],
    )
    onnx.save(helper.make_model(graph, producer_name="test"), str(path))
    return path


def make_artifact(path: Path) -> Path:
    port = Port(
        name="x", shape=(None, 4), dtype="float32", scale=0.5, zero_point=3, minimum=-1.0, maximum=1.0
    )
    one = {"x": np.zeros((1, 4), np.float32)}
    files = {
        "weights.safetensors": b"w" * 2048,
        "model.onnx": b"m" * 10,
        "golden.npz": encode_golden(one, one),
    }
    write_artifact(
        path, name="tiny", producer="test 1", targets=("rpi5",), inputs=(port,), outputs=(port,), files=files
    )
    return path


def test_an_onnx_model_gives_operators_parameters_and_ports(tmp_path: Path) -> None:
    document = open_document(write_onnx(tmp_path / "net.onnx"))
    assert (document.kind, document.name, document.parameters) == ("onnx", "net", 12)
    assert [(o.name, o.count) for o in document.operators] == [("Relu", 2), ("MatMul", 1)]
    assert [(t.name, t.shape, t.dtype) for t in document.inputs] == [("x", ("N", 4), "float32")]
    assert [(t.name, t.shape) for t in document.outputs] == [("y", ("N", 3))]


def test_an_artifact_gives_its_files_largest_first(tmp_path: Path) -> None:
    document = open_document(make_artifact(tmp_path / "tiny.ew"))
    assert (document.kind, document.name, document.targets) == ("artifact", "tiny", ("rpi5",))
    assert (document.files[0].name, document.files[0].count) == ("weights.safetensors", 2048)
    assert document.inputs[0].shape == ("batch", 4)
    assert ("Verified", "not yet: it has no report") in document.facts


def test_a_damaged_artifact_is_refused_with_the_file_that_is_damaged(tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "tiny.ew")
    (path / "weights.safetensors").write_bytes(b"x" * 2048)
    with pytest.raises(DocumentError, match=r"weights\.safetensors"):
        open_document(path)


def test_an_exported_program_gives_operators_and_parameters(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(2, 4),)), path)
    document = open_document(path)
    assert (document.kind, document.parameters) == ("pt2", 15)
    assert {o.name for o in document.operators} == {"aten.linear", "aten.relu"}
    assert [t.shape for t in document.inputs] == [(2, 4)]
    assert [t.shape for t in document.outputs] == [(2, 3)]


def test_a_python_file_is_read_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "raise SystemExit('ran')\n"
        "def build(): ...\n"
        "def needs(x): ...\n"
        "def _private(): ...\n"
        "class Net(nn.Module):\n    def __init__(self): ...\n"
        "class Sized(nn.Module):\n    def __init__(self, width): ...\n"
        "class Other: ...\n"
    )
    assert open_document(path).entry_points == ("build", "Net")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("net.onnx", b"not a model", "Error parsing message"),
        ("net.onnx", b"", "it holds no graph"),
        ("net.pt2", b"not a zip", "not a PyTorch archive"),
        ("net.py", b"def f(:\n", "line 1"),
        ("net.txt", b"", "no kind of model"),
        ("net.ew", b"", "no kind of model"),
    ],
)
def test_what_cannot_be_opened_says_why_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        open_document(path)
    assert name in caught.value.problem.what
    assert why in caught.value.problem.why
    assert caught.value.problem.next_step


def test_a_missing_file_and_a_plain_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        identify(tmp_path / "absent.onnx")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DocumentError, match=r"without manifest\.json"):
        identify(tmp_path / "folder")


def test_a_summary_survives_the_way_through_json(tmp_path: Path) -> None:
    import json

    for document in (open_document(make_artifact(tmp_path / "tiny.ew")), digits_example()):
        assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def test_the_model_side_needs_neither_qt_nor_anything_heavy() -> None:
    modules = "document, jobs, recipe_fields, results, tasks, worker"
    program = (
        f"from edgewright_studio import {modules}\n"
        "import sys; print([m for m in ('PySide6', 'numpy', 'torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
