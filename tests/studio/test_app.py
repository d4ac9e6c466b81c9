from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import PySide6
import pytest
from PySide6.QtCore import QByteArray, QObject, QSettings

from edgewright_studio import app
from edgewright_studio.dialogs import TextDialog
from edgewright_studio.settings import Settings
from edgewright_studio.window import MainWindow

FIRST_PAINT = """
import json, sys, time
from edgewright_studio.app import make_window
from PySide6.QtCore import QEvent, QObject
class Watch(QObject):
    def eventFilter(self, watched, event):
        if event.type() == QEvent.Type.Paint:
            names = ("numpy", "torch", "onnx", "pyqtgraph", "edgewright_device")
            heavy = [m for m in names if m in sys.modules]
            print(json.dumps({"cpu_s": time.process_time(), "heavy": heavy}), flush=True)
            application.quit()
        return False
application, window = make_window()
watch = Watch()
window.installEventFilter(watch)
window.show()
application.exec()
window.close()
"""


def test_first_paint_comes_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_PAINT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
    )
    seen = json.loads(done.stdout.splitlines()[0])
    assert seen["heavy"] == []
    sys.stdout.write(f"first paint after {1000 * seen['cpu_s']:.0f} ms of CPU\n")


def test_qt_does_not_drop_references_to_none() -> None:
    thing = QObject()
    before = sys.getrefcount(None)
    for _ in range(1000):
        thing.setObjectName("x")
    assert abs(sys.getrefcount(None) - before) < 50


def test_a_broken_qt_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PySide6, "__version__", "6.12.0")
    assert "6.11.2" in app.cannot_start({}, "linux", (3, 11))


def test_a_missing_system_library_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PySide6.QtWidgets", None)
    assert "apt-get install libglib2.0-0" in app.cannot_start({}, "linux", (3, 11))


def test_a_missing_x_library_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "X_LIBRARIES", ("libabsent.so.0",))
    line = app.cannot_start({"DISPLAY": ":1"}, "linux", (3, 11))
    assert "libabsent.so.0" in line
    assert "libxcb-cursor0" in line


def test_no_display_is_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("QT_QPA_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert app.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "DISPLAY" in error


def test_this_environment_can_start_it() -> None:
    assert app.cannot_start({"QT_QPA_PLATFORM": "offscreen"}, "linux", (3, 11)) == ""


def test_a_crash_is_added_to_the_log_which_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "data" / "crash.log"
    now = datetime(2026, 11, 23, tzinfo=UTC)
    app.write_crash(log, "first\n", "Python 3.11\n", now)
    app.write_crash(log, "second\n", "Python 3.11\n", now)
    assert log.read_text().index("first") < log.read_text().index("second")
    monkeypatch.setattr(app, "MAX_CRASH_LOG_BYTES", 10)
    app.write_crash(log, "third\n", "Python 3.11\n", now)
    assert "first" not in log.read_text()
    assert "third" in log.read_text()


def test_a_mistake_in_the_studio_is_logged_and_shown_and_the_window_stays(
    window: MainWindow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    app._report_crashes(tmp_path / "crash.log", window)
    try:
        raise RuntimeError("a mistake")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    assert "RuntimeError: a mistake" in (tmp_path / "crash.log").read_text()
    dialog = window.findChild(TextDialog)
    assert dialog is not None
    assert dialog.isVisible()
    assert window.isVisible()
    dialog.close()


def test_settings_survive_a_restart_and_refuse_nonsense(tmp_path: Path) -> None:
    file = str(tmp_path / "s.ini")
    first = Settings(QSettings(file, QSettings.Format.IniFormat))
    first.theme, first.last_folder, first.geometry = "dark", tmp_path, QByteArray(b"abc")
    del first
    store = QSettings(file, QSettings.Format.IniFormat)
    second = Settings(store)
    assert (second.theme, second.last_folder, second.geometry.data()) == ("dark", tmp_path, b"abc")
    store.setValue("theme", "pink")
    store.setValue("geometry", 7)
    store.setValue("last_folder", str(tmp_path / "gone"))
    assert (second.theme, second.geometry.isEmpty()) == ("system", True)
    assert second.last_folder == Path.home()
