"""The child process of a job: `python -m edgewright_studio.worker EVENTS_FD`, started by `jobs.Job` alone.

The first line of standard input is the order. No more comes, and its end means that the studio died.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgewright_studio.errors import Problem, StudioError

NICENESS = 5


class Work:
    """What a task is given: a scratch directory, and a way to say how far it is.

    Attributes:
        scratch: An empty directory that is removed when the job ends, however it ends.
    """

    def __init__(self, scratch: Path, events: BinaryIO) -> None:
        self.scratch = scratch
        self._events = events
        self._ends: dict[str, tuple[float, float]] = {}
        self._overall = 0.0
        self._shown = ""
        self._began_s = time.monotonic()

    def plan(self, weights: Mapping[str, float]) -> None:
        """Says the steps to come in order, each with its usual share of the time, in any unit."""
        whole = sum(weights.values())
        begin = 0.0
        for step, weight in weights.items():
            self._ends[step] = (begin / whole, weight / whole)
            begin += weight

    def progress(self, step: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Says how far a step is; one that the plan does not name counts as part of the step before it."""
        if step in self._ends:
            begin, share = self._ends[step]
            self._overall = max(self._overall, begin + share * (done / total if total else 1.0))
        if step != self._shown:
            self._shown = step
            sys.stdout.write(f"{time.monotonic() - self._began_s:7.1f} s  {step}\n")
        self._send(
            type="progressed",
            step=step,
            done=done,
            total=total,
            overall=self._overall,
            metrics={k: float(v) for k, v in (metrics or {}).items()},
        )

    def _send(self, **event: Any) -> None:
        self._events.write(json.dumps(event).encode() + b"\n")
        self._events.flush()

    def finished(self, result: Mapping[str, Any]) -> None:
        """Gives the result."""
        self._send(type="finished", result=result)

    def failed(self, problem: Problem) -> None:
        """Gives the reason why there is none."""
        self._send(type="failed", problem=problem.to_json())


def main() -> None:
    """Runs one task and exits."""
    order = json.loads(_first_line())
    scratch = Path(order["scratch"])
    threading.Thread(target=_stop_with_the_studio, args=(scratch,), daemon=True).start()
    # The window must stay smooth while this computes.
    os.nice(NICENESS)
    with os.fdopen(int(sys.argv[1]), "wb") as events:
        work = Work(scratch, events)
        try:
            module, _, name = order["function"].partition(":")
            work.finished(getattr(importlib.import_module(module), name)(work, **order["arguments"]))
        except Exception as error:  # whatever it is, the window says it
            work.failed(explain(error))


def explain(error: Exception) -> Problem:
    """What a person is told about an exception."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, StudioError):
        p = error.problem
        return Problem(what=p.what, why=p.why, next_step=p.next_step, details=details)
    if isinstance(error, MemoryError):
        return Problem(
            what="The job ran out of memory",
            why=str(error) or "an allocation failed",
            next_step="Close other programs, or use a smaller model or fewer samples.",
            details=details,
        )
    if isinstance(error, OSError) and error.filename:
        return Problem(
            what=f"Cannot use {error.filename}",
            why=error.strerror or str(error),
            next_step="Check that it is there, that you may write to it, and that the disk is not full.",
            details=details,
        )
    return Problem(
        what="The job failed",
        why=str(error) or type(error).__name__,
        next_step="Mend what the message names and start again; Copy details has the whole story.",
        details=details,
    )


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or b"\n"
    return line


def _stop_with_the_studio(scratch: Path) -> None:
    # Not through sys.stdin: its lock would be held by this thread when the interpreter shuts down.
    while os.read(0, 1):
        pass
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
