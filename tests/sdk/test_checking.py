"""Wrong use is told apart, and before any work: each message says what, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright.checking import check_data, dead_layers
from edgewright.compression import compress
from edgewright.data import Data
from edgewright.errors import CompressError, DataError, ExportError
from edgewright.progress import Progress
from edgewright.recipe import Distill, Finetune, Prune, Quantize, Recipe
from sdk.foreign import quantize_static
from sdk.graphs import corners_and_more, mlp, saved

TUNE = Recipe(name="tune", finetune=Finetune(epochs=1))
X = corners_and_more(8)
ONLY_QUANTIZE = Recipe(name="integers", quantize=Quantize(calibration="mse"))


class Net(nn.Module):
    """Takes float32 (N, 8), gives logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.act(self.first(x)))
        return out


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def data(x: Any = X, labels: Any = None) -> Data:
    labels = np.arange(len(x)) % 4 if labels is None else labels
    return Data.from_arrays(x, labels, x, labels, batch_size=8)


def test_a_layer_of_zeros_is_named(net: Net) -> None:
    with torch.no_grad():
        net.head.weight.zero_()
    assert dead_layers(net, data().validation) == ("layer 'head' is dead: all of its weights are zero",)


def test_a_layer_that_gives_only_zeros_is_named_and_a_living_net_is_not(net: Net) -> None:
    assert dead_layers(net, data().validation) == ()
    with torch.no_grad():
        net.first.bias.fill_(-1000)
    assert dead_layers(net, data().validation) == (
        "layer 'act' is dead: it gives only zeros for the validation data",
    )
    assert net.training


def test_compress_notes_a_dead_layer_and_goes_on(net: Net) -> None:
    with torch.no_grad():
        net.first.bias.fill_(-1000)
    reports: list[Progress] = []
    compress(net, TUNE, data=data(), progress=reports.append)
    assert [each.note for each in reports if each.note] == [
        "layer 'act' is dead: it gives only zeros for the validation data"
    ]


def test_a_label_anywhere_that_is_no_class_is_refused_before_any_work(net: Net) -> None:
    labels = np.arange(len(X)) % 4
    labels[-1] = 4
    reports: list[Progress] = []
    with pytest.raises(DataError, match=r"labels go from 0 to 4, .* has 4 classes, 0 to 3"):
        compress(net, TUNE, data=data(labels=labels), progress=reports.append)
    assert not reports


def test_inputs_of_another_shape_are_refused_with_their_shape(net: Net) -> None:
    with pytest.raises(DataError, match=r"cannot take the training inputs, of shape \(8, 7\)"):
        compress(net, TUNE, data=data(X[:, :7]))


def test_an_input_of_another_name_is_refused(net: Net) -> None:
    with pytest.raises(DataError, match=r"cannot take the training inputs.*'z'"):
        compress(net, TUNE, data=data({"z": X}, np.arange(len(X)) % 4))


class Dividing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


def test_a_model_whose_output_is_no_number_is_refused() -> None:
    with pytest.raises(CompressError, match="output holds NaN or infinity for the validation data, though"):
        check_data(Dividing(), data().validation, "validation")


# ONNX files


def test_a_float_onnx_file_goes_through_the_post_training_part(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path / "m.onnx")
    assert compress(str(path), ONLY_QUANTIZE, data=data()) == path


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (TUNE, r"\[finetune\]"),
        (Recipe(name="all", distill=Distill(), prune=Prune()), r"\[distill\], \[prune\]"),
    ],
)
def test_what_trains_is_refused_for_an_onnx_file(tmp_path: Path, recipe: Recipe, named: str) -> None:
    path = saved(mlp(), tmp_path / "m.onnx")
    with pytest.raises(CompressError, match=rf"m\.onnx: an \.onnx file cannot be trained.* {named} would"):
        compress(path, recipe, data=data())


def test_an_onnx_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx"):
        compress(tmp_path / "none.onnx", ONLY_QUANTIZE, data=data())
    path = saved(mlp(), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"cannot take the validation inputs, of shape \(8, 7\)"):
        compress(path, ONLY_QUANTIZE, data=data(X[:, :7]))
    with pytest.raises(DataError, match="labels go from"):
        compress(path, ONLY_QUANTIZE, data=data(labels=np.arange(len(X))))
    integers = quantize_static(path, tmp_path / "q.onnx", X, "U8S8")
    with pytest.raises(CompressError, match=r"q\.onnx: is quantized already; `export` takes it"):
        compress(integers, ONLY_QUANTIZE, data=data())
