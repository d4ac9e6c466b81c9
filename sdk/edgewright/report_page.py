"""A verification report as one HTML page: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from edgewright.agreement import WorstCase
from edgewright.checks import Check
from edgewright.page_parts import bar_chart, number, table, verdict_mark
from edgewright.preview import Preview
from edgewright.report_details import cause, coverage, inside, layers, overflow
from edgewright.verification_report import VerificationReport

_KINDS = {
    "sample": "real samples, as they are",
    "between": "between two samples",
    "noise": "samples with noise",
    "shift": "samples, shifted",
    "boundary": "near where the decision changes",
    "edge": "at the ends of the range",
    "inner": "driving inner values to their ends",
}


def html_page(report: VerificationReport) -> str:
    """The whole report for a person: verdict first, then why, then each figure with its chart."""
    sections = [
        _header(report),
        _wrong(report.checks),
        inside(report.findings),
        cause(report.divergences, report.remedy),
        _checks(report.checks),
        _errors(report),
        _strata(report),
        layers(report.layers),
        overflow(report.overflow),
        coverage(report.coverage),
        _worst(report.worst),
        _certificate(report),
    ]
    style = resources.files("edgewright").joinpath("report_page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.name)}: verification</title>\n<style>\n{style}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(s for s in sections if s) + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: VerificationReport) -> str:
    doubts = sum(c.verdict != "passed" for c in report.checks)
    if report.passed:
        verdict, words = "passed", f"All {len(report.checks)} checks passed"
    else:
        failed = any(c.verdict == "failed" for c in report.checks)
        verdict = "failed" if failed else "cannot tell"
        words = f"{doubts} of {len(report.checks)} checks did not pass"
    machine = ", ".join(f"{k} {v}" for k, v in report.machine.items())
    return (
        f"<h1>{escape(report.name)} {verdict_mark(verdict)}</h1>\n"
        f"<p>{words}, on {report.cases:,} cases (seed {report.seed}) against "
        f"<code>{escape(report.reference)}</code>.</p>\n"
        f'<p class="soft">SHA-256 <code>{escape(report.artifact)}</code><br>{escape(machine)}</p>'
    )


def _wrong(checks: Sequence[Check]) -> str:
    found = [c for c in checks if c.verdict != "passed"]
    if not found:
        return ""
    items = "".join(
        f"<p>{verdict_mark(c.verdict)} {escape(c.what)}: {number(c.value)} {escape(c.unit)}, "
        f"{number(c.bound)} allowed.{' <b>' + escape(c.remedy) + '</b>' if c.remedy else ''}</p>"
        for c in found
    )
    return f"<h2>What is wrong, and what to do</h2>\n{items}"


def _checks(checks: Iterable[Check]) -> str:
    rows = [
        (
            escape(c.what),
            f"{number(c.value)} {escape(c.unit)}"
            + (
                f'<br><span class="soft">{c.interval[0]:.4f} to {c.interval[1]:.4f}</span>'
                if c.interval
                else ""
            ),
            number(c.bound),
            verdict_mark(c.verdict),
        )
        for c in checks
    ]
    return "<h2>Checks</h2>\n" + table(("check", "#found", "#allowed", "verdict"), rows)


def _errors(report: VerificationReport) -> str:
    split = report.errors
    if split is None:
        return ""
    bars = [
        ("quantization: the float model, and what the integers are defined to give", split.quantization_db),
        ("kernels: that, and what the engine gives", split.kernel_db),
    ]
    if split.conversion_db is not None:
        bars.append(("conversion: the engine, and model.onnx in ONNX Runtime", split.conversion_db))
    return (
        "<h2>Where the error comes from</h2>\n"
        f'<p class="soft">Signal to noise, dB: longer is better, and the shortest bar is the cause. The '
        f"definition was run on {split.cases:,} of the cases.</p>\n" + bar_chart(bars, "dB")
    )


def _strata(report: VerificationReport) -> str:
    rows = [
        (
            escape(_KINDS.get(kind, kind)),
            f"{report.strata[kind]:,}",
            number(db),
            str(report.stratum_flips[kind]) if kind in report.stratum_flips else "",
        )
        for kind, db in report.stratum_sqnr_db.items()
    ]
    bars = [(_KINDS.get(kind, kind), db) for kind, db in report.stratum_sqnr_db.items()]
    heads = ("kind of case", "#cases", "#signal to noise, dB", "#decided otherwise")
    return "<h2>By kind of case</h2>\n" + bar_chart(bars, "dB") + table(heads, rows)


def _worst(worst: Sequence[WorstCase]) -> str:
    if not worst:
        return ""
    shown = []
    for case in worst:
        pictures = "".join(_input(name, given) for name, given in case.inputs.items())
        decided = ""
        if case.expected is not None:
            words = f"class {case.got}, as the float model" if case.got == case.expected else ""
            decided = words or f"class {case.got}, the float model says {case.expected}"
            decided = f"<br>{decided}"
        margin = "" if case.margin is None else f"<br>float margin {100 * case.margin:.2g} %"
        shown.append(
            f'<div class="case">{pictures}<b>case {case.case}</b>, {escape(case.stratum)}<br>'
            f"error {100 * case.error:.2g} % of the largest output{decided}{margin}</div>"
        )
    return f'<h2>Worst cases</h2>\n<div class="cases">{"".join(shown)}</div>'


def _input(name: str, given: Preview) -> str:
    label = f"{escape(name)}, {' x '.join(map(str, given.shape))}"
    if given.picture:
        return f'<img src="{given.picture}" alt="{label}">'
    numbers = " ".join(f"{n:g}" for n in given.numbers)
    more = " …" if math.prod(given.shape) > len(given.numbers) else ""
    return f'<div>{label}</div><div class="numbers">{numbers}{more}</div>'


def _certificate(report: VerificationReport) -> str:
    found = report.certificate
    if found is None:
        return (
            "<h2>Certificate</h2>\n<p>None: a check did not pass. <code>edgewright publish</code> refuses "
            "this report, and a device the release.</p>"
        )
    bounds = [
        (escape(engine), "bit for bit" if steps == 0 else f"within {steps} steps of the output's grid")
        for engine, steps in found.bounds.items()
    ]
    return (
        "<h2>Certificate</h2>\n"
        f"<p>Verified as {escape(found.runtime)} runs it with {escape(found.instruction_set)}, on "
        f"{found.cases:,} cases, against the float model <code>{escape(found.reference[:16])}…</code>.</p>\n"
        + (
            "<p>A device replays the golden vectors before it confirms the release:</p>\n"
            + table(("engine", "must repeat them"), bounds)
            if bounds
            else ""
        )
    )
