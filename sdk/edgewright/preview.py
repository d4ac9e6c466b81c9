"""A case's input, small enough to travel in a report: a picture where it is one, else its first numbers."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device import Port

MOST_PIXELS = 96  # along a side
LEAST_PIXELS = 4
MOST_NUMBERS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """One input of one case.

    Attributes:
        shape: Of the whole input, without the batch.
        picture: A PNG as a data URI: an image of one or three channels, or a table of numbers as brightness;
            empty where it is neither.
        numbers: Else the first values, four digits of each.
    """

    shape: tuple[int, ...]
    picture: str = ""
    numbers: tuple[float, ...] = ()


def preview(value: npt.NDArray[Any], port: Port) -> Preview:
    """What a person is shown of an input.

    Args:
        value: One sample, without the batch.
        port: The input, whose range is black to white.
    """
    shape = tuple(int(n) for n in value.shape)
    pixels = _pixels(value, port) if value.dtype.kind == "f" else None
    if pixels is None:
        first = value.ravel()[:MOST_NUMBERS].astype(np.float64)
        return Preview(shape=shape, numbers=tuple(float(f"{n:.4g}") for n in first))
    return Preview(shape=shape, picture="data:image/png;base64," + base64.b64encode(_png(pixels)).decode())


def _pixels(value: npt.NDArray[Any], port: Port) -> npt.NDArray[np.uint8] | None:
    """(rows, columns, 1 or 3), or None where the value is no picture."""
    if value.ndim == 2:
        value = value[None]
    if value.ndim != 3 or value.shape[0] not in (1, 3) or min(value.shape[1:]) < LEAST_PIXELS:
        return None
    step = -(-max(value.shape[1:]) // MOST_PIXELS)
    rows, columns = (n // step * step for n in value.shape[1:])
    blocks = value[:, :rows, :columns].reshape(len(value), rows // step, step, columns // step, step)
    span = (port.maximum - port.minimum) or 1.0
    bright = np.clip((blocks.mean(axis=(2, 4)) - port.minimum) / span, 0, 1)
    return np.ascontiguousarray(np.rint(255 * bright).astype(np.uint8).transpose(1, 2, 0))


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Gray or RGB of 8 bits, without filters (PNG specification, third edition, sections 5, 9 and 11)."""
    rows, columns, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if channels == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
