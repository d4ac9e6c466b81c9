"""How the studio looks: Fusion with two explicit palettes, a small style sheet, and tinted icons.

Nothing is taken from the desktop but the choice between light and dark, so it looks the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from PySide6.QtCore import QByteArray, QEvent, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QIcon, QPainter, QPalette, QPixmap
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtWidgets import QApplication, QLabel, QStyleFactory, QWidget

Mode = Literal["system", "light", "dark"]
FONTS = ("Inter", "Noto Sans", "Segoe UI", "SF Pro Text", "DejaVu Sans")
POINT_SIZE = 10
# Of toolbar and rail, and twice that for dense screens.
ICON_SIZES = (24, 48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Colors:
    """One scheme; every value is a hex colour."""

    window: str
    surface: str
    raised: str
    border: str
    text: str
    muted: str
    accent: str
    on_accent: str
    accent_soft: str
    good: str
    bad: str
    bad_soft: str
    bad_border: str


LIGHT = Colors(
    window="#f4f5f8",
    surface="#ffffff",
    raised="#eceef3",
    border="#d9dde5",
    text="#1a1f2b",
    muted="#5d6678",
    accent="#3a5bd9",
    on_accent="#ffffff",
    accent_soft="#e6ebfc",
    good="#1b7f4b",
    bad="#b3261e",
    bad_soft="#fdf0ef",
    bad_border="#efc3c0",
)
DARK = Colors(
    window="#14171d",
    surface="#1c2029",
    raised="#272c37",
    border="#333a47",
    text="#e7eaf0",
    muted="#9aa4b5",
    accent="#8ba3ff",
    on_accent="#10131a",
    accent_soft="#283252",
    good="#5fd096",
    bad="#ff8f86",
    bad_soft="#34211f",
    bad_border="#6b3430",
)


def colors_for(mode: Mode, application: QApplication) -> Colors:
    """The scheme of a mode; "system" asks the desktop."""
    if mode == "system":
        dark = application.styleHints().colorScheme() is Qt.ColorScheme.Dark
        return DARK if dark else LIGHT
    return DARK if mode == "dark" else LIGHT


def apply(application: QApplication, colors: Colors) -> None:
    """Gives the whole application a scheme."""
    if not application.styleSheet():
        application.setStyle(QStyleFactory.create("Fusion"))
        application.setFont(_font())
    sheet = style_sheet(colors)
    # Setting it again would style every widget anew.
    if application.styleSheet() != sheet:
        application.setPalette(palette(colors))
        application.setStyleSheet(sheet)


def palette(colors: Colors) -> QPalette:
    """The palette of a scheme."""
    result = QPalette()
    role = QPalette.ColorRole
    everywhere = {
        role.Window: colors.window,
        role.WindowText: colors.text,
        role.Base: colors.surface,
        role.AlternateBase: colors.window,
        role.Text: colors.text,
        role.PlaceholderText: colors.muted,
        role.Button: colors.surface,
        role.ButtonText: colors.text,
        role.BrightText: colors.bad,
        role.Highlight: colors.accent,
        role.HighlightedText: colors.on_accent,
        role.Link: colors.accent,
        role.LinkVisited: colors.accent,
        role.ToolTipBase: colors.raised,
        role.ToolTipText: colors.text,
        role.Light: colors.surface,
        role.Midlight: colors.raised,
        role.Mid: colors.border,
        role.Dark: colors.muted,
        role.Shadow: colors.border,
        role.Accent: colors.accent,
    }
    for each, value in everywhere.items():
        result.setColor(each, QColor(value))
    for each in (role.WindowText, role.Text, role.ButtonText, role.HighlightedText):
        result.setColor(QPalette.ColorGroup.Disabled, each, _mixed(colors.muted, colors.window, 0.65))
    result.setColor(QPalette.ColorGroup.Disabled, role.Highlight, QColor(colors.border))
    return result


def style_sheet(colors: Colors) -> str:
    """The style sheet of a scheme."""
    package = resources.files("edgewright_studio")
    template = package.joinpath("studio.qss").read_text("utf-8")
    check = package.joinpath("icons", "check-dark.svg" if colors is DARK else "check-light.svg")
    template = template.replace("@check@", str(check).replace("\\", "/"))
    for name in Colors.__dataclass_fields__:
        template = template.replace(f"@{name}@", getattr(colors, name))
    return template


def icon(name: str, colors: Colors, *, checkable: bool) -> QIcon:
    """One of the icons in `icons/`, in the scheme's colours: dim when disabled, accented when checked."""
    result = QIcon()
    disabled = _mixed(colors.muted, colors.window, 0.55).name()
    states = (QIcon.State.Off, QIcon.State.On) if checkable else (QIcon.State.Off,)
    for size in ICON_SIZES:
        extent = QSize(size, size)
        for state in states:
            tint = colors.accent if state is QIcon.State.On else colors.text
            result.addPixmap(pixmap(name, tint, extent), QIcon.Mode.Normal, state)
            result.addPixmap(pixmap(name, disabled, extent), QIcon.Mode.Disabled, state)
    return result


def pixmap(name: str, color: str, size: QSize, scale: float = 1.0) -> QPixmap:
    """An icon in one colour."""
    result = QPixmap(size * scale)
    result.fill(Qt.GlobalColor.transparent)
    painter = QPainter(result)
    QSvgRenderer(QByteArray(_svg(name).replace("#000000", color).encode())).render(painter)
    painter.end()
    result.setDevicePixelRatio(scale)
    return result


class Glyph(QLabel):
    """An icon as a label, in a colour of the palette that it keeps to when the scheme changes."""

    def __init__(self, name: str, size: int, role: QPalette.ColorRole, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name, self._size, self._role = name, size, role
        self.setFixedSize(size, size)
        self._draw()

    def show_icon(self, name: str, role: QPalette.ColorRole) -> None:
        """Shows another icon."""
        self._name, self._role = name, role
        self._draw()

    def changeEvent(self, event: QEvent) -> None:
        """Draws anew in the colours of a new palette."""
        if event.type() == QEvent.Type.PaletteChange:
            self._draw()
        super().changeEvent(event)

    def _draw(self) -> None:
        color = QApplication.palette().color(self._role).name()
        extent = QSize(self._size, self._size)
        self.setPixmap(pixmap(self._name, color, extent, self.devicePixelRatioF()))


def fixed_font() -> QFont:
    """The font of logs and digests."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    font.setPointSize(POINT_SIZE - 1)
    return font


def _font() -> QFont:
    there = set(QFontDatabase.families())
    font = QFont(next((f for f in FONTS if f in there), QApplication.font().family()), POINT_SIZE)
    font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    return font


@cache
def _svg(name: str) -> str:
    return resources.files("edgewright_studio").joinpath("icons", f"{name}.svg").read_text("utf-8")


def _mixed(a: str, b: str, part: float) -> QColor:
    """`part` of colour `a`, the rest of `b`."""
    first, second = QColor(a), QColor(b)
    channels = zip(first.getRgb()[:3], second.getRgb()[:3], strict=True)  # type: ignore[index]
    return QColor(*(round(part * x + (1 - part) * y) for x, y in channels))
