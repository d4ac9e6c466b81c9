"""The inspector: details of whatever is selected on the page."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QScrollArea, QVBoxLayout, QWidget

from edgewright_studio.page import label


class Inspector(QScrollArea):
    """A title and (label, value) rows; the values can be selected and copied."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("inspector")
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(250)
        self.show_nothing()

    def show_nothing(self) -> None:
        """Says how to fill it."""
        self.show_rows("Nothing selected", (("", "Select a row of a table, or a field of the recipe."),))

    def show_rows(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Shows the details of one thing."""
        body = QWidget()
        column = QVBoxLayout(body)
        column.setContentsMargins(16, 14, 16, 16)
        column.setSpacing(2)
        column.addWidget(label(title, "heading", wrap=True))
        column.addSpacing(8)
        for name, value in rows:
            if name:
                column.addWidget(label(name, "small"))
            text = label(_breakable(value), wrap=True)
            text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            column.addWidget(text)
            column.addSpacing(9)
        column.addStretch(1)
        self.setWidget(body)


def _breakable(text: str) -> str:
    """Lets long words, such as digests and paths, break across lines."""
    return " ".join("\u200b".join(w[i : i + 16] for i in range(0, len(w), 16)) for w in text.split(" "))
