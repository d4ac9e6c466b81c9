"""Detection: which target this machine is, from a few small files of the kernel's; no program is started."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from edgewright_device.errors import TargetError
from edgewright_device.target import Target, target_names
from edgewright_kernels import cpu_paths

MAX_BYTES = 4096
"""As much of a file as is read."""
_ORDER = ("cpu", "gpu", "board")  # later ones say more about a machine


def detect(root: Path = Path("/")) -> Target:
    """The target that describes this machine best: a board or GPU that is known, else its kind of CPU.

    Args:
        root: Where the kernel's files are: `proc/device-tree` names a board, `proc/driver/nvidia` the GPUs.

    Raises:
        TargetError: None of them does.
    """
    arch = platform.machine()
    here = {arch, *cpu_paths()}
    names: Mapping[str, Callable[[], tuple[str, ...]]] = {
        "board": lambda: board_names(root),
        "gpu": lambda: gpu_names(root),
    }
    found = {kind: read() for kind, read in names.items()}

    def fits(target: Target) -> bool:
        if target.arch != arch or not set(target.instruction_sets) <= here:
            return False
        if target.found_by in found:
            return any(_begins(n, a) for n in found[target.found_by] for a in target.found_as)
        return target.found_by == "cpu"

    fitting = [t for t in map(Target.load, target_names()) if fits(t)]
    if not fitting:
        raise TargetError(f"no target fits this machine ({arch}); describe it in a TOML file and load that")
    return max(fitting, key=lambda t: (_ORDER.index(t.found_by), len(t.instruction_sets)))


def board_names(root: Path) -> tuple[str, ...]:
    """What the device tree calls the board: its model, and what it is compatible with."""
    texts = (_read(root / "proc/device-tree" / name) for name in ("model", "compatible"))
    return tuple(n for text in texts for n in text.split("\0") if n)


def gpu_names(root: Path) -> tuple[str, ...]:
    """The models of the GPUs that NVIDIA's driver has, without "NVIDIA" and "Tesla" before them."""
    folder = root / "proc/driver/nvidia/gpus"
    try:
        files = sorted(folder.glob("*/information"))
    except OSError:
        return ()
    lines = [line for file in files for line in _read(file).splitlines() if line.startswith("Model:")]
    models = [line.removeprefix("Model:").strip() for line in lines]
    return tuple(m.removeprefix("NVIDIA ").removeprefix("Tesla ") for m in models)


def _begins(name: str, text: str) -> bool:
    """Whether a name begins with a text and then ends, or goes on with another word: a T400 is no T4."""
    return name.startswith(text) and not name[len(text) :][:1].isalnum()


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
