"""Models in code and on disk: what a command names is loaded, or the message says what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from edgewright.errors import CompressError, ExportError
from edgewright.graph import float_function
from edgewright.models import load_model, save_model
from sdk.graphs import normal

NET = """
import json
import sys
from dataclasses import dataclass

from torch import nn


@dataclass
class Width:
    hidden: int = 4


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, Width().hidden), nn.Dropout(0.5), nn.Linear(4, 2))


def failing():
    raise RuntimeError("first line\\nsecond line")


def silent():
    raise KeyError


def leaving():
    sys.exit(0)


NUMBER = 3
"""


@pytest.fixture(autouse=True)
def forget_the_code() -> Iterator[None]:
    yield
    for name in ("some_net", "broken_net", "leaving_package"):
        sys.modules.pop(name, None)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "some_net.py"
    path.write_text(NET)
    return path


# Code


def test_a_class_in_a_file_gives_its_module_in_eval_mode(code: Path) -> None:
    model = load_model(f"{code}:Net")
    assert type(model).__name__ == "Net"
    assert not model.training


def test_initial_weights_are_those_of_the_seed_and_the_global_state_stays(code: Path) -> None:
    before = torch.get_rng_state()
    torch.randn(3)
    moved = torch.get_rng_state()
    first, again, other = (
        load_model(f"{code}:Net", seed=seed).get_parameter("0.weight") for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(before)


def test_a_program_gives_its_layers(tmp_path: Path) -> None:
    save_model(nn.Linear(3, 2), (normal(2, 3),), tmp_path / "m.pt2")
    assert isinstance(load_model(str(tmp_path / "m.pt2")).get_submodule("layer"), nn.Linear)


def test_a_class_in_a_package_gives_its_module() -> None:
    assert type(load_model("edgewright.digits:Student")).__name__ == "Student"


def test_weights_are_those_of_the_file(code: Path, tmp_path: Path) -> None:
    source, other = load_model(f"{code}:Net", seed=1), load_model(f"{code}:Net")
    weights = tmp_path / "net.safetensors"
    safetensors.torch.save_model(source, str(weights))
    loaded = load_model(f"{code}:Net", weights)
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert not torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("source", ["model.onnx", "net.py", ":Net", "net.py:", ""])
def test_what_names_no_code_is_told_the_form(source: str) -> None:
    with pytest.raises(
        CompressError, match=r"not a model in code; write FILE\.py:NAME or package\.module:NAME"
    ):
        load_model(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nat", "has no 'Nat'"),
        ("NUMBER", "calling 'NUMBER' failed (TypeError"),
        ("failing", "calling 'failing' failed (RuntimeError: first line)"),
        ("silent", "calling 'silent' failed (KeyError)"),
        ("leaving", "calling 'leaving' failed (SystemExit: 0)"),
        ("Width", "calling 'Width' gave a Width, not an nn.Module"),
    ],
)
def test_a_name_that_gives_no_module_is_named_with_its_file(code: Path, name: str, message: str) -> None:
    with pytest.raises(CompressError) as caught:
        load_model(f"{code}:{name}")
    assert str(caught.value).startswith(f"{code}:{name}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit('usage: train.py DATA')", "SystemExit: usage: train.py DATA"),
    ],
)
def test_a_file_that_cannot_be_run_is_named_and_forgotten(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken_net.py"
    path.write_text(text)
    with pytest.raises(CompressError, match=rf"broken_net\.py: cannot be run \({message}"):
        load_model(f"{path}:Net")
    assert "broken_net" not in sys.modules


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"none\.py: there is no such file"):
        load_model(f"{tmp_path / 'none.py'}:Net")


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_package.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    for place, message in (("no_such_package.net", "ModuleNotFoundError"), ("leaving_package", "SystemExit")):
        with pytest.raises(CompressError, match=rf"{place}: cannot be imported \({message}"):
            load_model(f"{place}:Net")


def test_a_package_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_mine.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Linear(2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert load_model("package_of_mine:make").out_features == 3


def test_a_file_named_like_a_module_in_use_does_not_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(NET.replace("import json\n", ""))
    before = sys.modules["json"]
    assert type(load_model(f"{tmp_path / 'json.py'}:Net")).__name__ == "Net"
    assert sys.modules["json"] is before


def test_weights_that_do_not_fit_are_named(code: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    with pytest.raises(CompressError, match=r"w\.safetensors: there is no such file"):
        load_model(f"{code}:Net", weights)
    for content in (b"", b"not safetensors", safetensors.torch.save({"0.weight": torch.zeros(4, 3)})):
        weights.write_bytes(content)
        with pytest.raises(CompressError, match=r"w\.safetensors: does not fit the model"):
            load_model(f"{code}:Net", weights)


# Programs


class Sum(nn.Module):
    """Two inputs; outputs differ in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.drop(a) + b
        return out


@pytest.mark.parametrize("batch", [1, 5])
def test_a_program_is_the_module_in_eval_mode_at_any_batch_size(tmp_path: Path, batch: int) -> None:
    model = Sum().train()
    path = tmp_path / "some" / "where" / "sum.pt2"
    save_model(model, (normal(batch, 3), torch.zeros(batch, 3)), path)
    assert model.training
    a, b = normal(7, 3, seed=1), normal(7, 3, seed=2)
    np.testing.assert_array_equal(float_function(path)([a, b])[0], a + b)
    assert [p.name for p in path.parent.iterdir()] == ["sum.pt2"]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_leaves_the_disk_alone(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="torch cannot trace this model: "):
        save_model(Branching(), (normal(2, 3),), tmp_path / "new" / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(program: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    (tmp_path / "m.pt2").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        save_model(nn.Linear(3, 2), (normal(2, 3),), tmp_path / "m.pt2")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.pt2": b"old"}
