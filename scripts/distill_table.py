"""The tables of distillation: how soon each way arrives, and a large teacher."""

from __future__ import annotations

import math
import statistics
from typing import Any

from where import where


def distilled(result: dict[str, Any]) -> str:
    """Steps and seconds to the score, by the way to it."""
    rows = result["rows"]
    lines = [
        "| way | epochs, rate | steps to the score | CPU seconds to it | at the end: validation | test |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row["way"],
            f"{row['epochs']}, {row['learning_rate']:g}",
            _spread(row["steps"], ".0f"),
            _spread(row["seconds"], ".1f"),
            f"{row['validation']:.2%}",
            f"{row['test']:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first = rows[0]
    saved = {c["id"]: c for c in result["claims"]}
    steps, seconds = saved["C3.steps"], saved["C3.seconds"]
    lines.append("")
    lines.append(
        f"Median (lowest to highest) of {first['seeds']} seeds; ∞ is a run that never got to the score, "
        f"which is {first['score']:.2%} of the validation part; the teacher has "
        f"{first['teacher']:.2%}. Progressive "
        f"distillation saves {steps['value']:.0%} of the steps (at least {steps['interval'][0]:.0%}) and "
        f"{seconds['value']:.0%} of the CPU seconds (at least {seconds['interval'][0]:.0%}); "
        f"the goal is {steps['goal']:.0%}. {where(result)}"
    )
    return "\n".join(lines) + "\n"


def large(result: dict[str, Any]) -> str:
    """What a student of 8 million parameters keeps of a teacher of 120 million."""
    lines = [
        "| model | parameters, M | test accuracy (95 % interval) | seconds | peak memory, GB |",
        "|---|---:|---:|---:|---:|",
    ]
    for row, claim in zip(result["rows"], result["claims"], strict=True):
        low, high = claim["interval"]
        student = "" if row["model"] == "teacher" else "student, from "
        cells = [
            f"{student}{row['model']}",
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['test']:.1%} ({low:.1%} to {high:.1%})",
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"On the {result['rows'][0]['rows']} sentences of SST-2's test part. {where(result)}")
    return "\n".join(lines) + "\n"


def _spread(values: list[float | None], form: str) -> str:
    """Median, lowest and highest; None is infinite."""
    numbers = [math.inf if value is None else value for value in values]
    middle, low, high = (
        "∞" if math.isinf(x) else format(x, form)
        for x in (statistics.median(numbers), min(numbers), max(numbers))
    )
    return f"{middle} ({low} to {high})"
