"""`edgewright compress` from a model to what ships: any model, any data, cut off and gone on, locked."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewright.data import load_data
from edgewright.errors import DataError
from edgewright.layers import load_program
from edgewright.progress import Progress
from edgewright_device import Artifact
from sdk.graphs import corners_and_more, mlp, saved
from sdk.test_cli import Call, call  # noqa: F401 - a fixture

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "compress.md"
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, left, right):
        return self.head(self.drop(self.first(torch.cat([left, right], 1)).relu()))
"""
DATA = """
import numpy as np
import edgewright as ew


def read():
    labels = np.arange(120) % 3
    x = (np.random.default_rng(0).normal(size=(120, 6)) + 2 * np.eye(3, 6)[labels]).astype(np.float32)
    parts = {"right": x[:, 2:], "left": x[:, :2]}
    return ew.Data.from_arrays(parts, labels, batch_size=8)


def once():
    return iter([]), []


def nothing():
    return 3
"""
RECIPE = """
name = "net"
seed = 1

[finetune]
epochs = 3
learning_rate = 0.02

[quantize]
calibration = "minmax"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "mine.py").write_text(DATA)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def _line(folder: Path, out: str, *more: str, model: str = "net.py:Net") -> str:
    return (
        f"edgewright compress {folder}/{model} --data {folder}/mine.py:read --recipe {folder}/recipe.toml "
        f"--out {folder}/{out} --target x86-64 --json - {' '.join(more)}"
    )


def test_a_whole_recipe_twice_gives_the_same_artifact(call: Call, folder: Path) -> None:  # noqa: F811
    first = call(_line(folder, "a.ew"))
    assert first.code == 0, first.err
    told = json.loads(first.out)
    artifact = Artifact.open(folder / "a.ew")
    lock = json.loads((folder / "a.lock").read_text())
    assert told["result"] == lock["result"]
    assert lock["result"]["artifact"] == artifact.digest
    assert [port.name for port in artifact.inputs] == ["left", "right"]
    kept = told["artifact"]["fidelity"]
    assert kept["count"] == 24
    assert kept["interval"][0] <= kept["difference"] <= kept["interval"][1]
    assert kept["sqnr_db"] > 10
    assert re.search(r"artifact, against its float model: accuracy .* SQNR [\d.]+ dB, 24 samples", first.err)
    assert not list(folder.glob("*.checkpoint"))
    second = call(_line(folder, "b/a.ew", f"--locked {folder}/a.lock"))
    assert second.code == 0, second.err
    assert Artifact.open(folder / "b" / "a.ew").digest == artifact.digest
    other = call(_line(folder, "c.ew", f"--locked {folder}/a.lock --target x86-avx2"))
    assert other.code == 2
    assert "name was 'a' and is 'c'; target was 'x86-64' and is 'x86-avx2'" in other.err


def test_what_differs_from_a_lock_is_refused_before_any_work(call: Call, folder: Path) -> None:  # noqa: F811
    assert call(_line(folder, "a.pt2")).code == 0
    (folder / "recipe.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 2"))
    (folder / "net.py").write_text(NET.replace("manual_seed(0)", "manual_seed(1)"))
    refused = call(_line(folder, "b.pt2", f"--locked {folder}/a.lock"))
    assert refused.code == 2
    why = "the model is another; finetune.epochs was 3 and is 2"
    assert f"a.lock: does not fit what is given: {why}" in refused.err
    assert not list(folder.glob("b.*"))


def test_a_result_other_than_the_locks_is_told(call: Call, folder: Path) -> None:  # noqa: F811
    assert call(_line(folder, "a.pt2")).code == 0
    lock = json.loads((folder / "a.lock").read_text())
    lock["result"]["model"] = "0" * 64
    (folder / "a.lock").write_text(json.dumps(lock))
    done = call(_line(folder, "b.pt2", f"--locked {folder}/a.lock"))
    assert done.code == 1
    assert "did not hold: the same arguments gave another model than" in done.err


def test_a_damaged_lock_is_named(call: Call, folder: Path) -> None:  # noqa: F811
    for text in ("", "{}", '{"format": 1}', '{"format": 9}', "[]"):
        (folder / "a.lock").write_text(text)
        done = call(_line(folder, "b.pt2", f"--locked {folder}/a.lock"))
        assert done.code == 2
        assert f"{folder}/a.lock: cannot read this lock" in done.err


def test_a_killed_command_goes_on_when_it_runs_again(call: Call, folder: Path) -> None:  # noqa: F811
    whole = call(_line(folder, "whole.pt2"))
    assert whole.code == 0
    program = f"""
