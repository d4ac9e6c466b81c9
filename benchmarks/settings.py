"""The instructions of a race: AVX2 alone, where the goals were set, and all that this CPU has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import edgewright as ew
from edgewright_kernels import cpu_paths

HERE = Path(__file__).parent
# How the network is quantized that every engine gets, on any CPU and on one with AVX2 alone, whose fastest
# multiplication adds in 16 bits.
WEIGHTS = ew.Quantize()
AVX2_WEIGHTS = ew.Quantize(overflow_safe="quads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every engine of a race may use.

    Attributes:
        name: In rows and claims: "avx2" or "all".
        title: For people.
        paths: Edgewright's own, best first.
        quantize: How the raced network was exported.
        environment: Variables set for every engine.
    """

    name: str
    title: str
    paths: tuple[str, ...]
    quantize: ew.Quantize
    environment: Mapping[str, str] = field(default_factory=dict)


def settings(folder: Path) -> tuple[Setting, ...]:
    """Those that can be had here; AVX2 alone comes first.

    On a CPU that has no more than AVX2 they are one. Elsewhere a preloaded library hides the rest, which the
    CPU and the kernel must allow: most by Intel do, few by AMD.

    Args:
        folder: Where the library is built.
    """
    paths = tuple(p for p in cpu_paths() if p != "scalar")
    if paths[:1] == ("avx2",):
        return (Setting(name="avx2", title="AVX2 alone", paths=paths, quantize=AVX2_WEIGHTS),)
    more = tuple(p for p in paths if p != "avx2")
    whole = Setting(name="all", title="all instructions", paths=more, quantize=WEIGHTS)
    if "avx2" not in paths:
        return (whole,)
    library = folder / "avx2_only.so"
    build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "avx2_only.c")]
    subprocess.run(build, check=True)
    environment = {"LD_PRELOAD": str(library)}
    seen = subprocess.run(
        [sys.executable, "-c", "from edgewright_kernels import cpu_paths; print(*cpu_paths())"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if seen.stdout.split() != ["avx2", "scalar"]:
        why = (seen.stderr.strip() or f"the engine still sees {seen.stdout.strip()}").splitlines()[-1]
        print(f"the race with AVX2 alone is left out: {why}", file=sys.stderr)
        return (whole,)
    alone = Setting(
        name="avx2", title="AVX2 alone", paths=("avx2",), quantize=AVX2_WEIGHTS, environment=environment
    )
    return (alone, whole)
