"""Jobs: work in a child process, seen from the window as a stream of small frozen events.

Qt-free, and without threads: `Job.poll` never blocks, so a timer in the window can call it. The child
(`worker.py`) sends events as JSON lines over a pipe; what it and its libraries print comes over another.
Its standard input is a lifeline: when the studio dies, however it dies, the child sees its end and stops.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewright_studio.errors import Problem, TaskError

GRACE_S = 2.0
_READ_BYTES = 1 << 16
_LOG_LINES_KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a job does.

    Attributes:
        title: For people.
        function: "module:name" of a function in `tasks.py` style: it takes a `worker.Work` and the arguments.
        arguments: JSON data, passed by keyword.
        scratch_in: Directory that the job's scratch directory is made in; None is the system's. A task that
            ends with a rename to its destination needs both on one disk.
    """

    title: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scratch_in: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The child process runs."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """One step moved on.

    Attributes:
        step: Its name.
        done: Units done in this step.
        total: Units in this step.
        overall: 0..1 of the whole job; never goes back.
        metrics: Figures so far, such as a loss.
    """

    step: str
    done: int
    total: int
    overall: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Lines that the job printed."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The job is done; its output is in place."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job stopped by itself; its partial output is gone."""

    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The job was stopped by a person; its partial output is gone."""


Event = Started | Progressed | Logged | Finished | Failed | Cancelled
End = Finished | Failed | Cancelled


class Job:
    """A running task. Made is started; the last event of `poll` is an `End`, after the child has been reaped.

    Raises:
        TaskError: The child process cannot be started.
    """

    def __init__(self, task: Task, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.task = task
        self.end: End | None = None
        self.progress: Progressed | None = None
        self._clock = clock
        self._started_s = clock()
        self._kill_at_s: float | None = None
        self._said: Finished | Failed | None = None
        self._tail: deque[str] = deque(maxlen=_LOG_LINES_KEPT)
        self._scratch: Path | None = None
        events_fd, child_events_fd = os.pipe()
        log_fd, child_log_fd = os.pipe()
        self._events = _Lines(events_fd, keep_cut=False)
        self._log = _Lines(log_fd, keep_cut=True)
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix=".edgewright-job-", dir=task.scratch_in))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", "edgewright_studio.worker", str(child_events_fd)],
                stdin=subprocess.PIPE,
                stdout=child_log_fd,
                stderr=child_log_fd,
                pass_fds=(child_events_fd,),
                start_new_session=True,
            )
        except OSError as error:
            self._clean()
            raise TaskError(
                f"Cannot start “{task.title}”",
                why=error.strerror or str(error),
                next_step="Check free memory and disk space, then try again.",
            ) from error
        finally:
            os.close(child_events_fd)
            os.close(child_log_fd)
        assert self._process.stdin is not None
        order = {
            "function": task.function,
            "arguments": dict(task.arguments),
            "scratch": str(self._scratch),
        }
        # A child that is gone already shows in the first poll.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        self._first: tuple[Event, ...] = (Started(pid=self._process.pid),)

    @property
    def cancelling(self) -> bool:
        """True from `cancel` on."""
        return self._kill_at_s is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds to go, judged by the progress so far; None while that says too little."""
        if self.progress is None or self.progress.overall < 0.03:
            return None
        return self.elapsed_s * (1 - self.progress.overall) / self.progress.overall

    def poll(self) -> tuple[Event, ...]:
        """What happened since the last call; () after the end. Never blocks.

        Of several `Progressed` of one step only the last is given.
        """
        if self.end is not None:
            return ()
        events, self._first = list(self._first), ()
        # Asked before reading: what is in the pipes then is all there will be.
        exited = self._has_exited()
        events += self._read(all_of_it=exited)
        if exited:
            events.append(self._finish())
        elif self._kill_at_s is not None and self._clock() >= self._kill_at_s:
            self._signal(signal.SIGKILL)
        return tuple(events)

    def cancel(self) -> None:
        """Asks the child to stop, and kills it if it has not within two seconds of further polls."""
        if self.end is None and self._kill_at_s is None:
            self._kill_at_s = self._clock() + GRACE_S
            self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Kills the child if it still runs, waits for it, and removes its scratch directory."""
        if self.end is not None:
            return
        self._kill_at_s = self._kill_at_s or self._clock()
        self._signal(signal.SIGKILL)
        self._read(all_of_it=True)
        self._finish()

    def _has_exited(self) -> bool:
        # WNOWAIT: until the child is reaped, its process group cannot become someone else's.
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _read(self, *, all_of_it: bool) -> list[Event]:
        events: list[Event] = []
        lines = tuple(self._log.read(all_of_it=all_of_it))
        if lines:
            self._tail.extend(lines)
            events.append(Logged(lines=lines))
        for line in self._events.read(all_of_it=all_of_it):
            data = json.loads(line)
            match data.pop("type"):
                case "progressed":
                    self.progress = Progressed(**data)
                    last = events[-1] if events else None
                    if isinstance(last, Progressed) and last.step == self.progress.step:
                        events.pop()
                    events.append(self.progress)
                case "finished":
                    self._said = Finished(result=data["result"])
                case "failed":
                    self._said = Failed(problem=Problem.from_json(data["problem"]))
        return events

    def _finish(self) -> End:
        self._signal(signal.SIGKILL)
        returncode = self._process.wait()
        self._clean()
        if isinstance(self._said, Finished) or (self._said is not None and not self.cancelling):
            self.end = self._said
        elif self.cancelling:
            self.end = Cancelled()
        else:
            how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
            hint = ", as the system does when memory runs out" if returncode == -signal.SIGKILL else ""
            self.end = Failed(
                problem=Problem(
                    what=f"“{self.task.title}” stopped unexpectedly",
                    why=f"its process ended with {how}{hint}",
                    next_step="Look for the cause in the log; close other programs if memory is short.",
                    details="\n".join(self._tail),
                )
            )
        return self.end

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # all of the group is gone
        except PermissionError:
            pass  # macOS answers so when only zombies are left

    def _clean(self) -> None:
        self._events.close()
        self._log.close()
        if process := getattr(self, "_process", None):
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


class _Lines:
    """Whole lines from a pipe, without waiting for any."""

    def __init__(self, fd: int, *, keep_cut: bool) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        # Whether a last line that a killed child did not finish is of use.
        self._keep_cut = keep_cut
        self._partial = b""

    def read(self, *, all_of_it: bool) -> list[str]:
        """Lines of one read, so that the window is soon back; `all_of_it` reads on to the very end."""
        chunks = [self._partial]
        while True:
            try:
                chunk = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                break
            chunks.append(chunk)
            if not chunk or not all_of_it:
                break
        *lines, self._partial = b"".join(chunks).split(b"\n")
        if all_of_it and self._keep_cut and self._partial:
            lines.append(self._partial)
            self._partial = b""
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]

    def close(self) -> None:
        """Closes the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
