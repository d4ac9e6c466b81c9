"""Side environments: heavy tools in Python environments of their own, made when they are first needed.

What the product itself cannot carry (a converter of 2 GB, the engines that a benchmark races against) gets a
virtual environment under the user's cache, with exact versions. It is made once, by one process at a time,
and used only when all of it is there: a stamp is written last. Its tools run there as scripts that are given
JSON and answer in JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright.durable import write_whole
from edgewright.errors import SideEnvironmentError
from edgewright.progress import OnProgress, Progress

STAMP = "edgewright.json"  # in an environment that is whole
PROGRESS = "edgewright-progress: "  # begins a line of a script that reports
SPARE = 1.5  # pip needs room to unpack
LAST_LINES = 5  # of what a program said, in an error
WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SideEnvironment:
    """What an environment shall hold.

    Attributes:
        name: Short, part of its folder's name.
        requirements: Exact versions, as pip takes them.
        first: Requirements that are installed before the rest, because of how others would find them.
        imports: Modules that must load before it counts as whole.
        size_bytes: What it takes on disk, roughly.
        minutes: How long it takes to make, roughly.
    """

    name: str
    requirements: tuple[str, ...]
    first: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    size_bytes: int = 0
    minutes: float = 1.0

    @property
    def folder_name(self) -> str:
        """Other versions, and other Pythons, have another folder."""
        wanted = json.dumps([self.first, self.requirements, self.imports])
        digest = hashlib.sha256(wanted.encode()).hexdigest()[:8]
        return f"{self.name}-py{sys.version_info.major}{sys.version_info.minor}-{digest}"


def default_folder() -> Path:
    """Where side environments lie unless a setting says otherwise."""
    return Path("~/.cache/edgewright/envs").expanduser()


def is_ready(environment: SideEnvironment, folder: Path | None = None) -> bool:
    """Whether it is there, whole."""
    return (_place(environment, folder) / STAMP).is_file()


def cost(environment: SideEnvironment) -> str:
    """What making it takes, for people."""
    size = environment.size_bytes / 1e9
    return f"{size:.1f} GB of disk, and some {environment.minutes:.0f} minutes, once"


def python_of(
    environment: SideEnvironment,
    folder: Path | None = None,
    *,
    progress: OnProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The Python of an environment, which is made if it is not there.

    Args:
        environment: What it shall hold.
        folder: Where environments lie; `default_folder()` if left out.
        progress: Called as the work goes on. What it raises cancels: what was begun is removed.
        sleep: Waits, in seconds, between two looks whether another process is done with it.

    Raises:
        SideEnvironmentError: It cannot be made; the message says why, and what to do without a network.
    """
    place, report = _place(environment, folder), progress or (lambda _: None)
    python = place / "bin" / "python"
    if is_ready(environment, folder):
        return python
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SideEnvironmentError(
            f"{place.parent}: cannot be made ({error}); choose another folder"
        ) from None
    with _alone(place, report, sleep):
        if not is_ready(environment, folder):  # another process may have made it meanwhile
            try:
                _make(environment, place, python, report)
            except BaseException:  # a cancelled one, too
                shutil.rmtree(place, ignore_errors=True)
                raise
    return python


def run_script(
    python: Path, script: Path, request: Mapping[str, Any], *, progress: OnProgress | None = None
) -> dict[str, Any]:
    """Runs a script in an environment.

    The script finds the request as JSON on its standard input, and writes its answer, a JSON object, to the
    file that its one argument names. `{"error": "..."}` is a failure that it explains itself. Lines of its
    output that begin with `PROGRESS` and hold a step, what is done and the total as JSON are reported.

    Args:
        python: Of the environment.
        script: A file that imports nothing of edgewright.
        request: Plain values.
        progress: Called with what the script reports. What it raises ends the script, and passes through.

    Raises:
        SideEnvironmentError: The script failed; with its own words, or its last ones.
    """
    report = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="edgewright-") as scratch:
        answer = Path(scratch) / "answer.json"
        asked = Path(scratch) / "request.json"
        asked.write_text(json.dumps(request), "utf-8")

        def listen(line: str) -> None:
            if line.startswith(PROGRESS):
                step, done, total = json.loads(line.removeprefix(PROGRESS))
                report(Progress(step=step, done=done, total=total))

        code, said = _run([str(python), "-I", str(script), str(answer)], listen, asked)
        try:
            found = json.loads(answer.read_text("utf-8"))
        except (OSError, ValueError):
            raise SideEnvironmentError(f"{script.name} ended with code {code}: {_tail(said)}") from None
    if not isinstance(found, dict) or code:
        raise SideEnvironmentError(f"{script.name} ended with code {code}: {_tail(said)}")
    if "error" in found:
        raise SideEnvironmentError(str(found["error"]))
    return found


