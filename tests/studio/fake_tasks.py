"""Tasks for tests: real child processes that compute nothing. Found by the child through PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from edgewright_studio.errors import TaskError
from edgewright_studio.results import Result, Variant
from edgewright_studio.worker import Work


def sample_result(artifact: str) -> Result:
    """What the digits example gave on a machine with two x86-64 cores; the guide shows it."""
    against = "SQNR and flips against “Compressed, float”"
    timed = "Timed in ONNX Runtime, one thread"
    return Result(
        title="Handwritten digits",
        variants=(
            Variant(name="Teacher, float", accuracy=1.0, size_bytes=1_113_896, latency_ms=0.1731, note=timed),
            Variant(
                name="Compressed, float",
                accuracy=358 / 360,
                size_bytes=97_960,
                latency_ms=0.0796,
                note=timed,
            ),
            Variant(
                name="INT8, ONNX Runtime",
                accuracy=358 / 360,
                size_bytes=28_392,
                latency_ms=0.1038,
                sqnr_db=36.4142,
                flips=0,
                note=against,
            ),
            Variant(
                name="INT8, native engine",
                accuracy=358 / 360,
                size_bytes=28_392,
                latency_ms=0.0470,
                sqnr_db=36.4188,
                flips=0,
                note=against,
            ),
        ),
        artifact=artifact,
        passed=True,
        cases=1000,
        seconds=53.5,
        samples=360,
    )


def compress(work: Work, *, out: str, **_rest: Any) -> dict[str, Any]:
    """Goes through the steps and writes an output, as a real job does."""
    work.plan({"train": 2, "distill": 2, "verify": 1})
    sys.stdout.write("training on 1,137 scans\n")
    for step in ("train", "distill", "verify"):
        for done in range(1, 11):
            work.progress(step, done, 10, {"loss": 2.0 / done, "accuracy": 0.5 + done / 25})
    (work.scratch / "made").mkdir()
    (work.scratch / "made").rename(out)
    return sample_result(out).to_json()


def chatter(work: Work, *, count: int) -> dict[str, Any]:
    """Sends and prints as fast as it can."""
    for index in range(count):
        work.progress("talk", index + 1, count, {"loss": 1.0})
        if index % 10 == 0:
            sys.stdout.write(f"line {index}\n")
    return {"count": count}


def hang(work: Work, *, marker: str, **_rest: Any) -> dict[str, Any]:
    """Leaves partial output, starts a process of its own, tells where, and waits for ever."""
    (work.scratch / "partial").write_text("half")
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    temporary = Path(f"{marker}.tmp")
    temporary.write_text(f"{os.getpid()} {child.pid} {work.scratch}")
    temporary.rename(marker)
    work.progress("wait", 1, 2, {"loss": 0.5})
    threading.Event().wait()
    return {}


def stubborn(work: Work, *, marker: str) -> dict[str, Any]:
    """Hangs, and does not heed SIGTERM."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hang(work, marker=marker)


def refuse(work: Work, **_rest: Any) -> dict[str, Any]:
    """Fails as a task does that knows why."""
    (work.scratch / "partial").write_text("half")
    raise TaskError("Cannot train", why="the data is empty", next_step="Give it samples.")


def crash(work: Work, **_rest: Any) -> dict[str, Any]:
    """Fails as a program does."""
    sys.stdout.write("about to divide\n")
    return {"never": 1 // int(work.scratch.name == "?")}


def break_off(work: Work, **_rest: Any) -> dict[str, Any]:
    """Goes away in the middle of an event."""
    work._events.write(b'{"type": "progr')
    work._events.flush()
    os.kill(os.getpid(), 9)
    return {}


def die(work: Work, **_rest: Any) -> dict[str, Any]:
    """Goes away without a word, as after an out-of-memory kill."""
    os.write(1, b"last words\n")
    os.kill(os.getpid(), 9)
    return {}


def list_targets(work: Work) -> dict[str, Any]:
    """What a machine with AVX2 says."""
    return {"names": ["rpi5", "x86-64", "x86-avx2"], "here": "x86-avx2"}


def hang_beside(work: Work, *, out: str, **_rest: Any) -> dict[str, Any]:
    """Hangs, with its marker beside the output."""
    return hang(work, marker=str(Path(out).with_name("marker")))


def chatter_digits(work: Work, **_rest: Any) -> dict[str, Any]:
    """Sends 50,000 events, then waits to be cancelled."""
    chatter(work, count=50_000)
    threading.Event().wait()
    return {}


def rest(work: Work) -> dict[str, Any]:
    """Waits to be cancelled."""
    threading.Event().wait()
    return {}
