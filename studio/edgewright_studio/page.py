"""A page of the studio: a header, a banner, and an empty, a busy, an error and a content state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from PySide6.QtCore import QPointF, Qt, Signal
from PySide6.QtGui import QAction, QGuiApplication, QPainter, QPaintEvent, QPalette, QPen, QWheelEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from edgewright_studio.errors import Problem
from edgewright_studio.theme import Glyph

State = Literal["empty", "busy", "error", "content"]
MARGIN = 28


def label(text: str = "", role: str = "", *, wrap: bool = False) -> QLabel:
    """A plain-text label in one of the style sheet's roles."""
    result = QLabel(text)
    result.setTextFormat(Qt.TextFormat.PlainText)
    result.setProperty("role", role)
    result.setWordWrap(wrap)
    return result


def caption(text: str) -> QLabel:
    """The label of a form's row, level with the text of the field beside it."""
    result = label(text, "muted")
    result.setContentsMargins(0, 3, 0, 0)
    return result


def card(role: str = "card") -> QFrame:
    """A frame in one of the style sheet's roles."""
    result = QFrame()
    result.setProperty("role", role)
    return result


def button(action: QAction, *, primary: bool = False) -> QPushButton:
    """A push button that follows an action."""
    result = QPushButton(action.iconText())
    result.setToolTip(action.toolTip())
    result.setEnabled(action.isEnabled())
    result.setDefault(False)
    result.setAutoDefault(False)
    if primary:
        result.setProperty("role", "primary")
    action.changed.connect(lambda: result.setEnabled(action.isEnabled()))
    result.clicked.connect(action.trigger)
    return result


def restyle(widget: QWidget, **properties: str) -> None:
    """Sets style sheet properties on a widget that is already shown."""
    for name, value in properties.items():
        widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


class Choice(QComboBox):
    """A combo box whose arrow has the palette's colour; the mouse wheel does not change it."""

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draws the arrow over the rest."""
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self.palette().color(QPalette.ColorRole.Dark), 1.6))
        x, y = self.width() - 16.0, self.height() / 2.0
        painter.drawPolyline([QPointF(x - 4, y - 2), QPointF(x, y + 2), QPointF(x + 4, y - 2)])

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Leaves the wheel to the page."""
        event.ignore()


