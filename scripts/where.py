"""Where and how a benchmark's numbers were made, in one sentence."""

from __future__ import annotations

from typing import Any


def where(result: dict[str, Any]) -> str:
    """The command, the machine and the versions of a result."""
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"`{result['command']}` on {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, "
        f"Python {machine['python']}, {versions}."
    )
