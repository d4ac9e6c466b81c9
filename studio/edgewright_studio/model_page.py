"""The Model page: what the open model is."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QModelIndex, Qt
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from edgewright_studio import units
from edgewright_studio.document import KIND_TITLES, Count, Document, Tensor
from edgewright_studio.page import Page, card, label
from edgewright_studio.table import Cell, Rows, Table, number, words
from edgewright_studio.theme import Glyph

Details = Sequence[tuple[str, str]]
_MOST_OPERATORS = 200


class ModelPage(Page):
    """Figures, inputs and outputs, operators, files and checks of a document."""

    def __init__(self) -> None:
        super().__init__("Model")
        self.document: Document | None = None

    def has_content(self) -> bool:
        """True once a model was opened."""
        return self.document is not None

    def show_document(self, document: Document) -> None:
        """Shows a model."""
        self.document = document
        self.title.setText(document.name)
        self.subtitle.setText(document.path)
        self.subtitle.setToolTip(document.path)
        self.subtitle.setVisible(bool(document.path))
        self.chip.setText(KIND_TITLES[document.kind])
        self.chip.show()
        self.set_content(self._content(document))
        self.show_content()

    def _content(self, document: Document) -> QWidget:
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        body = QWidget()
        column = QVBoxLayout(body)
        column.setContentsMargins(0, 0, 6, 0)
        column.setSpacing(14)
        if figures := _figures(document):
            row = QHBoxLayout()
            row.setSpacing(14)
            for value, meaning in figures:
                row.addWidget(tile(value, meaning), 1)
            column.addLayout(row)
        column.addWidget(self._facts(document))
        if document.checks:
            column.addWidget(_checks(document))
        column.addWidget(self._tensors(document))
        if document.operators:
            column.addWidget(self._counts("Operators", "Operator", "Count", document.operators))
        if document.files:
            column.addWidget(self._counts("Files", "File", "Size", document.files, as_size=True))
        column.addStretch(1)
        area.setWidget(body)
        return area

    def _facts(self, document: Document) -> QFrame:
        frame = card()
        grid = QGridLayout(frame)
        grid.setContentsMargins(18, 14, 18, 14)
        grid.setHorizontalSpacing(24)
        grid.setVerticalSpacing(8)
        grid.setColumnStretch(1, 1)
        rows = list(document.facts)
        if document.targets:
            rows.append(("Targets", ", ".join(document.targets)))
        if document.entry_points:
            rows.insert(1, ("Found", ", ".join(document.entry_points)))
        for index, (name, value) in enumerate(rows):
            grid.addWidget(label(name, "muted"), index, 0, Qt.AlignmentFlag.AlignTop)
            text = label(value, wrap=True)
            text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            grid.addWidget(text, index, 1)
        frame.setVisible(bool(rows))
        return frame

    def _tensors(self, document: Document) -> QFrame:
        rows = Rows(("Name", "Direction", "Shape", "Type"))
        tensors = [("input", t) for t in document.inputs] + [("output", t) for t in document.outputs]
        rows.set_rows([(words(t.name), words(side), words(_shape(t)), words(t.dtype)) for side, t in tensors])
        details: list[Details] = [
            [("Direction", side), ("Shape", _shape(t)), ("Type", t.dtype), ("Remark", t.note or "none")]
            for side, t in tensors
        ]
        frame = self._table_card("Inputs and outputs", rows, [t.name for _, t in tensors], details)
        frame.setVisible(bool(tensors))
        return frame

    def _counts(
        self, title: str, what: str, how_much: str, counts: Sequence[Count], *, as_size: bool = False
    ) -> QFrame:
        rows = Rows((what, how_much, "Share"), numbers=frozenset({1, 2}))
        whole = sum(c.count for c in counts) or 1
        shown = counts[:_MOST_OPERATORS]
        cells: list[tuple[Cell, ...]] = []
        details: list[Details] = []
        for each in shown:
            amount = units.size(each.count) if as_size else f"{each.count:,}"
            share = f"{100 * each.count / whole:.1f} %"
            cells.append((words(each.name), number(each.count, amount), number(each.count / whole, share)))
            details.append([(how_much, amount), ("Share", share)])
        rows.set_rows(cells)
        return self._table_card(title, rows, [c.name for c in shown], details)

    def _table_card(self, title: str, rows: Rows, names: Sequence[str], details: Sequence[Details]) -> QFrame:
        frame = card()
        column = QVBoxLayout(frame)
        column.setContentsMargins(6, 12, 6, 6)
        column.setSpacing(6)
        heading = label(title, "heading")
        heading.setContentsMargins(12, 0, 12, 0)
        column.addWidget(heading)
        table = Table(rows)
        table.setAccessibleName(title)
        table.fit_height()
        column.addWidget(table)

        def tell(current: QModelIndex, _previous: QModelIndex) -> None:
            if current.isValid():
                source = rows.order[current.row()]
                self.selected.emit(names[source], details[source])

        table.selectionModel().currentRowChanged.connect(tell)
        return frame


def tile(value: str, meaning: str) -> QFrame:
    """A card with one large figure."""
    frame = card()
    column = QVBoxLayout(frame)
    column.setContentsMargins(18, 12, 18, 12)
    column.setSpacing(0)
    column.addWidget(label(value, "figure"))
    column.addWidget(label(meaning, "muted"))
    return frame


def _figures(document: Document) -> list[tuple[str, str]]:
    figures: list[tuple[str, str]] = []
    if document.parameters is not None:
        figures.append((f"{document.parameters:,}", "parameters"))
    if document.size_bytes is not None:
        figures.append((units.size(document.size_bytes), "on disk"))
    if document.operators:
        kinds = len(document.operators)
        figures.append((f"{sum(c.count for c in document.operators):,}", f"operators of {kinds} kinds"))
    if document.checks:
        held = sum(c.passed for c in document.checks)
        figures.append((f"{held} of {len(document.checks)}", "checks held"))
    if document.targets:
        figures.append((document.targets[0], "target"))
    return figures


def _checks(document: Document) -> QFrame:
    frame = card()
    grid = QGridLayout(frame)
    grid.setContentsMargins(18, 12, 18, 14)
    grid.setHorizontalSpacing(12)
    grid.setVerticalSpacing(8)
    grid.setColumnStretch(1, 1)
    grid.addWidget(label("Verification", "heading"), 0, 0, 1, 3)
    for index, check in enumerate(document.checks, start=1):
        role = QPalette.ColorRole.Highlight if check.passed else QPalette.ColorRole.BrightText
        glyph = Glyph("done" if check.passed else "failed", 18, role)
        glyph.setAccessibleName("held" if check.passed else "did not hold")
        grid.addWidget(glyph, index, 0, Qt.AlignmentFlag.AlignVCenter)
        grid.addWidget(label(check.name, wrap=True), index, 1)
        found: QLabel = label(check.note, "muted")
        grid.addWidget(found, index, 2, Qt.AlignmentFlag.AlignRight)
    return frame


def _shape(tensor: Tensor) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(str(d) for d in tensor.shape) or "scalar"
