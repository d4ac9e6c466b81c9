"""What the studio remembers between two runs: typed fields over QSettings.

A stored value that no longer makes sense counts as not stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from PySide6.QtCore import QByteArray, QSettings

from edgewright_studio.theme import Mode

ORGANISATION = "Edgewright"
APPLICATION = "Studio"


class Settings:
    """Typed access; each property is stored as soon as it is set."""

    def __init__(self, store: QSettings) -> None:
        self._store = store

    @property
    def theme(self) -> Mode:
        """Which scheme; "system" follows the desktop."""
        stored = self._store.value("theme")
        return next((m for m in get_args(Mode) if m == stored), "system")

    @theme.setter
    def theme(self, value: Mode) -> None:
        self._store.setValue("theme", value)

    @property
    def last_folder(self) -> Path:
        """Where file dialogs begin; the home directory at first, or when the folder is gone."""
        stored = self._store.value("last_folder")
        folder = Path(stored) if isinstance(stored, str) and stored else Path.home()
        return folder if folder.is_dir() else Path.home()

    @last_folder.setter
    def last_folder(self, value: Path) -> None:
        self._store.setValue("last_folder", str(value))

    @property
    def geometry(self) -> QByteArray:
        """Place and size of the window, as Qt wrote it; empty at first."""
        return self._bytes("geometry")

    @geometry.setter
    def geometry(self, value: QByteArray) -> None:
        self._store.setValue("geometry", value)

    @property
    def panes(self) -> QByteArray:
        """State of the docks, as Qt wrote it; empty at first."""
        return self._bytes("panes")

    @panes.setter
    def panes(self, value: QByteArray) -> None:
        self._store.setValue("panes", value)

    def _bytes(self, key: str) -> QByteArray:
        stored = self._store.value(key)
        return stored if isinstance(stored, QByteArray) else QByteArray()
