"""The tables of the sentence encoder: what it kept, and how fast it is by length."""

from __future__ import annotations

from typing import Any

from where import where

SETTINGS = {"avx2": "AVX2", "all": "all"}


def encoder(result: dict[str, Any]) -> str:
    """The pruned encoder against the one it was made from, and against the shape of BERT-base."""
    rows = result["rows"]
    kept = [row for row in rows if "model" in row]
    races = [row for row in rows if "instructions" in row]
    size = next(row for row in rows if "weights_bytes" in row)
    lines = [
        "| | sentences | accuracy | MiniLM-L6 | points | flips | SQNR |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in kept:
        low, high = (100 * x for x in row["interval"])
        cells = [
            f"{row['model']}, {row['part']}",
            f"{row['count']:,}",
            f"{row['accuracy']:.2%}",
            f"{row['reference_accuracy']:.2%}",
            f"{100 * row['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{row['flip_rate']:.2%}",
            f"{row['sqnr_db']:.1f} dB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    large, small = size["float_weights_bytes"] / 1e6, size["weights_bytes"] / 1e6
    said = (
        f"MiniLM-L6's weights: {large:.1f} MB in float32; the artifact's: {small:.1f} MB. Points with their "
    )
    lines += ["", said + "95 % interval, paired.", ""]
    heads = ["instructions", "threads", "tokens", "MiniLM-L6, FP32, ms", "the artifact, ms"]
    heads += ["times as fast", "BERT-base shape, FP32, times"]
    lines += [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in races:
        low, high = row["minilm_ratios"]
        cells = [
            SETTINGS[row["instructions"]],
            str(row["threads"]),
            str(row["length"]),
            f"{row['minilm_min_ms']:.2f}",
            f"{row['student_min_ms']:.2f}",
            f"{row['minilm_median_ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{row['bert_median_ratio']:.1f}" if "bert_ratio" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    said = "FP32 in ONNX Runtime. One sentence that fills its length; times are the fastest of calls, "
    lines += ["", f"{said}ratios the medians and quartiles of rounds in turns. {where(result)}"]
    return "\n".join(lines) + "\n"
