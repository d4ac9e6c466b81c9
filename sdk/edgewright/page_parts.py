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


def number(value: float) -> str:
    """Four digits, or what a value is that is none."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "not a number"
    return f"{value:.4g}"
