"""The Compare page: the variants of a model, side by side."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtCore import QModelIndex
from PySide6.QtGui import QAction, QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from edgewright_studio import units
from edgewright_studio.model_page import tile
from edgewright_studio.page import Page, button, card, label
from edgewright_studio.results import COLUMNS, Column, Result, Variant, as_tsv
from edgewright_studio.table import Cell, Rows, Table, number, words

EXPLANATION = (
    "The best of each column is bold. Size is that of the stored weights; latency is the median of one "
    "sample at a time on this machine; SQNR and flips compare with the float model of the same weights."
)


class ResultPage(Page):
    """The result table, with what was gained above it."""

    def __init__(self, actions: Mapping[str, QAction]) -> None:
        super().__init__("Compare")
        self.result: Result | None = None
        for name in ("result.copy", "result.export", "result.open"):
            shown = button(actions[name], primary=name == "result.open")
            shown.setVisible(False)
            self.header_buttons.addWidget(shown)
        self._tiles = QHBoxLayout()
        self._tiles.setSpacing(14)
        self.rows = Rows(
            ("Variant", *(c.title for c in COLUMNS)), numbers=frozenset(range(1, len(COLUMNS) + 1))
        )
        self.table = Table(self.rows)
        self.table.setAccessibleName("Variants")
        self.table.selectionModel().currentRowChanged.connect(self._tell)
        frame = card()
        inner = QVBoxLayout(frame)
        inner.setContentsMargins(6, 6, 6, 6)
        inner.addWidget(self.table)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(14)
        column.addLayout(self._tiles)
        column.addWidget(frame)
        column.addWidget(label(EXPLANATION, "small", wrap=True))
        column.addStretch(1)
        self.set_content(content)

    def has_content(self) -> bool:
        """True once a job gave a result."""
        return self.result is not None

    def show_result(self, result: Result) -> None:
        """Shows a result."""
        self.result = result
        self.title.setText(result.title)
        self.subtitle.setText(
            f"{len(result.variants)} variants, measured on {result.samples:,} held-out samples "
            f"in {units.duration(result.seconds)}"
        )
        while (item := self._tiles.takeAt(0)) is not None:
            if (old := item.widget()) is not None:
                old.deleteLater()
        for figure, meaning in result.highlights():
            self._tiles.addWidget(tile(figure, meaning), 1)
        best = {c.key: _best(result, c) for c in COLUMNS}
        self.rows.set_rows([_cells(v, best) for v in result.variants])
        self.table.fit_height()
        for index in range(self.header_buttons.count()):
            if (item := self.header_buttons.itemAt(index)) is not None and (w := item.widget()) is not None:
                w.setVisible(True)
        self.show_content()

    def copy(self) -> None:
        """Puts the table, in the order shown, on the clipboard as tab-separated text."""
        if self.result is not None:
            shown = [self.result.variants[i] for i in self.rows.order]
            QGuiApplication.clipboard().setText(as_tsv(shown))

    def _tell(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if self.result is None or not current.isValid():
            return
        variant = self.result.variants[self.rows.order[current.row()]]
        rows = [(c.title, variant.text(c)) for c in COLUMNS]
        if variant.size_bytes is not None:
            rows.append(("Size", f"{variant.size_bytes:,} bytes"))
        if variant.note:
            rows.append(("Remark", variant.note))
        self.selected.emit(variant.name, rows)


def _best(result: Result, column: Column) -> float | None:
    values = [x for v in result.variants if (x := v.value(column)) is not None]
    # A best of one, or of equals, tells nothing.
    if len(set(values)) < 2:
        return None
    return max(values) if column.larger_is_better else min(values)


def _cells(variant: Variant, best: Mapping[str, float | None]) -> tuple[Cell, ...]:
    figures = [
        number(x := variant.value(c), variant.text(c), strong=x is not None and x == best[c.key])
        for c in COLUMNS
    ]
    return (words(variant.name), *figures)