class Banner(QFrame):
    """A remark above a page's content: a success with one button, or a problem with its details to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "banner")
        self._glyph = Glyph("done", 22, QPalette.ColorRole.Highlight)
        self._title = label(role="heading", wrap=True)
        self._text = label(role="muted", wrap=True)
        self._copy = QPushButton("Copy details")
        self._copy.clicked.connect(self._copy_details)
        self._action_slot = QHBoxLayout()
        self._action_button: QPushButton | None = None
        self._problem: Problem | None = None
        words = QVBoxLayout()
        words.setSpacing(3)
        words.addWidget(self._title)
        words.addWidget(self._text)
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 12, 14, 12)
        row.setSpacing(14)
        row.addWidget(self._glyph, 0, Qt.AlignmentFlag.AlignTop)
        row.addLayout(words, 1)
        row.addLayout(self._action_slot)
        row.addWidget(self._copy)
        self.hide()

    def show_problem(self, problem: Problem) -> None:
        """Says what failed, why, and the next step."""
        self._problem = problem
        self._glyph.show_icon("error", QPalette.ColorRole.BrightText)
        self._fill(problem.what, f"{problem.why}\n{problem.next_step}", tone="bad")
        self._copy.show()

    def show_success(self, title: str, text: str, action: QAction) -> None:
        """Says what is done, with one thing to do next."""
        self._problem = None
        self._glyph.show_icon("done", QPalette.ColorRole.Highlight)
        self._fill(title, text, tone="")
        self._action_button = button(action, primary=True)
        self._action_slot.addWidget(self._action_button)
        self._copy.hide()

    def _fill(self, title: str, text: str, *, tone: str) -> None:
        if self._action_button is not None:
            self._action_slot.removeWidget(self._action_button)
            self._action_button.deleteLater()
            self._action_button = None
        self._title.setText(title)
        self._text.setText(text)
        restyle(self, tone=tone)
        self.show()

    def _copy_details(self) -> None:
        if self._problem is not None:
            QGuiApplication.clipboard().setText(self._problem.as_text())


class Page(QWidget):
    """A header above one of four states.

    Attributes:
        selected: Emitted with a title and (label, value) rows for the inspector.
    """

    selected = Signal(str, object)

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self.title = label(title, "title")
        self.subtitle = label(role="muted")
        self.subtitle.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.chip = label(role="chip")
        self.chip.hide()
        self.header_buttons = QHBoxLayout()
        self.header_buttons.setSpacing(8)
        self.banner = Banner()
        self._stack = QStackedWidget()
        self._states: dict[State, QWidget] = {}
        self._busy_text = label(role="heading")
        self._busy_bar = QProgressBar()
        self._busy_bar.setTextVisible(False)
        self._busy_bar.setFixedWidth(280)
        self._problem = Banner()
        self._add("busy", self._make_busy())
        self._add("error", _centred(self._problem, width=640))

        line = QHBoxLayout()
        line.setSpacing(12)
        line.addWidget(self.title)
        line.addWidget(self.chip, 0, Qt.AlignmentFlag.AlignVCenter)
        line.addStretch(1)
        line.addLayout(self.header_buttons)
        column = QVBoxLayout(self)
        column.setContentsMargins(MARGIN, 22, MARGIN, 20)
        column.setSpacing(4)
        column.addLayout(line)
        column.addWidget(self.subtitle)
        column.addSpacing(10)
        column.addWidget(self.banner)
        column.addSpacing(6)
        column.addWidget(self._stack, 1)

    @property
    def state(self) -> State:
        """Which of the four is shown."""
        return next(name for name, w in self._states.items() if w is self._stack.currentWidget())

    def set_empty(self, icon: str, title: str, text: str, actions: Sequence[QAction]) -> None:
        """Says what the empty state shows; the first action is the main one."""
        self._add("empty", EmptyState(icon, title, text, actions))

    def set_content(self, content: QWidget) -> None:
        """Gives the page its content."""
        self._add("content", content)

    def show_empty(self) -> None:
        """Shows what to do first."""
        self._show("empty")

    def show_busy(self, text: str) -> None:
        """Shows that something is on its way."""
        self._busy_text.setText(text)
        self._busy_bar.setRange(0, 0)
        self._show("busy")

    def show_error(self, problem: Problem) -> None:
        """Shows the problem; over the last good content, if there is some."""
        if self.has_content():
            self.banner.show_problem(problem)
            self._show("content")
        else:
            self._problem.show_problem(problem)
            self._show("error")

    def show_content(self) -> None:
        """Shows the content, without a banner."""
        self.banner.hide()
        self._show("content")

    def has_content(self) -> bool:
        """True once there is good data to show."""
        raise NotImplementedError

    def _show(self, state: State) -> None:
        # A bar that is not seen must not go on drawing itself.
        if state != "busy":
            self._busy_bar.setRange(0, 1)
        self._stack.setCurrentWidget(self._states[state])

    def _add(self, state: State, widget: QWidget) -> None:
        if state in self._states:
            old = self._states[state]
            self._stack.removeWidget(old)
            old.deleteLater()
        self._states[state] = widget
        self._stack.addWidget(widget)

    def _make_busy(self) -> QWidget:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setSpacing(14)
        column.addWidget(self._busy_text, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self._busy_bar, 0, Qt.AlignmentFlag.AlignHCenter)
        return _centred(inner, width=420)


class EmptyState(QFrame):
    """What a page shows before there is anything: an icon, a sentence, and what to do."""

    def __init__(self, icon: str, title: str, text: str, actions: Sequence[QAction]) -> None:
        super().__init__()
        self.setProperty("role", "drop")
        column = QVBoxLayout(self)
        column.setContentsMargins(40, 40, 40, 40)
        column.setSpacing(10)
        centre = Qt.AlignmentFlag.AlignHCenter
        column.addStretch(1)
        column.addWidget(Glyph(icon, 56, QPalette.ColorRole.Highlight), 0, centre)
        column.addSpacing(8)
        column.addWidget(label(title, "title"), 0, centre)
        words = label(text, "muted", wrap=True)
        words.setAlignment(centre)
        words.setFixedWidth(460)
        # Not centred by the column: an aligned widget is not asked how high its wrapped text is.
        middle = QHBoxLayout()
        middle.addStretch(1)
        middle.addWidget(words)
        middle.addStretch(1)
        column.addLayout(middle)
        column.addSpacing(12)
        row = QHBoxLayout()
        row.setSpacing(10)
        row.addStretch(1)
        for index, action in enumerate(actions):
            row.addWidget(button(action, primary=index == 0))
        row.addStretch(1)
        column.addLayout(row)
        column.addStretch(1)


def _centred(widget: QWidget, *, width: int) -> QWidget:
    outer = QWidget()
    widget.setMaximumWidth(width)
    row = QHBoxLayout()
    row.addStretch(1)
    row.addWidget(widget, 10)
    row.addStretch(1)
    column = QVBoxLayout(outer)
    column.addStretch(2)
    column.addLayout(row)
    column.addStretch(3)
    return outer
