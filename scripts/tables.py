"""Writes the tables in README and docs, between `<!-- table: NAME -->` marks: of results and of operators.

python scripts/tables.py            # write them
python scripts/tables.py --check    # exit 1 when one differs from its file
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claims import claim_table, claims
from distill_table import distilled, large
from encoder_table import encoder
from int8_tables import depthwise, figures, gemm, whole, whole_all, whole_threads
from provider_table import providers
from prune_table import pruned
from qat_table import trained
from verify_tables import artifacts, defects, verifiers
from where import where

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(<!-- table: (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def demo(result: dict[str, Any]) -> str:
    """The demo's networks, and where and how they were measured."""
    rows = result["rows"]

    def over(*path: str, scale: float = 1.0) -> list[float]:
        values = []
        for row in rows:
            value = row
            for key in path:
                value = value[key]
            values.append(scale * float(value))
        return values

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    def line(network: str, engine: str, accuracy: str, size: str | None, latency: str | None) -> str:
        cells = [
            network,
            engine,
            spread(over("accuracy", accuracy, scale=100), ".1f"),
            f"{statistics.median(over('size_bytes', size)):,.0f}" if size else "",
            spread(over("latency_ms", latency, scale=1000), ".0f") if latency else "",
        ]
        return f"| {' | '.join(cells)} |"

    lines = [
        "| network | engine | accuracy, % | bytes | latency, µs |",
        "|---|---|---:|---:|---:|",
        line("teacher", "ONNX Runtime FP32", "teacher", "teacher_fp32", "teacher_fp32_onnxruntime"),
        line("student, distilled", "", "student", None, None),
        line("student, pruned", "ONNX Runtime FP32", "pruned", "fp32", "fp32_onnxruntime"),
        line("the same in INT8", "ONNX Runtime", "int8_onnxruntime", "artifact", "int8_onnxruntime"),
        line("the same in INT8", "Edgewright native", "int8_native", "artifact", "int8_native"),
        "",
    ]
    claims = {c["id"]: c for c in result["claims"]}
    saving, ratio = claims["ota_saving"], claims["latency_ratio"]
    lines.append(
        f"Update 1.1.0 as a delta: {saving['value']:.0f} % fewer bytes "
        f"({saving['interval'][0]:.0f} to {saving['interval'][1]:.0f}). "
        f"INT8 native against FP32: {ratio['value']:.1f} times faster "
        f"({ratio['interval'][0]:.1f} to {ratio['interval'][1]:.1f}). "
        f"Values that differ from the integer reference: {claims['bit_mismatches']['interval'][1]:.0f}. "
        f"The whole demo: {claims['seconds']['value']:.0f} s."
    )
    lines.append("")
    lines.append(
        f"Median (lowest to highest) of {len(rows)} seeds; latency: medians of interleaved calls, batch 1, "
        f"one thread. {where(result)}"
    )
    return "\n".join(lines) + "\n"


def precision(result: dict[str, Any]) -> str:
    """Accuracy and time of MiniLM by the bits of its activations."""
    first, *rows = result["rows"]
    paths = list(rows[0]["min_ms"])
    lines = [
        "| activations | accuracy | of float's | flipped | SQNR | " + " | ".join(paths) + " |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(paths),
    ]
    for row in rows:
        times = [f"{row['min_ms'][p] / rows[0]['min_ms'][p]:.2f}" for p in paths]
        cells = [
            row["activations"],
            f"{row['accuracy']:.2%}",
            f"{row['accuracy'] / first['accuracy']:.1%}",
            f"{row['flips']:.2%}",
            f"{row['sqnr_db']:.1f} dB",
            *times,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"MiniLM-L6 on {first['rows']:,} sentences of SST-2's dev part; the float model has "
        f"{first['accuracy']:.2%}. Times of one sentence of 64 tokens on one thread, over those of uint8 on "
        f"the same path: the fastest of interleaved rounds. {where(result)}"
    )
    return "\n".join(lines) + "\n"


