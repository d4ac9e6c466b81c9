"""`edgewright verify`: the table of checks, and the report as JSON and as a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edgewright.checks import Check
from edgewright.console import DID_NOT_HOLD, console_for, emit, noting, progress_bar
from edgewright.remedies import Remedy
from edgewright.verification_report import VerificationReport

if TYPE_CHECKING:
    from edgewright.recipe import Quantize


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the findings go.

    Attributes:
        report: The report as JSON, for `publish`; or None.
        html: The report as a page; or None.
        json_to: The same JSON, to a file or "-"; or None.
    """

    report: Path | None
    html: Path | None
    json_to: str | None


def run_verify(artifact: Path, outputs: Outputs, **asked: Any) -> int:
    """Verifies, shows and writes; returns the exit code.

    Args:
        artifact: As `edgewright.verify` takes it.
        outputs: Where the findings go.
        asked: The other arguments of `edgewright.verify`.
    """
    import edgewright as ew

    console = console_for(outputs.json_to)
    notes: list[str] = []
    with progress_bar(console) as progress:
        found = ew.verify(artifact, **asked, progress=noting(notes, progress))
    for note in notes:
        console.print(escape(note))
    console.print(_table(found, f"{artifact}: {found.cases} cases"))
    for check in found.checks:
        if check.remedy:
            console.print(f"[bold]{escape(check.name)}:[/] {escape(check.remedy)}")
    if found.remedy is not None and found.remedy.attempts:
        console.print(_attempts(found.remedy))
        for line in _recommended(found.remedy, artifact, asked.get("healed")):
            console.print(escape(line))
    elif asked.get("healed"):
        console.print(escape(f"Nothing was to be healed: {asked['healed']} was not written."))
    if outputs.report:
        _write(outputs.report, found.to_json())
    if outputs.html:
        from edgewright.report_page import html_page

        _write(outputs.html, html_page(found))
    emit(outputs.json_to, json.loads(found.to_json()))
    return 0 if found.passed else DID_NOT_HOLD


def _table(report: VerificationReport, title: str) -> Table:
    table = Table("check", "found", "allowed", "verdict", title=escape(title), title_justify="left")
    for check in report.checks:
        spread = f"  ({check.interval[0]:.4f} to {check.interval[1]:.4f})" if check.interval else ""
        color = {"passed": "green", "failed": "red"}.get(check.verdict, "yellow")
        table.add_row(
            escape(check.what),
            f"{check.value:.4g} {check.unit}{spread}",
            f"{check.bound:g}",
            f"[{color}]{check.verdict}[/]",
        )
    return table


def _attempts(remedy: Remedy) -> Table:
    names = [c.name for c in remedy.before.checks]
    table = Table("remedies tried", *names, "bytes", "passed", title_justify="left")
    for attempt in (remedy.before, *remedy.attempts):
        cells = {c.name: _brief(c) for c in attempt.checks}
        change = escape(attempt.change + (f": {attempt.error}" if attempt.error else ""))
        passed = "[green]yes[/]" if attempt.passed else "[red]no[/]"
        table.add_row(change, *(cells.get(n, "") for n in names), f"{attempt.size_bytes:,}", passed)
    return table


def _brief(check: Check) -> str:
    value = f"{check.value:.2%}" if check.unit.startswith("of ") else f"{check.value:.4g} {check.unit}"
    return value if check.verdict == "passed" else f"[red]{value}[/]"


def _recommended(remedy: Remedy, artifact: Path, healed: Path | None) -> list[str]:
    """What to do now, as lines."""
    best = remedy.recommended
    if best is None:
        return [f"None is enough: {healed} was not written."] if healed else ["None is enough."]
    lines = [f"Recommended: {best.change}"]
    if best.recipe:
        lines += ["In a recipe:", best.recipe.rstrip()]
    if healed:
        lines.append(f"Written to {healed}, which is to be verified like {artifact}.")
    return lines


def quantize_of(recipe: Path) -> Quantize:
    """The `[quantize]` of a recipe's file."""
    from edgewright.recipe import Recipe

    return Recipe.from_toml(recipe).quantize


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
