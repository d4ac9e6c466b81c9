"""What every benchmark shares: where it ran, and how its result is written."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One number that is claimed.

    Attributes:
        id: Stable name.
        what: The same for people.
        value: The number.
        unit: Of value, interval and goal.
        interval: Lowest and highest, or a confidence interval; `what` says which.
        goal: What was aimed at, or None.
        reached: Whether it was, or None.
    """

    id: str
    what: str
    value: float
    unit: str
    interval: tuple[float, float] | None = None
    goal: float | None = None
    reached: bool | None = None


def write(
    name: str,
    claims: Sequence[Claim],
    rows: Sequence[dict[str, Any]],
    packages: Sequence[str],
    other_versions: Mapping[str, str] | None = None,
) -> Path:
    """Writes benchmarks/results/NAME.json.

    Args:
        name: Of the benchmark.
        claims: What it claims.
        rows: What it measured.
        packages: Installed packages whose versions matter.
        other_versions: Versions of packages that are in an environment of their own.
    """
    result = {
        "name": name,
        "command": f"make bench-{name}",
        "commit": _git("rev-parse", "HEAD")
        + (" with changes" if _git("status", "--porcelain", "-uno") else ""),
        "machine": _machine(packages, other_versions or {}),
        "claims": [asdict(c) for c in claims],
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return path


def _machine(packages: Sequence[str], others: Mapping[str, str]) -> dict[str, Any]:
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    flags = set(cpu.get("flags", "").split())
    simd = [f for f in ("avx2", "avx_vnni", "avx512_vnni") if f in flags]
    memory_kib = int(Path("/proc/meminfo").read_text("utf-8").split()[1])
    return {
        "cpu": f"{cpu.get('model name', platform.machine())} ({', '.join(simd)})",
        "cores": sum(
            line.startswith("processor") for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        ),
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages} | dict(others),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