def quantized(result: dict[str, Any]) -> str:
    """What each method of quantization keeps of each model, and the claims."""
    lines = [
        "| model | method | SQNR | flipped | accuracy lost, points | weights smaller |",
        "|---|---|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["method"]), []).append(row)

    def spread(values: list[float], form: str) -> str:
        low, high = format(min(values), form), format(max(values), form)
        return low if low == high else f"{low} to {high}"

    for (model, method), rows in groups.items():
        cells = [
            model,
            method,
            f"{spread([r['sqnr_db'] for r in rows], '.1f')} dB",
            f"{spread([100 * r['flip_rate'] for r in rows], '.2f')} %",
            spread([0.0 - 100 * r["difference"] for r in rows], ".2f"),
            f"{min(r['weights_ratio'] for r in rows):.2f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| claim | value | 95 % interval | goal | |", "|---|---:|---:|---:|---|"]
    for claim in result["claims"]:
        interval = "{:.2f} to {:.2f}".format(*claim["interval"]) if claim["interval"] else ""
        reached = "reached" if claim["reached"] else "not reached"
        value, goal = f"{claim['value']:.2f} {claim['unit']}", f"{claim['goal']:g} {claim['unit']}"
        lines.append(f"| {claim['id']}: {claim['what']} | {value} | {interval} | {goal} | {reached} |")
    floats = {r["model"]: (r["reference_accuracy"], r["count"]) for r in result["rows"]}
    said = "; ".join(f"{m} {a:.2%} on {n:,} samples" for m, (a, n) in floats.items())
    lines += ["", f"Float accuracy: {said}. {where(result)}"]
    return "\n".join(lines) + "\n"


# The tables, and the results each is made of.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "demo": ("demo", demo),
    "encoder": ("encoder", encoder),
    "int8": ("int8", whole),
    "int8-all": ("int8", whole_all),
    "int8-threads": ("int8", whole_threads),
    "int8-gemm": ("int8", gemm),
    "int8-depthwise": ("int8", depthwise),
    "int8-figures": ("int8", figures),
    "precision": ("precision", precision),
    "providers": ("providers", providers),
    "prune": ("prune", pruned),
    "qat": ("qat", trained),
    "quantize": ("quantize", quantized),
    "compare": ("compare", claim_table),
    "verify": ("verify", verifiers),
    "verify-defects": ("verify", defects),
    "verify-healthy": ("verify", artifacts),
    "distill": ("distill", distilled),
    "large-teacher": ("large_teacher", large),
}


def operators() -> str:
    """The operators that run natively, as the code says."""
    from edgewright.lower import operators_table

    return operators_table()


def hardware() -> str:
    """The hardware, as the files of targets say."""
    from edgewright.hardware import hardware_table

    return hardware_table()


# Tables that are made of more than one result, or of none.
WHOLE: dict[str, Callable[[], str]] = {
    "claims": lambda: claims(ROOT / "benchmarks" / "results"),
    "hardware": hardware,
    "operators": operators,
}


def rendered(text: str) -> str:
    """The text with every marked table made anew."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name in WHOLE:
            return f"{match[1]}{WHOLE[name]()}{match[3]}"
        source, make = TABLES[name]
        result = json.loads((ROOT / "benchmarks" / "results" / f"{source}.json").read_text("utf-8"))
        return f"{match[1]}{make(result)}{match[3]}"

    return MARK.sub(table, text)


def documents() -> list[Path]:
    """Every document that may hold a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Writes or checks the tables."""
    stale = [p for p in documents() if rendered(p.read_text("utf-8")) != p.read_text("utf-8")]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}: {'differs from its results' if '--check' in sys.argv else 'written'}"
        )
        if "--check" not in sys.argv:
            path.write_text(rendered(path.read_text("utf-8")), "utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