def _place(environment: SideEnvironment, folder: Path | None) -> Path:
    return (folder or default_folder()) / environment.folder_name


@contextmanager
def _alone(place: Path, report: OnProgress, sleep: Callable[[float], None]) -> Iterator[None]:
    """Holds the lock of an environment; waits for another process that has it."""
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(Progress(step="environment: another process makes it", done=0, total=1))
                sleep(WAIT_S)
        yield  # closing the file gives the lock back


def _make(environment: SideEnvironment, place: Path, python: Path, report: OnProgress) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < environment.size_bytes * SPARE:
        raise SideEnvironmentError(
            f"{place.parent}: {free / 1e9:.1f} GB are free, {environment.name} needs "
            f"{environment.size_bytes * SPARE / 1e9:.1f}; free some, or choose another folder"
        )
    shutil.rmtree(place, ignore_errors=True)  # one that was cut off
    report(Progress(step="environment: make", done=0, total=1))
    _step([sys.executable, "-m", "venv", "--without-pip", str(place)], place, "cannot be made")
    groups = [g for g in (environment.first, environment.requirements) if g]
    total = sum(len(g) for g in groups)
    seen = 0

    def count(line: str) -> None:
        nonlocal seen
        seen += line.startswith(("Collecting ", "Processing "))
        step = "environment: install" if line.startswith(("Install", "Success")) else "environment: download"
        report(Progress(step=step, done=min(seen, total), total=total))

    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-input",
        "--progress-bar=off",
    ]
    done: list[str] = []
    for group in groups:
        done += group  # what was first stays as it is
        _step([*pip, *done], place, _offline(environment), count)
    report(Progress(step="environment: check", done=0, total=1))
    if environment.imports:
        check = f"import {', '.join(environment.imports)}"
        _step([str(python), "-I", "-c", check], place, f"was installed, but does not work ({check})")
    write_whole(place / STAMP, json.dumps({"requirements": done}, indent=1).encode())
    report(Progress(step="environment: check", done=1, total=1))


def _offline(environment: SideEnvironment) -> str:
    return (
        f"cannot be installed. {environment.name} needs {len(environment.requirements)} packages, once; "
        "without a network, let `pip download` fetch them elsewhere, and set PIP_FIND_LINKS to that folder"
    )


def _step(
    command: Sequence[str], place: Path, trouble: str, listen: Callable[[str], None] | None = None
) -> None:
    code, said = _run(command, listen)
    if code:
        raise SideEnvironmentError(f"{place}: {trouble}: {_tail(said)}")


def _run(
    command: Sequence[str], listen: Callable[[str], None] | None = None, given: Path | None = None
) -> tuple[int, list[str]]:
    """Runs a program; gives its exit code, and what it said. If `listen` raises, it and its children end."""
    said: list[str] = []
    with open(given or os.devnull, "rb") as source:  # noqa: PTH123  # devnull is no Path
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                said.append(line.rstrip())
                if listen is not None:
                    listen(said[-1])
        return process.wait(), said
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _tail(said: Sequence[str]) -> str:
    told = [line for line in said if line.strip() and not line.startswith((PROGRESS, "WARNING: Location"))]
    errors = [line for line in told if line.startswith("ERROR:")]
    return " ".join((errors or told)[-LAST_LINES:]) or "no word why"
