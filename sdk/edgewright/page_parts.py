"""The parts that a report's page is made of: tables, bars, marks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

_WORDS = {"passed": ("✓ passed", "passed"), "failed": ("✗ failed", "failed")}


def verdict_mark(verdict: str) -> str:
    """A verdict in its colour, and readable without it."""
    words, kind = _WORDS.get(verdict, (f"? {verdict}", "unsure"))
    return f'<span class="verdict {kind}">{escape(words)}</span>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; a head that begins with "#" is of a column of numbers."""
    kinds = [' class="num"' if head.startswith("#") else "" for head in heads]
    head = "".join(f"<th{k}>{escape(h.removeprefix('#'))}</th>" for h, k in zip(heads, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{cell}</td>" for cell, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def bar_chart(bars: Sequence[tuple[str, float]], unit: str) -> str:
    """Horizontal bars with a label above each; one that is infinite is full, and says so."""
    most = max([v for _, v in bars if math.isfinite(v)] + [1.0])
    height, wide = 38, 720
    shapes = []
    for place, (label, value) in enumerate(bars):
        top = place * height
        length = wide if value == math.inf else max(0.0, min(1.0, value / (1.15 * most))) * wide
        words = (
            f"{value:.1f} {unit}" if math.isfinite(value) else "no bit differs" if value > 0 else str(value)
        )
        shapes.append(
            f'<text x="0" y="{top + 13}" class="soft">{escape(label)}</text>'
            f'<rect x="0" y="{top + 18}" width="{max(length, 1):.0f}" height="11" rx="2" fill="var(--bar)"/>'
            f'<text x="{max(length, 1) + 8:.0f}" y="{top + 28}">{escape(words)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {wide + 130} {height * len(bars)}" role="img" '
        f'aria-label="{escape(", ".join(f"{n}: {v:.1f} {unit}" for n, v in bars))}">{"".join(shapes)}</svg>'
    )


def layer_chart(names: Sequence[str], bars: Sequence[float], dots: Sequence[float], unit: str) -> str:
    """A bar and a dot for each layer, in order; hovering one names it."""
    wide, high, left = 850.0, 180.0, 40.0
    finite = [v for v in (*bars, *dots) if math.isfinite(v)]
    most = 10 * math.ceil(max([*finite, 10.0]) / 10)
    step = (wide - left) / max(1, len(names))
    shapes = []
    for mark in range(0, most + 1, 10 if most <= 60 else 20):
        y = high - high * mark / most
        shapes.append(
            f'<line x1="{left}" x2="{wide}" y1="{y:.0f}" y2="{y:.0f}" stroke="var(--line)"/>'
            f'<text x="0" y="{y + 4:.0f}" class="soft">{mark} {unit}</text>'
        )
    for place, (name, bar, dot) in enumerate(zip(names, bars, dots, strict=True)):
        x = left + place * step
        tall, up = (high * max(0.0, min(most, v if math.isfinite(v) else most)) / most for v in (bar, dot))
        shapes.append(
            f"<g><title>{escape(name)}: {bar:.1f} {unit}, alone {dot:.1f} {unit}</title>"
            f'<rect x="{x:.1f}" y="{high - tall:.1f}" width="{max(1.0, step * 0.8):.1f}" height="{tall:.1f}" '
            f'fill="var(--bar-2)"/><circle cx="{x + step * 0.4:.1f}" cy="{high - up:.1f}" '
            f'r="{min(3.5, max(1.5, step * 0.3)):.1f}" fill="var(--bar)"/></g>'
        )
    label = f"signal to noise of {len(names)} values in order"
    box = f"0 -8 {wide:.0f} {high + 16:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'


def number(value: float) -> str:
    """Four digits, or what a value is that is none."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "not a number"
    return f"{value:.4g}"
