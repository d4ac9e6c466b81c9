"""`edgewright compare`: two models side by side, with a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright.comparing import Comparison, compare
from edgewright.console import DID_NOT_HOLD, DONE, console_for, emit, progress_bar
from edgewright.decisions import Score
from edgewright.paired_latency import LatencyComparison
from edgewright.sides import Side

COLORS = {"passed": "green", "failed": "red"}


def share(text: str | None, option: str) -> float | None:
    """Reads "2%" as 0.02; None as None.

    Raises:
        typer.BadParameter: It is something else.
    """
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: give a percentage such as 2%", param_hint=f"'{option}'"
        ) from None


def run_compare(
    a: str,
    b: str,
    *,
    data: Any,
    labels: Any,
    reference: Path | None,
    batch: int,
    equivalent: str,
    max_slowdown: str | None,
    margin: float | None,
    max_pairs: int,
    seed: int,
    json_to: str | None,
) -> int:
    """Compares, and shows what was found.

    Args:
        a: PATH[@SETTINGS].
        b: The same.
        data: Samples, or None.
        labels: Their labels, or None.
        reference: The float model, or None.
        batch: Samples in a timed call.
        equivalent: Such as "2%".
        max_slowdown: Such as "2%", or None.
        margin: Points of accuracy, or None.
        max_pairs: When to give up.
        seed: Of the orders.
        json_to: Where JSON goes.

    Returns:
        The exit code: 1 where a bound that was asked for did not surely hold.

    Raises:
        typer.BadParameter: It cannot be asked.
        SdkError: It cannot be done; the message says why.
        DeviceError: A side cannot be opened or run.
    """
    console = console_for(json_to)
    try:
        sides = Side.parse(a), Side.parse(b)
        with progress_bar(console) as progress:
            found = compare(
                *sides,
                data=data,
                labels=labels,
                reference=reference,
                batch=batch,
                equivalent=share(equivalent, "--equivalent") or 0.0,
                max_slowdown=share(max_slowdown, "--max-slowdown"),
                margin=None if margin is None else margin / 100,
                max_pairs=max_pairs,
                seed=seed,
                progress=progress,
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    show(found, console)
    emit(json_to, json.loads(found.to_json()))
    return DONE if found.held else DID_NOT_HOLD


def show(found: Comparison, console: Console) -> None:
    """One table, the verdict, and the bounds that were asked for."""
    table = Table("", "A", "B", "B against A", title_justify="left")
    table.title = f"A: {escape(found.a)}\nB: {escape(found.b)}"
    time = found.latency
    table.add_row(
        "latency, median",
        f"{time.median_a_ms:.4g} ms",
        f"{time.median_b_ms:.4g} ms",
        f"{_percent(time.ratio)}  ({_percent(time.interval[0])} to {_percent(time.interval[1])})",
    )
    table.add_row(
        "size",
        f"{found.size_a_bytes:,} bytes",
        f"{found.size_b_bytes:,} bytes",
        _percent(found.size_b_bytes / found.size_a_bytes),
    )
    differ = found.outputs
    steps = ", ".join(f"{n:,} by {s}" for s, n in differ.by_steps.items() if n)
    table.add_row(
        "outputs, differing in any bit",
        "",
        "",
        f"{differ.differing:,} of {differ.values:,}" + (f"; steps: {steps}" if steps else ""),
    )
    if decisions := found.decisions:
        low, high = decisions.flip_interval
        table.add_row(
            "decisions that differ",
            "",
            "",
            f"{decisions.flips:,} of {decisions.samples:,}  ({low:.2%} to {high:.2%})",
        )
        for name, score in (("accuracy", decisions.accuracy), ("agreement", decisions.agreement)):
            if score is not None:
                table.add_row(name, f"{score.a:.2%}", f"{score.b:.2%}", _points(score))
    console.print(table)
    console.print(f"[bold]{escape(sentence(time))}[/]")
    for check in found.checks:
        color = COLORS.get(check.verdict, "yellow")
        console.print(
            f"{escape(check.what)}: {check.value:+.2f} {check.unit}, {check.bound:g} allowed: "
            f"[{color}]{check.verdict}[/]" + (f"; {escape(check.remedy)}" if check.remedy else "")
        )


def sentence(time: LatencyComparison) -> str:
    """The verdict on latency, for people."""
    pairs = f"{time.pairs:,} pairs"
    low, high = time.interval
    if time.verdict == "B is faster":
        return f"B is faster, by {100 * (1 - high):.1f} % at least (95 %, {pairs})"
    if time.verdict == "A is faster":
        return f"A is faster: B is slower by {100 * (low - 1):.1f} % at least (95 %, {pairs})"
    if time.verdict == "equivalent":
        return f"equivalent within {100 * time.equivalent:g} % (95 %, {pairs})"
    if time.pairs_needed is None:
        return f"cannot tell which is faster, after {pairs}; no number of pairs like these would"
    return f"cannot tell which is faster, after {pairs}; about {time.pairs_needed:,} more are needed"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _points(score: Score) -> str:
    low, high = (100 * end for end in score.interval)
    return f"{100 * score.difference:+.2f} points  ({low:+.2f} to {high:+.2f})"
