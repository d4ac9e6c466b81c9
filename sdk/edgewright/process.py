"""A program in a process of its own that speaks in JSON lines, and is always reaped."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgewright.errors import DemoError

STOP_TIMEOUT_S = 10.0


class Program:
    """Starts one of Edgewright's commands with `--json -` and reads what it says.

    Use it as a context manager: leaving ends the process (SIGTERM, then SIGKILL) and waits for it.

    Args:
        name: The command, such as "edgewright-agent".
        arguments: Its arguments; `--json -` is added.
        log: Where its standard error goes.
    """

    def __init__(self, name: str, arguments: Sequence[str | Path], *, log: Path) -> None:
        self.name = name
        self._log = log
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        command = [_find(name), *map(str, arguments), "--json", "-"]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait_for(
        self,
        fits: Callable[[dict[str, Any]], bool],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> dict[str, Any]:
        """The first line from now on that fits.

        Raises:
            DemoError: The program ended, or said nothing that fits in time.
        """
        deadline = clock() + timeout_s
        last: dict[str, Any] | None = None
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - clock(), 0))
            except queue.Empty:
                raise DemoError(
                    f"{self.name} did not get there within {timeout_s:g} s; the last it said: {last}"
                ) from None
            if line is None:
                self._lines.put(None)
                raise DemoError(f"{self.name} ended early: {self._log.read_text().strip() or 'no word why'}")
            if fits(line):
                return line
            last = line

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                try:
                    self._lines.put(json.loads(line))
                except ValueError:
                    self._lines.put({"event": "not JSON", "text": line.rstrip()})
        self._lines.put(None)


def _find(name: str) -> str:
    """The command that belongs to this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise DemoError(f"{name}: not found beside {sys.executable} or on PATH; install edgewright with pip")
    return found
