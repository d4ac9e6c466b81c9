"""The table of pruning: what is gone, what it gains, and what it costs."""

from __future__ import annotations

from typing import Any

from where import where


def pruned(result: dict[str, Any]) -> str:
    """The whole network and the pruned ones, their times, and how well these were predicted."""
    rows = result["rows"]
    networks = [row for row in rows if "network" in row]
    races = [row for row in rows if "instructions" in row]
    model = next(row for row in rows if "cross_validation" in row)
    first = networks[0]
    lines = [
        "| network | channels | MACs, M | weights, k | accuracy | points lost to INT8 whole | flips | SQNR |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in networks:
        lost, (low, high) = row["points_lost_to_whole_int8"]
        name = row["network"].replace("_", ", seed ")
        cells = [
            name,
            f"{row['channels']} ({row['channels'] / first['channels'] - 1:+.0%})",
            f"{row['macs'] / 1e6:.1f}",
            f"{row['parameters'] / 1e3:.0f}",
            f"{row['accuracy_int8']:.2%}",
            f"{lost:.2f} ({low:.2f} to {high:.2f})" if row is not first else "",
            f"{row['flips_to_whole_float']:.1%}",
            f"{row['sqnr_db_to_whole_float']:.1f} dB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"INT8; the whole network in FP32 has {first['accuracy_whole_float']:.2%}, and flips and SQNR are "
        "against it. Points with their 95 % interval, paired."
    )
    lines += [
        "",
        note,
        "",
        "| engine | instructions | whole, µs | pruned, µs | times as fast (quartiles) |",
        "|---|---|---:|---:|---:|",
    ]
    for row in races:
        low, high = row["quartiles"]
        engine = {"edgewright": "Edgewright INT8", "onnxruntime": "ONNX Runtime FP32"}[row["engine"]]
        cells = [
            engine,
            {"avx2": "AVX2", "all": "all"}[row["instructions"]],
            f"{1e3 * row['whole_min_ms']:.1f}",
            f"{1e3 * row['pruned_min_ms']:.1f}",
            f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    error = model["cross_validation"]
    said = (
        "One image on one thread; times are the fastest, ratios medians over rounds in turns. The latency "
        f"model predicted {1e3 * model['predicted_ms']:.1f} µs for the pruned network, measured "
        f"{1e3 * model['measured_ms']:.1f}; predicted {model['predicted_speedup']:.2f} times as fast. On "
        f"{error['models']} networks that it was each time not fitted to, it was {error['mean']:.1%} off in "
        f"the mean, and {error['worst']:.1%} at worst."
    )
    return "\n".join([*lines, "", said, "", where(result)]) + "\n"
