"""Each page in light and dark, as docs/guides/studio.md shows it.

    pytest tests/studio/test_screenshots.py --update-screenshots

writes docs/images/studio-*.png anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PySide6.QtCore import QSize
from PySide6.QtGui import QFontInfo, QImage
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from edgewright_studio import theme
from edgewright_studio.document import Check, Count, Document, Tensor, digits_example
from edgewright_studio.jobs import Logged, Progressed, Task
from edgewright_studio.settings import Settings
from edgewright_studio.table import Table
from edgewright_studio.window import MainWindow
from studio.conftest import MakeWindow
from studio.fake_tasks import sample_result

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIZE = QSize(1280, 820)
FONT = "DejaVu Sans"
# Channel values, of 255, that two versions of a font renderer may differ by, and the share of pixels.
TOLERANCE = 24
SHARE = 0.005

ARTIFACT = Document(
    path="/home/ada/models/keyword-spotter.ew",
    kind="artifact",
    name="keyword-spotter",
    size_bytes=93_184,
    inputs=(
        Tensor(
            name="audio", shape=("batch", 1, 49, 10), dtype="float32", note="scale 0.02374, zero point 128"
        ),
    ),
    outputs=(
        Tensor(name="scores", shape=("batch", 12), dtype="float32", note="scale 0.1811, zero point 140"),
    ),
    files=(
        Count(name="weights.safetensors", count=52_912),
        Count(name="golden.npz", count=24_310),
        Count(name="model.onnx", count=11_204),
        Count(name="plan.bin", count=3_108),
    ),
    targets=("rpi5",),
    checks=(
        Check(name="golden vectors replayed, differing values", passed=True, note="0 values"),
        Check(
            name="native engine against the numpy reference, differing values", passed=True, note="0 values"
        ),
        Check(name="signal to quantization noise against the float model", passed=True, note="34.1 dB"),
        Check(name="predictions that differ from the float model's", passed=False, note="0.061"),
    ),
    facts=(
        ("Made by", "edgewright 0.1.0"),
        ("Native engine", "yes, bit for bit as verified"),
        ("Verified", "no, a check did not hold"),
    ),
)


def model_empty(window: MainWindow) -> None:
    window.actions_by_id["view.model"].trigger()


def model_error(window: MainWindow) -> None:
    window.open_path(Path("/home/ada/models/absent.onnx"))


def model(window: MainWindow) -> None:
    window.model_page.show_document(ARTIFACT)
    table = window.model_page.findChild(Table)
    assert table is not None
    table.selectRow(0)


def compress(window: MainWindow) -> None:
    window.model_page.show_document(digits_example())
    window.compress_page.show_document(digits_example(), Path("/home/ada/models"))
    window.actions_by_id["view.compress"].trigger()
    job = window.background.start(
        Task(title="Compress Handwritten digits", function="studio.fake_tasks:rest")
    )
    window.jobs_panel.add(job)
    window.compress_page.begin(job)
    try:
        for index, step in enumerate(("train", "distill")):
            for done in range(1, 25 - 8 * index):
                progress = Progressed(
                    step=step,
                    done=done,
                    total=24,
                    overall=(0.35 if index else 0.02) + done / 90,
                    metrics={
                        "loss": 0.15 + 2.1 / (done + index),
                        "accuracy": 0.985 - 0.8 / (done + index) ** 1.5,
                    },
                )
                window.compress_page.show_progress(job, progress)
                window.jobs_panel.show_event(job, progress)
        window.jobs_panel.show_event(job, Logged(lines=("1,137 scans to train on, 300 to validate on",)))
    finally:
        job.close()
    # What depends on the clock.
    for label in window.findChildren(QLabel):
        if " s, about " in label.text() or label.text() in {"0 s", "1 s"}:
            label.setText("19 s, about 18 s to go")


def compare(window: MainWindow) -> None:
    window.result_page.show_result(sample_result("/home/ada/models/digits.ew"))
    window.actions_by_id["view.compare"].trigger()
    window.result_page.table.selectRow(3)
    window._refresh_actions()


def compare_empty(window: MainWindow) -> None:
    window.actions_by_id["view.compare"].trigger()


SCENES: dict[str, Callable[[MainWindow], None]] = {
    "model-empty": model_empty,
    "model-error": model_error,
    "model": model,
    "compress": compress,
    "compare-empty": compare_empty,
    "compare": compare,
}


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("scene", SCENES)
def test_the_page_looks_as_in_the_guide(
    scene: str,
    mode: theme.Mode,
    make_window: MakeWindow,
    settings: Settings,
    qtbot: QtBot,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    settings.theme = mode
    window = make_window()
    window.resize(SIZE)
    window.learn_targets()
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=60_000)
    SCENES[scene](window)
    window.statusBar().clearMessage()
    QApplication.processEvents()
    font = QFontInfo(QApplication.font()).family()
    shot = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    committed = IMAGES / f"studio-{scene}-{mode}.png"
    if request.config.getoption("--update-screenshots", default=False):
        assert font == FONT, f"the committed images are drawn in {FONT}, here is {font}"
        IMAGES.mkdir(parents=True, exist_ok=True)
        assert shot.save(str(committed))
    assert committed.is_file(), "run this test with --update-screenshots, and look at what it drew"
    if font != FONT:
        pytest.skip(f"the committed images are drawn in {FONT}, here is {font}: install fonts-dejavu-core")
    shot.save(str(tmp_path / "drawn.png"))
    differing = share_differing(shot, QImage(str(committed)))
    assert differing <= SHARE, (
        f"{differing:.2%} of the pixels differ from {committed}; see {tmp_path}/drawn.png"
    )


def share_differing(a: QImage, b: QImage) -> float:
    """The share of pixels in which some channel differs by more than the tolerance."""
    import numpy as np

    if a.size() != b.size():
        return 1.0

    def channels(image: QImage) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        image = image.convertToFormat(QImage.Format.Format_RGB32)
        data = np.frombuffer(image.constBits(), np.uint8)
        return data.reshape(image.height(), image.width(), 4)[..., :3].astype(np.int16)

    return float((np.abs(channels(a) - channels(b)).max(axis=2) > TOLERANCE).mean())


def test_a_changed_picture_is_noticed() -> None:
    a = QImage(SIZE, QImage.Format.Format_RGB32)
    a.fill(0xFFFFFF)
    b = a.copy()
    assert share_differing(a, b) == 0.0
    for x in range(200):
        for y in range(100):
            b.setPixel(x, y, 0x000000)
    assert share_differing(a, b) > SHARE
    assert share_differing(a, QImage(10, 10, QImage.Format.Format_RGB32)) == 1.0
