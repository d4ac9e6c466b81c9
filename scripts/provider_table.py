"""The table of execution providers that were run."""

from __future__ import annotations

from typing import Any

from where import where


def providers(result: dict[str, Any]) -> str:
    """How far each provider's outputs are from the native engine's, network by network."""
    lines = [
        "| network | provider | nodes it runs | most, steps | outputs that differ | decisions that differ |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['network']} | {row['provider']} | refused: {row['refused']} | | | |")
            continue
        cells = [
            row["network"],
            row["provider"],
            f"{row['nodes']}, CPU {len(row['left'])}" if row["left"] else "all",
            str(row["most_steps"]),
            f"{row['differ']:.1%}",
            "" if row["flipped"] is None else f"{row['flipped']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    said = "; ".join(f"{c['what']}: {c['value']:.0f}" for c in result["claims"])
    said = f"{said[:1].upper()}{said[1:]}. QNN is its library for x86-64, no Hexagon processor."
    lines += ["", f"{said} {where(result)}"]
    return "\n".join(lines) + "\n"