import os, sys
import torch
torch.set_num_threads(1)
from edgewright import cli, console
class Killed(console.Remaining):
    def __call__(self, report):
        super().__call__(report)
        if report.step == "finetune" and report.done > report.total // 2:
            os.kill(os.getpid(), {int(signal.SIGKILL)})
console.Remaining = Killed
sys.argv = {_line(folder, "again.pt2").split()!r}
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert (folder / "again.checkpoint" / "finetune.position.safetensors").is_file()
    again = call(_line(folder, "again.pt2"))
    assert again.code == 0, again.err
    assert json.loads(again.out)["result"] == json.loads(whole.out)["result"]
    assert not (folder / "again.checkpoint").exists()


def test_training_outlives_an_export_that_fails(
    call: Call,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("edgewright.export", full)
        failed = call(_line(folder, "a.ew"))
        assert f"the same command goes on from {folder}/a.checkpoint" in failed.err
        assert "No space left" in failed.err
    steps: list[Progress] = []
    monkeypatch.setattr("edgewright.compress_command.noting", lambda *_: steps.append)
    assert call(_line(folder, "a.ew")).code == 0
    assert [each.begun for each in steps if each.step == "finetune"] == [1]


def test_a_named_checkpoint_stays(call: Call, folder: Path) -> None:  # noqa: F811
    assert call(_line(folder, "a.pt2", f"--checkpoint {folder}/kept")).code == 0
    assert (folder / "kept" / "finetune.safetensors").is_file()
    done = call(_line(folder, "b.pt2", f"--checkpoint {folder}/kept"))
    assert "finetune: was done before" in json.loads(done.out)["notes"]


def test_a_program_is_compressed_as_code_is(call: Call, folder: Path) -> None:  # noqa: F811
    assert call(_line(folder, "a.pt2")).code == 0
    again = call(_line(folder, "b.pt2", model="a.pt2"))
    assert again.code == 0, again.err
    names = [name for name, _ in load_program(folder / "b.pt2").named_parameters()]
    assert names == ["first.weight", "first.bias", "head.weight", "head.bias"]


def test_an_onnx_file_becomes_an_artifact(call: Call, folder: Path) -> None:  # noqa: F811
    saved(mlp(), folder / "m.onnx")
    x = corners_and_more(8)
    np.savez(folder / "x.npz", x=x, y=np.arange(len(x)) % 4)
    line = _line(folder, "m.ew", model="m.onnx").replace("mine.py:read", "x.npz")
    refused = call(line)
    assert (refused.code, "m.onnx: an .onnx file cannot be trained" in refused.err) == (2, True)
    (folder / "recipe.toml").write_text('name = "m"\n[quantize]\ncalibration = "mse"\n')
    assert "m.pt2: of an .onnx file an artifact is made" in call(line.replace("m.ew", "m.pt2")).err
    done = call(line)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["before"]["parameters"] is None
    assert told["artifact"]["fidelity"]["sqnr_db"] > 20
    lock = json.loads((folder / "m.lock").read_text())
    assert Artifact.open(folder / "m.ew").digest == lock["result"]["artifact"]


def test_what_is_in_the_way_of_the_artifact_is_found_before_any_work(
    call: Call,  # noqa: F811
    folder: Path,
) -> None:
    (folder / "a.ew").mkdir()
    (folder / "a.ew" / "thesis.tex").write_text("mine")
    refused = call(_line(folder, "a.ew"))
    assert (refused.code, "exists and is not an artifact" in refused.err) == (2, True)
    assert not list(folder.glob("*.checkpoint"))


# Data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("once", "gave an iterator, which can be gone through once"),
        ("nothing", "gave a int, not an edgewright.Data or a pair"),
    ],
)
def test_code_that_gives_no_data_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.py:{name}: calling '{name}' {message}"):
        load_data(f"{folder}/mine.py:{name}")


def test_the_guides_loader_runs_as_written(
    call: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = re.search(r"^```python\n(# loader\.py\n.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    (tmp_path / "loader.py").write_text(found[1])
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    (tmp_path / "recipe.toml").write_text('name = "loader"\n[finetune]\nepochs = 4\nlearning_rate = 0.02\n')
    monkeypatch.chdir(tmp_path)
    done = call(
        "edgewright compress net.py:make --data loader.py:read --recipe recipe.toml --out a.pt2 --json -"
    )
    assert done.code == 0, done.err
    told: dict[str, Any] = json.loads(done.out)
    assert told["after"]["accuracy"] > 0.85
