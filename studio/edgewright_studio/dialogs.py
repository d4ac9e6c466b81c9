"""The small dialogs: the shortcut sheet, and what to copy into a bug report."""

from __future__ import annotations

import platform

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFrame,
    QGridLayout,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from edgewright_studio.actions import ACTIONS
from edgewright_studio.page import card, label
from edgewright_studio.theme import fixed_font

PACKAGES = ("edgewright", "PySide6_Essentials", "numpy", "torch", "onnx", "onnxruntime")


class ShortcutSheet(QDialog):
    """Every action, by menu, with what it does and its keys."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keyboard shortcuts")
        self.resize(720, 600)
        body = QWidget()
        column = QVBoxLayout(body)
        column.setContentsMargins(20, 18, 20, 18)
        column.setSpacing(12)
        column.addWidget(label("Keyboard shortcuts", "title"))
        for menu in dict.fromkeys(spec.menu for spec in ACTIONS):
            frame = card()
            grid = QGridLayout(frame)
            grid.setContentsMargins(18, 12, 18, 14)
            grid.setHorizontalSpacing(18)
            grid.setVerticalSpacing(7)
            grid.setColumnStretch(1, 1)
            title = menu.replace("&", "")
            grid.addWidget(label(title, "heading"), 0, 0, 1, 3)
            for row, spec in enumerate((s for s in ACTIONS if s.menu == menu), start=1):
                keys = spec.shortcut or f"Alt, {title}"
                corner = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop
                grid.addWidget(label(keys, "chip"), row, 0, corner)
                grid.addWidget(label(spec.tip, wrap=True), row, 1, 1, 2)
            grid.setColumnMinimumWidth(0, 130)
            column.addWidget(frame)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setWidget(body)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 12)
        outer.addWidget(area)
        buttons.setContentsMargins(0, 0, 20, 0)
        outer.addWidget(buttons)


class TextDialog(QDialog):
    """A title, a sentence, and text to copy."""

    def __init__(self, parent: QWidget | None, title: str, sentence: str, text: str) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.resize(620, 380)
        view = QPlainTextEdit(text)
        view.setReadOnly(True)
        view.setTabChangesFocus(True)
        view.setFont(fixed_font())
        copy = QPushButton("Copy details")
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(text))
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.addButton(copy, QDialogButtonBox.ButtonRole.ActionRole)
        buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 18, 20, 16)
        column.setSpacing(12)
        column.addWidget(label(title, "title"))
        column.addWidget(label(sentence, "muted", wrap=True))
        column.addWidget(view, 1)
        column.addWidget(buttons)


def versions() -> str:
    """Versions of what the studio runs on, one per line; read without importing any of it."""
    from importlib.metadata import PackageNotFoundError, version  # slow, and not for the first paint

    lines = [f"Python {platform.python_version()}", platform.platform()]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join(lines) + "\n"
