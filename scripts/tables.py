"""Writes the tables in README and docs from benchmarks/results/*.json, between `<!-- table: NAME -->` marks.

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
        f"one thread. {_where(result)}"
    )
    return "\n".join(lines) + "\n"


def int8(result: dict[str, Any]) -> str:
    """Latency of each network on each engine; whose integers are exact; how much of the CPU is used."""
    titles = {
        "bert-base": "BERT-base shape, 128 tokens",
        "minilm": "MiniLM-L6, 128 tokens",
        "resnet50": "ResNet-50",
        "mobilenetv2": "MobileNetV2",
        "resnet8": "ResNet8",
        "ds-cnn": "DS-CNN",
    }
    return _race(result, titles)


def int8_gemm(result: dict[str, Any]) -> str:
    """The same of single matrix products."""
    models = dict.fromkeys(r["model"] for r in result["rows"] if r["model"].startswith("gemm-"))
    return _race(result, {m: m.removeprefix("gemm-") for m in models})


def _race(result: dict[str, Any], titles: dict[str, str]) -> str:
    rows = [r for r in result["rows"] if r["model"] in titles]
    models = [m for m in titles if any(r["model"] == m for r in rows)]
    engines = list(dict.fromkeys(r["peer"] for r in rows))
    cells = {(r["peer"], r["model"]): r for r in rows}
    claims = {c["id"]: c for c in result["claims"]}
    best = {
        m: min((r for r in rows if r["model"] == m), key=lambda r: float(r["min_ms"]))["peer"] for m in models
    }

    def cell(engine: str, model: str) -> str:
        row = cells.get((engine, model))
        if row is None:
            return ""
        fastest = f"{row['min_ms']:.3g}"
        return f"{f'**{fastest}**' if best[model] == engine else fastest} ({row['median_ms']:.3g})"

    def exact(engine: str) -> str:
        found = {r["exact"] for r in rows if r["peer"] == engine}
        return "float" if found == {None} else "yes" if found == {True} else "no"

    def claimed(kind: str, model: str, form: Callable[[dict[str, Any]], str]) -> str:
        claim = claims.get(f"{kind}.{model}")
        return "" if claim is None else form(claim)

    lines = [
        f"| engine | exact | {' | '.join(titles[m] for m in models)} |",
        f"|---|---|{'---:|' * len(models)}",
    ]
    lines += [f"| {e} | {exact(e)} | {' | '.join(cell(e, m) for m in models)} |" for e in engines]
    lines.append(
        f"| best peer over Edgewright | | {' | '.join(claimed('ratio', m, _spread) for m in models)} |"
    )
    goals = [claimed("ratio", m, _goal) for m in models]
    if any(goals):
        lines.append(f"| at least | | {' | '.join(goals)} |")
    shares = [claimed("roofline", m, lambda c: f"{100 * c['value']:.0f} %") for m in models]
    lines.append(f"| share of what the core can multiply | | {' | '.join(shares)} |")
    caption = (
        "Milliseconds for one sample on one thread: the fastest call, and the median in brackets. All take "
        "turns on one core in one run; ratios are of the fastest calls, and in brackets of the rounds "
        "without the outer tenths. Exact: single operators on extreme values give the exact integers on this "
        f"CPU, up to one step of rounding. {_where(result)}"
    )
    return "\n".join((*lines, "", caption)) + "\n"


def int8_figures(result: dict[str, Any]) -> str:
    """The engine's other figures."""
    lines = ["| figure | value | goal | |", "|---|---:|---:|---|"]
    for claim in result["claims"]:
        if not claim["id"].startswith(("ratio.", "roofline.")):
            goal = "" if claim["goal"] is None else f"{claim['goal']:g} {claim['unit']}"
            verdict = {None: "", True: "reached", False: "not reached"}[claim["reached"]]
            lines.append(f"| {claim['what']} | {claim['value']:.3g} {claim['unit']} | {goal} | {verdict} |")
    return "\n".join((*lines, "", _where(result))) + "\n"


def _spread(claim: dict[str, Any]) -> str:
    low, high = claim["interval"]
    return f"{claim['value']:.2f}x ({low:.2f} to {high:.2f})"


def _goal(claim: dict[str, Any]) -> str:
    if claim["goal"] is None:
        return ""
    return f"{claim['goal']:.1f}x: {'reached' if claim['reached'] else 'not reached'}"


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"`{result['command']}` on {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, "
        f"Python {machine['python']}, {versions}."
    )


# The tables, and the results each is made of.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "demo": ("demo", demo),
    "int8": ("int8", int8),
    "int8-gemm": ("int8", int8_gemm),
    "int8-figures": ("int8", int8_figures),
}


def rendered(text: str) -> str:
    """The text with every marked table made anew."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
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
