"""What a job needs besides the recipe: entry points of a Python file, data, a target, where to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from edgewright_studio.document import Document
from edgewright_studio.page import Choice, caption, label

NO_TEACHER = "None"
THIS_MACHINE = "This machine"


class JobForm(QFrame):
    """Fields for one document; those that its kind does not need are hidden."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self.entry_point = Choice()
        self.teacher = Choice()
        self.target = Choice()
        self.target.addItem(THIS_MACHINE, "")
        self.data = _PathField(
            "Data", "An .npz file with x_train, y_train, x_validation, y_validation; or x, y"
        )
        self.out = _PathField("Output", "The artifact directory to write, NAME.ew")
        self.data.browse.clicked.connect(self._browse_data)
        self.out.browse.clicked.connect(self._browse_out)
        self._form = QFormLayout()
        self._form.setHorizontalSpacing(16)
        self._form.setVerticalSpacing(8)
        self._form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._rows: tuple[tuple[str, QWidget], ...] = (
            ("Model", self.entry_point),
            ("Teacher", self.teacher),
            ("Data", self.data),
            ("Target", self.target),
            ("Output", self.out),
        )
        for name, widget in self._rows:
            if isinstance(widget, Choice):
                widget.setAccessibleName(name)
                widget.currentIndexChanged.connect(self.changed)
            self._form.addRow(caption(name), widget)
        self.data.text.textChanged.connect(self.changed)
        self.out.text.textChanged.connect(self.changed)
        column = QVBoxLayout(self)
        column.setContentsMargins(18, 14, 18, 16)
        column.setSpacing(10)
        column.addWidget(label("Job", "heading"))
        column.addLayout(self._form)
        self.folder = Path.home()
        self._document: Document | None = None

    def set_targets(self, names: Sequence[str], here: str) -> None:
        """Offers the targets there are; `here` fits this machine."""
        chosen = self.target.currentData()
        self.target.clear()
        self.target.addItem(f"{THIS_MACHINE} ({here})" if here else THIS_MACHINE, "")
        for name in names:
            self.target.addItem(name, name)
        self.target.setCurrentIndex(max(self.target.findData(chosen), 0))

    def show_document(self, document: Document, out: Path) -> None:
        """Offers what a job for this document needs."""
        self._document = document
        self.entry_point.clear()
        self.entry_point.addItems(document.entry_points)
        self.teacher.clear()
        self.teacher.addItems([NO_TEACHER, *document.entry_points])
        self.out.text.setText(str(out))
        self.data.text.clear()
        python, example = document.kind == "python", document.kind == "example"
        for name, widget in self._rows:
            wanted = {"Model": python, "Teacher": python, "Data": not example}.get(name, True)
            self._form.setRowVisible(widget, wanted)

    def problem(self, *, distills: bool) -> str:
        """What is missing, in one line; empty when nothing is."""
        if self._document is None:
            return "Open a model first."
        if self._document.kind == "python" and not self._document.entry_points:
            return "This file has no function or class that gives a model; see the Model page."
        if self._document.kind == "python" and distills and self.teacher.currentText() == NO_TEACHER:
            return "The recipe distills: choose a teacher, or switch that part off."
        if self._document.kind != "example":
            data = self.data.text.text().strip()
            if not data:
                return "Choose the data to learn from (an .npz file)."
            if not Path(data).is_file():
                return f"{data} does not exist."
        out = Path(self.out.text.text().strip())
        if out.suffix != ".ew":
            return "Choose an output whose name ends in .ew."
        if not out.is_absolute() or not out.parent.is_dir():
            return f"The folder of the output, {out.parent}, does not exist."
        return ""

    def _browse_data(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Choose data", str(self.folder), "NumPy archives (*.npz)")
        if name:
            self.data.text.setText(name)

    def _browse_out(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, "Write artifact", self.out.text.text(), "Artifacts (*.ew)"
        )
        if name:
            self.out.text.setText(name if name.endswith(".ew") else f"{name}.ew")


class _PathField(QWidget):
    """A path to type or to browse for."""

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        self.text = QLineEdit()
        self.text.setAccessibleName(name)
        self.text.setToolTip(tip)
        self.browse = QPushButton("…")
        self.browse.setToolTip("Browse")
        self.browse.setAccessibleName(f"{name}: browse")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        row.addWidget(self.text, 1)
        row.addWidget(self.browse)
        self.setFocusProxy(self.text)
