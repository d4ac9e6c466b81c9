"""Figures as people read them."""

from __future__ import annotations


def size(size_bytes: int) -> str:
    """Bytes in the largest unit that gives at least 1."""
    value = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as "8 s", "1 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
