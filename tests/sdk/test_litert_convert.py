"""Float models for LiteRT, by its own converter: what is refused before, what the file computes after."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewright import cli
from edgewright.errors import ExportError, SideEnvironmentError
from edgewright.litert import convert
from edgewright.litert.convert import converter_environment, export_litert
from edgewright.models import save_model, trace
from edgewright.side_environment import default_folder
from sdk.graphs import mlp, saved


class Sentences(nn.Module):
    """Token numbers and a mask to two classes, by an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(500, 32), nn.Linear(32, 2)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keep = mask.unsqueeze(-1).float()
        x = self.encoder(self.words(ids)) * keep
        return self.out(x.sum(1) / keep.sum(1))  # type: ignore[no-any-return]


class Words(nn.Module):
    """The same without an encoder, which is sooner traced."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.words(ids) * mask.unsqueeze(-1).float()).sum(1)  # type: ignore[no-any-return]


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()  # type: ignore[no-any-return]


def tokens(count: int, length: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    mask = (np.arange(length) < random.integers(3, length + 1, (count, 1))).astype(np.int64)
    return random.integers(1, 500, (count, length)) * mask, mask


@pytest.fixture(autouse=True)
def no_converter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick tests must be done before the converter is needed."""

    def needed(*_: Any, **__: Any) -> Path:
        raise SideEnvironmentError("the converter was asked for")

    if "slow" not in request.keywords:
        monkeypatch.setattr(convert, "python_of", needed)


def test_an_onnx_file_is_sent_to_the_artifact(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"reads torch programs .* export with --litert"):
        export_litert(saved(mlp(), tmp_path / "m.onnx"), tmp_path / "m.tflite")


def test_a_module_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs example_inputs"):
        export_litert(nn.Linear(4, 2), tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, r"input 'ids' has a free size, .* \(lengths\)"),
        ({"lengths": (8,), "axes": {"id": 1}}, r"axes are for \['id'\]; the model takes \['ids', 'mask'\]"),
        ({"lengths": (0,)}, "must be numbers of 1 or more"),
        ({"batches": ()}, "must be numbers of 1 or more"),
    ],
)
def test_shapes_that_are_not_fixed_are_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    net = seeded(Words)
    source: Any = net
    if not how:
        source = tmp_path / "m.pt2"
        torch.export.save(trace(net, tokens(2, 8), [1, 1]), source)
    with pytest.raises(ExportError, match=message):
        export_litert(source, tmp_path / "m.tflite", example_inputs=tokens(2, 8), **how)
    assert not (tmp_path / "m.tflite").exists()


def test_a_fixed_batch_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.zeros(3, 4),)), path)
    with pytest.raises(ExportError, match="has the batch size 3, not 1, 8"):
        export_litert(path, tmp_path / "m.tflite", batches=(1, 8))
    with pytest.raises(ExportError, match="no free size beside the batch"):
        export_litert(path, tmp_path / "m.tflite", batches=(3,), lengths=(4,))


def test_two_free_sizes_are_one_too_many(tmp_path: Path) -> None:
    dim = torch.export.Dim
    path = tmp_path / "m.pt2"
    free = ({0: dim("n"), 2: dim("h", min=4), 3: dim("w", min=4)},)
    net = nn.Conv2d(1, 1, 3)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 9),), dynamic_shapes=free), path)
    with pytest.raises(ExportError, match="2 free sizes beside the batch"):
        export_litert(path, tmp_path / "m.tflite", lengths=(8,))


def test_every_version_of_the_converter_is_exact_and_torch_comes_first() -> None:
    environment = converter_environment()
    assert all(len(r.split("==")) == 2 for r in environment.requirements)
    assert environment.first == ("torch==2.13.0",)
    assert any(r.startswith("litert-torch==0.10.") for r in environment.requirements)


def test_the_command_says_what_the_converter_costs_before_it_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(seeded(lambda: nn.Linear(4, 2)), (torch.zeros(2, 4),), tmp_path / "m.pt2")
    line = f"edgewright export {tmp_path}/m.pt2 --format litert --environments {tmp_path}/envs"
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert "installed first: 2.1 GB of disk, and some 4 minutes, once" in said.out
    assert said.err == "error: the converter was asked for\n"


@pytest.mark.parametrize("main", [cli.main, cli.main_ds_export])
def test_both_commands_take_the_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: Any
) -> None:
    name = "ds_export" if main is cli.main_ds_export else "edgewright export"
    path = saved(mlp(), tmp_path / "m.onnx")
    monkeypatch.setattr("sys.argv", shlex.split(f"{name} {path} --format litert --batch 1,2"))
    with pytest.raises(SystemExit):
        main()
    assert "export with --litert" in capsys.readouterr().err


@pytest.mark.slow
def test_each_shape_computes_what_torch_does_on_one_copy_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Installs the converter, if it is not in the usual place: 2.1 GB and some minutes."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    net = seeded(Sentences)
    torch.export.save(trace(net, tokens(2, 8), [1, 1]), tmp_path / "words.pt2")
    out, result = tmp_path / "words.tflite", tmp_path / "result.json"
    line = (
        f"edgewright export {tmp_path}/words.pt2 --format litert --lengths 16,32 --batch 1,4 --json {result}"
    )
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "int64 in the model, int32 in the file: ids, mask" in capsys.readouterr().out
    found = json.loads(result.read_text())
    names = [f"batch_{b}_length_{n}" for b in (1, 4) for n in (16, 32)]
    assert [s["name"] for s in found["signatures"]] == names
    assert max(s["largest_error"] for s in found["signatures"]) < 1e-4
    loaded = interpreter.Interpreter(str(out))
    for batch in (1, 4):
        for length in (16, 32):
            ids, mask = tokens(batch, length)
            run = loaded.get_signature_runner(f"batch_{batch}_length_{length}")
            got = run(ids=ids.astype(np.int32), mask=mask.astype(np.int32))["y"]
            with torch.no_grad():
                want = net(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
            np.testing.assert_allclose(got, want, atol=1e-4)
    weights = sum(4 * p.numel() for p in net.parameters())
    assert out.stat().st_size < 2 * weights
    assert default_folder().is_dir()


@pytest.mark.slow
def test_a_module_of_images_keeps_its_layout(tmp_path: Path) -> None:
    """Installs the converter, if it is not in the usual place: 2.1 GB and some minutes."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = export_litert(net, tmp_path / "m.tflite", example_inputs=x)
    (signature,) = made.signatures
    assert (signature.name, signature.inputs) == ("serving_default", {"input": ("float32", (1, 3, 8, 8))})
    assert made.narrowed == ()
    got = interpreter.Interpreter(str(made.path)).get_signature_runner()(input=x[:1].numpy())["y"]
    with torch.no_grad():
        np.testing.assert_allclose(got, net(x[:1]).numpy(), atol=1e-5)
