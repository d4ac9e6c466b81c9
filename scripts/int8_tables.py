"""The tables of the INT8 benchmark: latency by engine and network, exactness, ratios, other figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from where import where

NETWORKS = {
    "bert-base": "BERT-base shape, 128 tokens",
    "minilm": "MiniLM-L6, 128 tokens",
    "resnet50": "ResNet-50",
    "mobilenetv2": "MobileNetV2",
    "resnet8": "ResNet8",
    "ds-cnn": "DS-CNN",
}
SETTINGS = {"avx2": "AVX2 alone", "all": "all instructions of this CPU"}
TURNS = (
    "All take turns on the same cores in one run; ratios are of the fastest calls, and in brackets of the "
    "rounds without the outer tenths."
)
EXACT = (
    "Exact: single operators on extreme values give the exact integers with these instructions, up to one "
    "step of rounding; with these weights: only on weights that are overflow-safe. The best peer may be one "
    "that is not exact."
)


def whole(result: dict[str, Any]) -> str:
    """Whole networks with AVX2 alone, where the goals were set."""
    if not _raced(result, "avx2"):
        return f"No process can be held to AVX2 on this machine. {where(result)}\n"
    lines = _table(result, NETWORKS, "avx2", goals=True, medians=True)
    safe = [c for c in result["claims"] if c["id"].startswith("sqnr.") and c["id"].endswith(".safe")]
    caption = (
        "Milliseconds for one sample on one thread, every engine held to AVX2: the fastest call, and the "
        f"median in brackets. {TURNS} {EXACT}"
    )
    if safe:
        caption += (
            ' All run the same integers, exported with `overflow_safe = "quads"`: weights whose products add '
            "up within 16 bits, four at a time; what they cost is in the last two rows."
        )
    return _text(lines, f"{caption} {where(result)}")


def whole_all(result: dict[str, Any]) -> str:
    """Whole networks with all that the CPU has, fastest calls alone."""
    if not _raced(result, "all"):
        return "This CPU has no instructions beyond AVX2.\n"
    lines = _table(result, NETWORKS, "all")
    caption = (
        "The fastest call in milliseconds, one sample on one thread, with all instructions of the same CPU."
    )
    return _text(lines, caption)


def whole_threads(result: dict[str, Any]) -> str:
    """Whole networks on two threads, in the first setting that could be had."""
    setting = next(r["instructions"] for r in result["rows"] if r["threads"] == 2)
    lines = _table(result, NETWORKS, setting, threads=2)
    caption = (
        f"The fastest call in milliseconds, one sample on two threads and two cores, {SETTINGS[setting]}. "
        f"{TURNS} One thread over two is measured in the same run. {where(result)}"
    )
    return _text(lines, caption)


def gemm(result: dict[str, Any]) -> str:
    """Single matrix products, in every setting."""
    return _operators(result, "gemm-")


def depthwise(result: dict[str, Any]) -> str:
    """Depthwise convolutions, in every setting."""
    return _operators(result, "depthwise-")


def _operators(result: dict[str, Any], prefix: str) -> str:
    models = dict.fromkeys(r["model"] for r in result["rows"] if r["model"].startswith(prefix))
    titles = {m: m.removeprefix(prefix) for m in models}
    parts = []
    for setting, title in SETTINGS.items():
        if _raced(result, setting):
            parts += [f"With {title}:", "", *_table(result, titles, setting, medians=True), ""]
    caption = (
        "Milliseconds on one thread, float32 in and out: the fastest call, and the median in brackets. "
        f"{TURNS} {EXACT} {where(result)}"
    )
    return _text(parts[:-1], caption)


def figures(result: dict[str, Any]) -> str:
    """The engine's other figures."""
    elsewhere = ("ratio.", "roofline.", "sqnr.", "threads.")
    lines = ["| figure | value | goal | |", "|---|---:|---:|---|"]
    for claim in result["claims"]:
        if not claim["id"].startswith(elsewhere):
            goal = "" if claim["goal"] is None else f"{claim['goal']:g} {claim['unit']}"
            verdict = {None: "", True: "reached", False: "not reached"}[claim["reached"]]
            lines.append(f"| {claim['what']} | {claim['value']:.3g} {claim['unit']} | {goal} | {verdict} |")
    return _text(lines, where(result))


