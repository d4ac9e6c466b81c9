"""A race: contestants in processes of their own take turns on the same cores, round by round.

What else the machine does disturbs all of them alike, so the ratios hold where single times do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
TURN_NS = 10e6  # a turn counts calls for about this long
LEAST_CALLS, MOST_CALLS = 2, 100
LEAST_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One that takes part.

    Attributes:
        name: As in the tables.
        command: Starts the process; it speaks as `contestant.py` does.
        environment: Variables set for it.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def entry(
    name: str,
    engine: str,
    model: Path,
    inputs: Path,
    *,
    threads: int = 1,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Entry:
    """An engine of `contestant.py`, run by the Python that has it."""
    command = (python, str(HERE / "contestant.py"), engine, str(model), str(inputs), str(threads))
    return Entry(
        name=name, command=command, environment={"OMP_NUM_THREADS": str(threads)} | dict(environment or {})
    )


class Contestant:
    """A started entry, which stands still, all its threads, except while it is asked.

    A worker thread that looks out for the next call, as many engines let theirs do for a while, so takes
    nothing from the contestant after it, and the next call finds it looking out, as where calls follow one
    another.
    """

    def __init__(self, entry: Entry) -> None:
        self.name = entry.name
        self._process = subprocess.Popen(
            entry.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(entry.environment),
        )
        while (line := self._process.stdout.readline()) != "ready\n":  # type: ignore[union-attr]
            if not line:
                self.end()
                raise RuntimeError(f"{entry.name} did not start: {' '.join(entry.command)}")
        self._hold()

    def run(self, count: int) -> list[int]:
        """Nanoseconds of each of `count` calls."""
        times: list[int] = json.loads(self._ask(f"run {count}"))
        return times

    def save(self, path: Path) -> dict[str, npt.NDArray[Any]]:
        """The outputs of one call, by name."""
        self._ask(f"save {path}")
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer: str = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended in the middle of a race")
        self._hold()
        return answer

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _hold(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # until the last thread stands

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def started(entries: Sequence[Entry], cores: int = 1) -> Iterator[list[Contestant]]:
    """The contestants, all held to the same last cores of this machine.

    Where the user may, they go before all else that wants these cores: on a busy machine an engine would
    otherwise be stopped in the middle of nearly every call. On all cores at once, Linux still leaves the rest
    a twentieth of the time.
    """
    allowed, policy, priority = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setaffinity(0, set(sorted(allowed)[-cores:]))  # which they inherit, as they do what follows
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    running: list[Contestant] = []
    try:
        running.extend(map(Contestant, entries))
        yield running
    finally:
        os.sched_setscheduler(0, policy, priority)
        os.sched_setaffinity(0, allowed)
        for contestant in running:
            contestant.end()


@dataclass(frozen=True, slots=True)
class Times:
    """Nanoseconds of the calls of one contestant, by round."""

    rounds: tuple[tuple[int, ...], ...]

    @property
    def min_ms(self) -> float:
        """The fastest call."""
        return min(map(min, self.rounds)) / 1e6

    @property
    def median_ms(self) -> float:
        """The middle one."""
        return statistics.median(t for r in self.rounds for t in r) / 1e6

    def ratios(self, other: Times) -> list[float]:
        """How many times as long as `other` this took, by the fastest calls of each round."""
        return [min(a) / min(b) for a, b in zip(self.rounds, other.rounds, strict=True)]


def race(
    contestants: Sequence[Contestant], *, seconds: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Times]:
    """Lets the contestants take turns for about so many seconds, 10 rounds at least.

    The first calls of each turn, a tenth of them and one at least, are not counted: what ran before has left
    its own data in the caches, and the measured use is one call after another.
    """
    counts = {}
    for contestant in contestants:
        contestant.run(1)
        counts[contestant.name] = int(np.clip(TURN_NS / min(contestant.run(3)), LEAST_CALLS, MOST_CALLS))
    rounds: dict[str, list[tuple[int, ...]]] = {c.name: [] for c in contestants}
    end = clock() + seconds
    done = 0
    while done < LEAST_ROUNDS or clock() < end:
        for contestant in contestants:
            count = counts[contestant.name]
            warm = -(-count // 10)
            rounds[contestant.name].append(tuple(contestant.run(count + warm)[warm:]))
        done += 1
    return {name: Times(tuple(r)) for name, r in rounds.items()}
