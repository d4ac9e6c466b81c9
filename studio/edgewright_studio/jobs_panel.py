"""The jobs pane: every job with its progress and time to go, and the log of the selected one."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent, QPalette
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QPlainTextEdit,
    QProgressBar,
    QScrollArea,
    QSplitter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from edgewright_studio import units
from edgewright_studio.jobs import Cancelled, Event, Failed, Finished, Job, Logged, Progressed, Started
from edgewright_studio.page import label, restyle
from edgewright_studio.run_card import step_title, time_text
from edgewright_studio.theme import Glyph, fixed_font

LOG_LINES = 5000
KEPT_JOBS = 20


class JobsPanel(QWidget):
    """Newest job first.

    Attributes:
        cancel_wanted: A person wants this job stopped.
    """

    cancel_wanted = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("jobs")
        self._rows: list[_Row] = []
        self._selected: _Row | None = None
        self._column = QVBoxLayout()
        self._column.setContentsMargins(12, 10, 6, 10)
        self._column.setSpacing(8)
        self._none = label("No job yet. Start one, and it appears here.", "muted")
        self._none.setContentsMargins(6, 6, 6, 6)
        self._column.addWidget(self._none)
        self._column.addStretch(1)
        holder = QWidget()
        holder.setLayout(self._column)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        area.setWidget(holder)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setTabChangesFocus(True)
        self.log.setMaximumBlockCount(LOG_LINES)
        self.log.setFont(fixed_font())
        self.log.setAccessibleName("Log of the selected job")
        self.log.setPlaceholderText("The log of the selected job.")
        right = QWidget()
        log_column = QVBoxLayout(right)
        log_column.setContentsMargins(6, 10, 12, 10)
        log_column.addWidget(self.log)
        splitter = QSplitter(Qt.Orientation.Horizontal)
        splitter.addWidget(area)
        splitter.addWidget(right)
        splitter.setStretchFactor(0, 5)
        splitter.setStretchFactor(1, 4)
        splitter.setChildrenCollapsible(False)
        outer = QHBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(splitter)

    def add(self, job: Job) -> None:
        """Shows a job that was just started, and selects it."""
        row = _Row(job)
        row.chosen.connect(lambda: self._select(row))
        row.cancel.clicked.connect(lambda: self.cancel_wanted.emit(job))
        self._rows.insert(0, row)
        self._column.insertWidget(0, row)
        self._none.hide()
        self._select(row)
        for old in [r for r in self._rows[KEPT_JOBS:] if r.job.end is not None]:
            self._rows.remove(old)
            self._column.removeWidget(old)
            old.deleteLater()

    def show_event(self, job: Job, event: Event) -> None:
        """Shows what happened to a job."""
        for row in self._rows:
            if row.job is job:
                row.show_event(event)
                if isinstance(event, Logged) and row is self._selected:
                    self.log.appendPlainText("\n".join(event.lines))

    def running(self) -> Job | None:
        """The selected job if it runs, else the newest that does."""
        rows = ([self._selected] if self._selected else []) + self._rows
        return next((r.job for r in rows if r.job.end is None), None)

    def jobs(self) -> tuple[Job, ...]:
        """Those shown, newest first."""
        return tuple(r.job for r in self._rows)

    def _select(self, row: _Row) -> None:
        self._selected = row
        for each in self._rows:
            restyle(each, selected="true" if each is row else "false")
        self.log.setPlainText("\n".join(row.lines))


class _Row(QFrame):
    """One job."""

    chosen = Signal()

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.setProperty("role", "job")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName(job.task.title)
        self.job = job
        self.lines: list[str] = []
        self._glyph = Glyph("running", 20, QPalette.ColorRole.Highlight)
        self._text = label("Starting…", "small")
        self._time = label(role="small")
        self._bar = QProgressBar()
        self._bar.setRange(0, 1000)
        self._bar.setTextVisible(False)
        self.cancel = QToolButton()
        self.cancel.setText("Cancel")
        self.cancel.setAccessibleName(f"Cancel {job.task.title}")
        self.cancel.setToolTip("Cancel this job and remove its partial output")
        head = QHBoxLayout()
        head.addWidget(label(job.task.title))
        head.addStretch(1)
        head.addWidget(self._time)
        words = QVBoxLayout()
        words.setSpacing(5)
        words.addLayout(head)
        words.addWidget(self._bar)
        words.addWidget(self._text)
        row = QHBoxLayout(self)
        row.setContentsMargins(12, 9, 10, 9)
        row.setSpacing(12)
        row.addWidget(self._glyph)
        row.addLayout(words, 1)
        row.addWidget(self.cancel)

    def show_event(self, event: Event) -> None:
        """Shows what happened."""
        match event:
            case Started():
                self._text.setText("Starting…")
            case Progressed():
                self._bar.setValue(round(1000 * event.overall))
                self._text.setText("Cancelling…" if self.job.cancelling else step_title(event.step))
                self._time.setText(time_text(self.job))
            case Logged():
                self.lines = [*self.lines, *event.lines][-LOG_LINES:]
            case Finished():
                self._end("done", QPalette.ColorRole.Highlight, "Done", tone="good")
                self._bar.setValue(1000)
            case Failed():
                self._end("failed", QPalette.ColorRole.BrightText, event.problem.what, tone="bad")
            case Cancelled():
                self._end("cancelled", QPalette.ColorRole.Dark, "Cancelled; partial output removed", tone="")

    def _end(self, icon: str, color: QPalette.ColorRole, text: str, *, tone: str) -> None:
        self._glyph.show_icon(icon, color)
        self._text.setText(text)
        self._time.setText(units.duration(self.job.elapsed_s))
        restyle(self._bar, tone=tone)
        self.cancel.hide()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Selects it."""
        self.chosen.emit()
        super().mousePressEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Selects it by Return or Space."""
        if event.key() in {Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space}:
            self.chosen.emit()
        else:
            super().keyPressEvent(event)

    def event(self, event: QEvent) -> bool:
        """Selects it when the keyboard comes to it."""
        if event.type() == QEvent.Type.FocusIn:
            self.chosen.emit()
        return super().event(event)
