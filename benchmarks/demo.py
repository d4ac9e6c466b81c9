"""The demo over five seeds: accuracy, size, latency, update size. `make bench-demo`."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import Claim, write
from rich.console import Console

from edgewright.demo import run_demo

SEEDS = range(5)


def main() -> None:
    """Runs the demo once for each seed and records what came out."""
    torch.set_num_threads(1)  # as the command does
    console = Console(file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        console.rule(f"seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            result = run_demo(Path(folder) / "demo", seed=seed, console=console)
        rows.append({"seed": seed} | result)

    def claim(
        name: str, what: str, unit: str, value: Any, goal: float | None = None, least: bool = True
    ) -> Claim:
        values = [float(value(row)) for row in rows]
        middle = statistics.median(values)
        reached = None if goal is None else (min(values) >= goal if least else max(values) <= goal)
        return Claim(
            id=name,
            what=f"{what}; median, lowest and highest of {len(rows)} seeds",
            value=middle,
            unit=unit,
            interval=(min(values), max(values)),
            goal=goal,
            reached=reached,
        )

    claims = [
        claim(
            "int8_accuracy_change",
            "accuracy of INT8 less that of the same network in float",
            "points",
            lambda r: 100 * (r["accuracy"]["int8_native"] - r["accuracy"]["pruned"]),
        ),
        claim(
            "bit_mismatches", "values that differ from the reference", "values", _mismatches, 0, least=False
        ),
        claim(
            "latency_ratio",
            "FP32 in ONNX Runtime over INT8 native, same network, batch 1, one thread",
            "times",
            lambda r: r["latency_ms"]["fp32_onnxruntime"] / r["latency_ms"]["int8_native"],
        ),
        claim("ota_saving", "bytes the delta saves", "%", lambda r: 100 * r["ota"]["saving"]),
        claim("seconds", "the whole demo", "s", lambda r: r["seconds"], 90, least=False),
    ]
    console.print(write("demo", claims, rows, ["torch", "onnxruntime", "numpy"]))


def _mismatches(row: dict[str, Any]) -> int:
    return int(row["verify"]["bit_mismatches"])


if __name__ == "__main__":
    main()
