"""Samples in files: what the commands read from an .npz."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgewright.errors import ExportError


def samples_in(path: Path) -> Any:
    """The samples in an .npz: x, or x_train, with nothing but labels beside it; else arrays by input name."""
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ExportError(f"{path}: one array alone; save it with np.savez(FILE, x=...)")
        with loaded as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ExportError(f"{path}: not an .npz of plain arrays ({error})") from None
    samples = [name for name in ("x", "x_train", "x_validation") if name in arrays]
    others = arrays.keys() - {"x", "x_train", "x_validation", "y", "y_train", "y_validation"}
    return arrays[samples[0]] if samples and not others else arrays


def labelled_in(path: Path) -> tuple[Any, Any]:
    """The samples in an .npz, and the labels beside them, or None."""
    samples = samples_in(path)
    with np.load(path, allow_pickle=False) as archive:
        names = [n for n in ("y", "y_train", "y_validation") if n in archive.files]
        labels = archive[names[0]] if names else None
    if isinstance(samples, dict):
        samples = {n: v for n, v in samples.items() if n not in names}
    return samples, labels
