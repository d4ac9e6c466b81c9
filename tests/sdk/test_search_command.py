"""`edgewright compress --budget` as a person meets it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewright import cli

pytest.importorskip("optuna")

NET = """
import torch
from torch import nn


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
"""
Call = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs `edgewright` in this process, in a folder of its own: exit code, output, error output."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["edgewright", *shlex.split(line)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    centres = np.array([(0.0, 3.0), (3.0, -2.0), (-3.0, -2.0)])
    labels = np.arange(700) % 3
    points = centres[labels] + np.random.default_rng(0).normal(size=(700, 2))
    np.savez(
        tmp_path / "data.npz",
        x_train=points[:200],
        y_train=labels[:200],
        x_validation=points[200:],
        y_validation=labels[200:],
    )
    np.savez(tmp_path / "other.npz", x=points[:250], y=labels[:250])
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "learn.toml").write_text(
        'name = "m"\n[finetune]\nepochs = 8\nlearning_rate = 0.05\n[search.quantize]\n'
        'calibration = ["minmax", "mse"]\n'
    )
    return run


def test_the_winner_is_written_with_its_recipe(call: Call, tmp_path: Path) -> None:
    command = (
        "compress net.py:make --data data.npz --recipe learn.toml --out small.ew --budget size=150% "
        "--min-accuracy -5 --trials 2 --json told.json"
    )
    code, out, err = call(command)
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "told.json").read_text())
    found = told["search"]
    assert found["outcome"] == "held"
    assert found["confirmed"]["count"] == 250
    assert (told["model"], told["recipe"]) == ("small.ew", "small.toml")
    assert (tmp_path / "small.toml").read_text() == found["trials"][found["winner"]]["recipe"]
    assert "finetune: was done before" in told["notes"]
    weights = f"small.search/trials/{found['winner']:03d}/model.ew/weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (tmp_path / "small.ew/weights.safetensors").read_bytes()
    assert "Pareto front" in out
    assert "confirmed on samples that no trial was chosen by" in out
    assert (tmp_path / "small.search" / "pareto.png").is_file()
    code, out, err = call(command)
    assert (code, err) == (0, "")
    assert "going on with the search in small.search" in out
    again = (
        "compress net.py:make --data data.npz --recipe small.toml --out again/small.ew --locked small.lock"
    )
    assert call(again)[0] == 0
    code, out, err = call(f"{command} --confirm other.npz")
    assert code == 2
    assert "small.search: holds another search: the validation data are others" in err


def test_what_cannot_be_met_ends_with_1_and_the_best_that_could(call: Call, tmp_path: Path) -> None:
    code, out, _ = call(
        "compress net.py:make --data data.npz --recipe learn.toml --out small.pt2 --budget size=100B "
        "--min-accuracy -5 --trials 1 --search elsewhere --json told.json"
    )
    assert code == 1
    assert "no trial holds; the best that could: trial 0 (not trained) with" in out
    assert not (tmp_path / "small.pt2").exists()
    assert json.loads((tmp_path / "told.json").read_text())["search"]["outcome"] == "not met"
    assert (tmp_path / "elsewhere" / "trials" / "000" / "recipe.toml").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--budget size=50% --min-accuracy -0.5", "too small to tell a loss of 0.5 points"),
        ("--budget size=50% --min-accuracy -3 --confirm absent.npz", "must be an .npz with x and y"),
        ("--budget size=50%s", "is no unit of size"),
        ("--budget size=50% --min-accuracy 98", "give points below 0, such as -0.5"),
        ("--trials 3 --recipe learn.toml", "is for a search; give a --budget too"),
        ("", "may do without"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(call: Call, tmp_path: Path, options: str, message: str) -> None:
    code, out, err = call(f"compress net.py:make --data data.npz --out small.pt2 {options}")
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "small.search").exists()
