"""Jobs that really train, export, verify and measure."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtWidgets import QLineEdit
from pytestqt.qtbot import QtBot

from edgewright_studio.compress_page import Functions
from edgewright_studio.window import MainWindow
from studio.conftest import MakeWindow

REAL = Functions()

MODEL = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
"""


def write_data(path: Path) -> Path:
    """Two classes that a tiny network can tell apart: dark and light."""
    random = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (y[:, None, None, None] * 0.5 + 0.4 * random.random((120, 1, 8, 8))).astype(np.float32)
    np.savez(path, x=x, y=y)
    return path


def finished(window: MainWindow, qtbot: QtBot, timeout_s: int) -> None:
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=timeout_s * 1000)
    problem = window.compress_page.job.end if window.compress_page.job else None
    assert window.result is not None, problem


def test_a_tiny_model_goes_the_whole_way(make_window: MakeWindow, qtbot: QtBot, tmp_path: Path) -> None:
    window = make_window(REAL)
    (tmp_path / "net.py").write_text(MODEL)
    window.open_path(tmp_path / "net.py")
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=60_000)
    page = window.compress_page
    page.job_form.data.text.setText(str(write_data(tmp_path / "data.npz")))
    for name, value in (("Fine-tune: Epochs", "2"), ("Fine-tune: Learning rate", "0.05")):
        field = next(f for f in page.findChildren(QLineEdit) if f.accessibleName() == name)
        field.setText(value)
    window.actions_by_id["job.start"].trigger()
    finished(window, qtbot, 300)
    result = window.result
    assert result is not None
    names = [v.name for v in result.variants]
    assert names == ["Float", "Compressed, float", "INT8, ONNX Runtime", "INT8, native engine"]
    float_, small, onnx, native = result.variants
    assert (float_.size_bytes or 0) > (small.size_bytes or 0) > 0
    assert native.size_bytes == onnx.size_bytes
    assert all(v.latency_ms is not None and v.latency_ms > 0 for v in result.variants)
    assert native.sqnr_db is not None
    assert native.sqnr_db > 15
    assert result.samples == 24
    window.actions_by_id["result.open"].trigger()
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=60_000)
    assert window.document is not None
    assert window.document.kind == "artifact"
    assert window.document.checks
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".edgewright")]


@pytest.mark.slow
def test_the_digits_example_keeps_its_promise(make_window: MakeWindow, qtbot: QtBot) -> None:
    window = make_window(REAL)
    window.open_example()
    finished(window, qtbot, 600)
    result = window.result
    assert result is not None
    assert result.passed
    teacher, *_, native = result.variants
    assert (teacher.accuracy or 0) > 0.97
    assert (native.accuracy or 0) > (teacher.accuracy or 0) - 0.02
    assert (native.size_bytes or 0) * 10 < (teacher.size_bytes or 0)
    sys.stdout.write(f"digits example: {result.seconds:.0f} s\n")


@pytest.mark.slow
def test_an_exported_program_is_quantized_with_its_own_data(
    make_window: MakeWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    import torch

    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = namespace["small"]()  # type: ignore[operator]
    path = tmp_path / "net.pt2"
    program = torch.export.export(
        model.eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("N")},)
    )
    torch.export.save(program, path)
    window = make_window(REAL)
    window.open_path(path)
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=60_000)
    window.compress_page.job_form.data.text.setText(str(write_data(tmp_path / "data.npz")))
    window.actions_by_id["job.start"].trigger()
    finished(window, qtbot, 300)
    assert window.result is not None
    assert window.result.variants[0].name == "Float"
    assert (tmp_path / "net.ew" / "manifest.json").is_file()
