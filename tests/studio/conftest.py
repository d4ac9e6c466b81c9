"""The studio's tests run offscreen; nothing that a test starts outlives it."""

from __future__ import annotations

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QSettings
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from edgewright_studio.compress_page import Functions
from edgewright_studio.settings import Settings
from edgewright_studio.window import MainWindow

HERE = Path(__file__).parent
FAKES = Functions(
    open_document="edgewright_studio.tasks:open_document",
    list_targets="studio.fake_tasks:list_targets",
    compress_digits="studio.fake_tasks:compress",
    compress="studio.fake_tasks:compress",
    export="studio.fake_tasks:compress",
)

MakeWindow = Callable[..., MainWindow]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-screenshots", action="store_true", help="rewrite docs/images/*.png")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    threads = set(threading.enumerate())
    before = _children()
    yield
    assert set(threading.enumerate()) <= threads
    assert _children() <= before


@pytest.fixture(autouse=True)
def _fake_tasks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent), prepend=os.pathsep)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    stored = Settings(QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat))
    stored.theme = "light"
    stored.last_folder = tmp_path
    return stored


@pytest.fixture
def make_window(qtbot: QtBot, settings: Settings, tmp_path: Path) -> Iterator[MakeWindow]:
    """Makes shown windows, and closes them after the test."""
    made: list[MainWindow] = []

    def make(functions: Functions = FAKES) -> MainWindow:
        window = MainWindow(settings, examples=tmp_path / "examples", functions=functions)
        qtbot.addWidget(window)
        made.append(window)
        window.show()
        return window

    yield make
    for window in made:
        window.close()


@pytest.fixture
def window(make_window: MakeWindow) -> MainWindow:
    return make_window()


@pytest.fixture
def clipboard(qapp: QApplication) -> Callable[[], str]:
    return lambda: qapp.clipboard().text()


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found
