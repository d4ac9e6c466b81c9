"""The table of quantization-aware training."""

from __future__ import annotations

from typing import Any

from where import where


def trained(result: dict[str, Any]) -> str:
    """What MiniLM in uint8 keeps of the float model, calibrated alone and trained."""
    lines = [
        "| grids | accuracy | against float (95 % interval) | flipped | SQNR |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        low, high = (100 * end for end in row["interval"])
        cells = [
            row["name"],
            f"{row['accuracy']:.2%}",
            f"{100 * row['difference']:+.2f} ({low:+.2f} to {high:+.2f}) points",
            f"{row['flip_rate']:.2%}",
            f"{row['sqnr_db']:.1f} dB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first, last, gain = result["rows"][0], result["rows"][-1], result["claims"][0]
    note = (
        f"MiniLM-L6 with uint8 activations in the native engine, on {first['count']:,} sentences of 32 "
        f"tokens of SST-2's dev part; the float model has {first['reference_accuracy']:.2%}. {gain['what']}: "
        f"{gain['value']:.1f} dB, in {last['train_s']:.0f} s on one thread. {where(result)}"
    )
    return "\n".join([*lines, "", note]) + "\n"