def _raced(result: dict[str, Any], setting: str) -> bool:
    return any(r["instructions"] == setting for r in result["rows"])


def _table(
    result: dict[str, Any],
    titles: Mapping[str, str],
    setting: str,
    *,
    threads: int = 1,
    goals: bool = False,
    medians: bool = False,
) -> list[str]:
    """Engines by networks, and below them what is claimed of each network.

    Args:
        result: Of the benchmark.
        titles: Of the networks that may appear, in order.
        setting: Instructions.
        threads: Of each engine.
        goals: Whether a row says what was aimed at.
        medians: Whether a cell holds the median too.
    """
    rows = [
        r
        for r in result["rows"]
        if r["model"] in titles and r["instructions"] == setting and r["threads"] == threads
    ]
    models = [m for m in titles if any(r["model"] == m for r in rows)]
    engines = list(dict.fromkeys(r["peer"] for r in rows))
    cells = {(r["peer"], r["model"]): r for r in rows}
    claims = {c["id"]: c for c in result["claims"]}
    best = {m: min(float(r["min_ms"]) for r in rows if r["model"] == m) for m in models}
    tail = "" if setting == "avx2" else f".{setting}"

    def cell(engine: str, model: str) -> str:
        row = cells.get((engine, model))
        if row is None:
            return ""
        text = f"{row['min_ms']:.3g}"
        text = f"**{text}**" if row["min_ms"] == best[model] else text
        return f"{text} ({row['median_ms']:.3g})" if medians else text

    def exact(engine: str) -> str:
        any_weights, raced = next((r["exact"], r["exact_raced"]) for r in rows if r["peer"] == engine)
        if any_weights is None:
            return "float"
        return "yes" if any_weights else "with these weights" if raced else "no"

    def row(title: str, claim: Callable[[str], str], form: Callable[[dict[str, Any]], str]) -> list[str]:
        found = [claims.get(claim(m)) for m in models]
        texts = ["" if c is None else form(c) for c in found]
        return [f"| {title} | | {' | '.join(texts)} |"] if any(texts) else []

    lines = [
        f"| engine | exact | {' | '.join(titles[m] for m in models)} |",
        f"|---|---|{'---:|' * len(models)}",
        *(f"| {e} | {exact(e)} | {' | '.join(cell(e, m) for m in models)} |" for e in engines),
    ]
    if threads > 1:
        lines += row("best peer over Edgewright", lambda m: f"ratio.{m}.threads{threads}", _spread)
        lines += row("Edgewright, one thread over two", lambda m: f"threads.{m}", _spread)
        lines += row("at least", lambda m: f"threads.{m}", _goal)
        return lines
    lines += row("best peer over Edgewright", lambda m: f"ratio.{m}{tail}", _spread)
    if goals:
        lines += row("at least", lambda m: f"ratio.{m}{tail}", _goal)
    lines += row("share of what the core can multiply", lambda m: f"roofline.{m}{tail}", _percent)
    if goals:
        lines += row("signal to quantization noise, dB", lambda m: f"sqnr.{m}", _number)
        lines += row("the same with overflow-safe weights", lambda m: f"sqnr.{m}.safe", _number)
    return lines


def _text(lines: list[str], caption: str) -> str:
    return "\n".join((*lines, "", caption)) + "\n"


def _spread(claim: dict[str, Any]) -> str:
    low, high = claim["interval"]
    return f"{claim['value']:.2f}x ({low:.2f} to {high:.2f})"


def _goal(claim: dict[str, Any]) -> str:
    if claim["goal"] is None:
        return ""
    return f"{claim['goal']:.1f}x: {'reached' if claim['reached'] else 'not reached'}"


def _percent(claim: dict[str, Any]) -> str:
    return f"{100 * claim['value']:.0f} %"


def _number(claim: dict[str, Any]) -> str:
    return f"{claim['value']:.1f}"
