"""The table of what is claimed of compression, with the command behind each number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from where import where

# Claims, and the benchmarks that measure them.
SOURCES = {"C1": "quantize", "C2": "prune", "C3": "distill", "C4": "encoder"}


def claims(results: Path) -> str:
    """Every claim C1 to C4 in the results at hand.

    Args:
        results: The folder of the benchmarks' results.
    """
    lines = ["| claim | what | measured | aimed at | |", "|---|---|---:|---:|---|"]
    notes = []
    for claim, source in SOURCES.items():
        result = json.loads((results / f"{source}.json").read_text("utf-8"))
        mine = [c for c in result["claims"] if c["id"].split(".")[0] == claim]
        lines += [_line(c) for c in mine]
        notes.append(f"{claim}: {where(result)}")
    return "\n".join([*lines, "", "  \n".join(notes)]) + "\n"


def claim_table(result: dict[str, Any]) -> str:
    """Every claim of one benchmark."""
    lines = ["| claim | what | measured | aimed at | |", "|---|---|---:|---:|---|"]
    return "\n".join([*lines, *map(_line, result["claims"]), "", where(result)]) + "\n"


def _line(claim: dict[str, Any]) -> str:
    unit = f" {claim['unit']}" if claim["unit"] else ""
    measured = f"{claim['value']:.3g}{unit}"
    if claim["interval"]:
        low, high = claim["interval"]
        measured += f" ({low:.3g} to {high:.3g})"
    goal = "" if claim["goal"] is None else f"{claim['goal']:.3g}{unit}"
    verdict = {None: "", True: "reached", False: "not reached"}[claim["reached"]]
    return f"| {claim['id']} | {claim['what']} | {measured} | {goal} | {verdict} |"
