"""Builds the C library and the programs of the tests, as `make` does, into build/c."""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "c"


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


@functools.cache
def built(target: str) -> Path:
    """Builds one target of kernels/CMakeLists.txt and gives its file; quick when nothing has changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    commands = (
        [
            "-S",
            str(ROOT / "kernels"),
            "-B",
            str(BUILD),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
        ],
        ["--build", str(BUILD), "--target", target],
    )
    with (BUILD / "lock").open("w") as lock:  # the tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in commands:
            done = subprocess.run([_tool("cmake"), *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / ("libedgewright.so" if target == "edgewright" else target)
