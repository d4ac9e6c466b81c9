"""The sections of a report's page that look inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgewright.coverage import Coverage
from edgewright.overflow_risks import OverflowFinding
from edgewright.page_parts import table


def overflow(findings: Sequence[OverflowFinding]) -> str:
    """What is proven of each layer in runtimes whose kernels add in 16 bits; empty where there is nothing."""
    if not findings:
        return ""
    risky = [f for f in findings if f.verdict != "safe" and f.verdict != "not in integers"]
    safe = sum(f.verdict == "safe" for f in findings)
    words = (
        "<p>Some CPUs add products of 8 bits in 16 bits, which saturate. For each layer and each runtime it "
        "is proven that no input does that, or an input is known that does. Edgewright's own engine is "
        "exact.</p>\n"
        f"<p>{safe} of {len(findings)} layers and kernels are safe"
        + (f", {len(risky)} are not:</p>\n" if risky else ".</p>\n")
    )
    rows = [
        (
            f'<code class="name">{escape(f.layer)}</code><br>{escape(f.operator)}',
            f'{escape(f.runtime)}<br><span class="soft">{_where(f)}</span>',
            f"{f.worst:,}<br>of {f.limit:,}" if f.verdict == "at risk" else "",
            f"{f.pairs:,}" if f.verdict == "at risk" else "",
            " ".join(filter(None, (_verdict_of_risk(f), escape(f.reach), escape(f.confirmed)))),
        )
        for f in risky
    ]
    remedies = "".join(f"<p>{escape(r)}</p>" for r in dict.fromkeys(f.remedy for f in risky) if r)
    heads = ("layer", "runtime", "#worst sum", "#pairs", "what is known")
    return (
        "<h2>16-bit overflow in other runtimes</h2>\n"
        + words
        + (table(heads, rows) if rows else "")
        + remedies
    )


def _verdict_of_risk(finding: OverflowFinding) -> str:
    if finding.verdict == "not proven":
        return '<span class="verdict unsure">? not proven.</span>'
    kind = "failed" if finding.reached else "unsure"
    return f'<span class="verdict {kind}">{escape(finding.verdict)}.</span>'


def coverage(found: Coverage | None) -> str:
    """What the cases reached; empty where nothing is on a grid."""
    if found is None:
        return ""
    rows = [
        (
            f"<code>{escape(v.name)}</code>",
            f"{100 * v.levels:.0f} %",
            f"{100 * v.span:.0f} %",
            f"{100 * v.low:.2g} %",
            f"{100 * v.high:.2g} %",
            f"{v.idle} of {v.channels}",
        )
        for v in dict.fromkeys((*found.least, *found.saturated))
    ]
    heads = (
        "value",
        "#levels reached",
        "#of the grid spanned",
        "#at the lowest",
        "#at the highest",
        "#idle channels",
    )
    return (
        "<h2>How far the cases moved the model</h2>\n"
        f"<p>Over {found.cases:,} cases, {found.values} values on grids: in the median "
        f"{100 * found.median_levels:.0f} % of a value's levels were reached, and natural cases spanned "
        f"{100 * found.median_span:.0f} % of its grid. {found.idle:,} of {found.channels:,} channels never "
        "changed. The values reached least, and those that stopped at an end most:</p>\n" + table(heads, rows)
    )


def _where(finding: OverflowFinding) -> str:
    return escape(f"{finding.kernel}; {', '.join(finding.instruction_sets)}")
