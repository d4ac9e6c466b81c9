"""The command `edgewright-studio [PATH]`."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication

    from edgewright_studio.window import MainWindow

QT_PACKAGES = "libglib2.0-0 libgl1 libegl1 libfontconfig1 libdbus-1-3 libxkbcommon0 fonts-dejavu-core"
X_PACKAGES = "libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxkbcommon-x11-0 libxcb-shape0"
X_LIBRARIES = ("libxcb-cursor.so.0", "libxcb-icccm.so.4", "libxcb-keysyms.so.1", "libxkbcommon-x11.so.0")
MAX_CRASH_LOG_BYTES = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Opens the window and runs it.

    Returns:
        0 when it was closed, 2 when it cannot start.
    """
    parser = argparse.ArgumentParser(
        prog="edgewright-studio", description="Compress, verify and compare models in a window, offline."
    )
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="a model (.onnx, .pt2, .py) or artifact (.ew)"
    )
    options = parser.parse_args(argv)
    problem = cannot_start(os.environ, sys.platform, sys.version_info[:2])
    if problem:
        sys.stderr.write(f"edgewright-studio: {problem}\n")
        return 2
    application, window = make_window()
    window.show()
    window.learn_targets()
    if options.path:
        window.open_path(Path(options.path))
    return application.exec()


def cannot_start(environment: Mapping[str, str], platform: str, python: tuple[int, ...]) -> str:
    """Why the studio cannot run here, in one line with the remedy; empty when it can."""
    try:
        import PySide6
    except ImportError:
        return 'PySide6 is not installed; run: pip install "edgewright[studio]"'
    if PySide6.__version__ == "6.12.0" and python == (3, 11):
        return (
            "PySide6 6.12.0 aborts on Python 3.11; "
            'run: pip install "PySide6_Essentials>=6.11.2,<6.12" "shiboken6>=6.11.2,<6.12"'
        )
    try:
        import PySide6.QtSvg
        import PySide6.QtWidgets
    except ImportError as error:
        remedy = f"on Debian run: apt-get install {QT_PACKAGES}"
        return f"a system library that Qt needs is missing ({error}); {remedy}"
    if platform != "linux" or environment.get("QT_QPA_PLATFORM"):
        return ""
    if not environment.get("DISPLAY") and not environment.get("WAYLAND_DISPLAY"):
        return "there is no display; set DISPLAY or WAYLAND_DISPLAY, or log in with `ssh -X`"
    if environment.get("DISPLAY") and not environment.get("WAYLAND_DISPLAY"):
        for library in X_LIBRARIES:
            try:
                ctypes.CDLL(library)
            except OSError:
                remedy = f"on Debian run: apt-get install {X_PACKAGES}"
                return f"{library}, which Qt needs on X11, is missing; {remedy}"
    return ""


def make_window() -> tuple[QApplication, MainWindow]:
    """The application and its window, not shown yet."""
    from PySide6.QtCore import QSettings, QStandardPaths
    from PySide6.QtWidgets import QApplication

    from edgewright_studio.settings import APPLICATION, ORGANISATION, Settings
    from edgewright_studio.window import MainWindow

    application = QApplication(sys.argv[:1])
    application.setOrganizationName(ORGANISATION)
    application.setApplicationName(APPLICATION)
    data = Path(QStandardPaths.writableLocation(QStandardPaths.StandardLocation.AppDataLocation))
    window = MainWindow(Settings(QSettings()), examples=data / "examples")
    _report_crashes(data / "crash.log", window)
    return application, window


def _report_crashes(log: Path, window: MainWindow) -> None:
    """Writes exceptions that nothing caught to a log, and shows them; the window stays open."""
    from edgewright_studio.dialogs import TextDialog, versions

    def report(kind: type[BaseException], error: BaseException, where: TracebackType | None, /) -> None:
        if issubclass(kind, KeyboardInterrupt):
            window.close()
            return
        story = "".join(traceback.format_exception(kind, error, where))
        sys.stderr.write(story)
        text = write_crash(log, story, versions(), datetime.now(UTC))
        dialog = TextDialog(
            window, "Something went wrong", f"This is a mistake in the studio. It was written to {log}.", text
        )
        dialog.open()

    sys.excepthook = report


def write_crash(log: Path, story: str, about: str, now: datetime) -> str:
    """Adds a crash to the log, which starts anew when it is long; gives the text that was added."""
    text = f"{now.isoformat(timespec='seconds')}\n{about}{story}\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        long = log.exists() and log.stat().st_size > MAX_CRASH_LOG_BYTES
        with log.open("w" if long else "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        text += f"(the log itself cannot be written: {error.strerror})\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
