"""Writes that a power cut leaves either undone or done: temporary file, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Makes files that another library wrote into a folder outlive a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes or replaces a file in one step; makes the folders above it.

    Args:
        path: The file.
        data: All of its bytes.
        mode: Permission bits; they hold from the first byte on.
    """
    make_folders(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105 - the temporary file is a plain name
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move_file(source: Path, path: Path) -> None:
    """Moves a finished file to its place on the same disk, syncing its bytes first.

    Args:
        source: A file that nobody writes any more.
        path: Where it goes; an older file there is replaced.
    """
    make_folders(path.parent)
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(path)
    sync_folder(path.parent)


def make_folders(folder: Path, *, mode: int = 0o755) -> None:
    """Makes a folder and those above it, each name synced."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)
