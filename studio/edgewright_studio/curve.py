"""A small line chart of one figure over a job's progress, drawn with QPainter alone."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from PySide6.QtWidgets import QWidget

MAX_POINTS = 2000


class Curve(QWidget):
    """Values in the order they came; each step's values form a line of their own.

    Args:
        title: What the figure is.
        form: How its newest value is printed.
        each_own_scale: Whether every step fills the height, as where their figures cannot be compared.
    """

    def __init__(self, title: str, form: str, *, each_own_scale: bool) -> None:
        super().__init__()
        self._each_own_scale = each_own_scale
        self._title = title
        self._form = form
        self._lines: list[tuple[str, list[float]]] = []
        self.setMinimumHeight(130)

    def clear(self) -> None:
        """Forgets all values."""
        self._lines.clear()
        self.update()

    def add(self, step: str, value: float) -> None:
        """Adds a value; the oldest go when there are thousands."""
        if not self._lines or self._lines[-1][0] != step:
            self._lines.append((step, []))
        self._lines[-1][1].append(value)
        while sum(len(values) for _, values in self._lines) > MAX_POINTS:
            self._lines[0][1].pop(0)
            if not self._lines[0][1]:
                self._lines.pop(0)
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draws grid, lines, the title, and the newest value."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette = self.palette()
        muted = palette.color(QPalette.ColorRole.Dark)
        grid = palette.color(QPalette.ColorRole.Mid)
        area = QRectF(self.rect()).adjusted(0, 26, -1, -20)
        values = [v for _, line in self._lines for v in line]
        painter.setPen(muted)
        painter.drawText(QRectF(0, 0, self.width(), 20), Qt.AlignmentFlag.AlignLeft, self._title)
        if not values:
            painter.setPen(muted)
            painter.drawText(area, Qt.AlignmentFlag.AlignCenter, "appears when training starts")
            return
        painter.setPen(QPen(grid, 1))
        for part in (0.0, 0.5, 1.0):
            y = area.top() + part * area.height()
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
        painter.setPen(palette.color(QPalette.ColorRole.WindowText))
        painter.drawText(
            QRectF(0, 0, self.width(), 20), Qt.AlignmentFlag.AlignRight, self._form.format(values[-1])
        )
        place = 0
        for index, (step, line) in enumerate(self._lines):
            points = QPolygonF()
            scale = line if self._each_own_scale else values
            low = min(scale)
            span = max(scale) - low or 1.0
            for value in line:
                x = area.left() + area.width() * place / max(len(values) - 1, 1)
                points.append(QPointF(x, area.bottom() - (value - low) / span * area.height()))
                place += 1
            if index:
                painter.setPen(QPen(grid, 1, Qt.PenStyle.DashLine))
                painter.drawLine(
                    QPointF(points.at(0).x(), area.top()), QPointF(points.at(0).x(), area.bottom())
                )
            self._draw(painter, points, palette.color(QPalette.ColorRole.Highlight))
            painter.setPen(muted)
            room = QRectF(
                points.at(0).x(),
                area.bottom() + 4,
                max(points.at(points.size() - 1).x() - points.at(0).x() - 6, 0),
                16,
            )
            if painter.fontMetrics().horizontalAdvance(step) <= room.width():
                painter.drawText(room, Qt.AlignmentFlag.AlignLeft, step)

    @staticmethod
    def _draw(painter: QPainter, points: QPolygonF, color: QColor) -> None:
        if points.size() == 1:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(color)
            painter.drawEllipse(points.at(0), 2.5, 2.5)
            painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(
            QPen(color, 2.0, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin)
        )
        painter.drawPolyline(points)
