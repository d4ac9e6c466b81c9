"""A table of rows that sorts by plain Python lists: no proxy model, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt
from PySide6.QtGui import QFont
from PySide6.QtWidgets import QAbstractItemView, QFrame, QHeaderView, QTableView

Index = QModelIndex | QPersistentModelIndex
_ROOT = QModelIndex()
ROW_HEIGHT = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one cell shows, and the value it sorts by (None comes last either way)."""

    text: str
    key: float | str | None
    number: bool = False
    strong: bool = False
    tip: str = ""


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text=text, key=text.casefold())


def number(value: float | None, text: str, *, strong: bool = False) -> Cell:
    """A cell of a figure, aligned to the right."""
    return Cell(text=text, key=value, number=True, strong=strong)


class Rows(QAbstractTableModel):
    """Headings and rows; `order` maps what is shown to what was given."""

    def __init__(self, headings: Sequence[str], numbers: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._headings = tuple(headings)
        self._numbers = numbers
        self._rows: tuple[tuple[Cell, ...], ...] = ()
        self.order: list[int] = []

    def set_rows(self, rows: Sequence[tuple[Cell, ...]]) -> None:
        """Replaces all rows, in the order given."""
        self.beginResetModel()
        self._rows = tuple(rows)
        self.order = list(range(len(self._rows)))
        self.endResetModel()

    def rowCount(self, parent: Index = _ROOT) -> int:
        """Rows that are shown."""
        return 0 if parent.isValid() else len(self.order)

    def columnCount(self, parent: Index = _ROOT) -> int:
        """As many as headings."""
        return 0 if parent.isValid() else len(self._headings)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """A cell's text, alignment, tip and weight."""
        cell = self._rows[self.order[index.row()]][index.column()]
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return cell.text
            case Qt.ItemDataRole.TextAlignmentRole:
                side = Qt.AlignmentFlag.AlignRight if cell.number else Qt.AlignmentFlag.AlignLeft
                return side | Qt.AlignmentFlag.AlignVCenter
            case Qt.ItemDataRole.ToolTipRole:
                return cell.tip or None
            case Qt.ItemDataRole.FontRole if cell.strong:
                font = QFont()
                font.setBold(True)
                return font
        return None

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        """A heading and its alignment."""
        if orientation is not Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self._headings[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            right = section in self._numbers
            side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sorts by a column; -1 goes back to the order given."""
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        sources = [self.order[i.row()] for i in before]
        if column < 0:
            self.order.sort()
        else:
            keys = [row[column].key for row in self._rows]
            known = [i for i in range(len(keys)) if keys[i] is not None]
            known.sort(key=lambda i: keys[i], reverse=order is Qt.SortOrder.DescendingOrder)  # type: ignore[arg-type, return-value]
            self.order = known + [i for i in range(len(keys)) if keys[i] is None]
        place = {source: shown for shown, source in enumerate(self.order)}
        after = [self.index(place[s], i.column()) for s, i in zip(sources, before, strict=True)]
        self.changePersistentIndexList(before, after)
        self.layoutChanged.emit()


class Table(QTableView):
    """A view of `Rows`: sortable, one row selected at a time, Tab leaves it."""

    def __init__(self, rows: Rows, *, stretch: int = 0, sortable: bool = True) -> None:
        super().__init__()
        self.rows = rows
        self.setModel(rows)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
        if sortable:
            self.setSortingEnabled(True)
            header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
            header.setSortIndicatorClearable(True)

    def fit_height(self) -> None:
        """Takes exactly the height of its rows."""
        height = ROW_HEIGHT * self.rows.rowCount() + self.horizontalHeader().sizeHint().height() + 4
        self.setFixedHeight(height)
