"""Waiting for other processes, with a deadline."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Polls a condition until it holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        select.select([], [], [], 0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody reaped yet counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
