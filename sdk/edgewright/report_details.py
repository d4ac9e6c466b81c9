"""The sections of a report's page that look inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgewright.coverage import Coverage
from edgewright.divergence import Divergence
from edgewright.layer_findings import LayerFinding
from edgewright.overflow_risks import OverflowFinding
from edgewright.page_parts import layer_chart, number, table, verdict_mark
from edgewright.remedies import Remedy
from edgewright.soundness.finding import Finding

WORST_LAYERS = 12


def inside(findings: Sequence[Finding]) -> str:
    """What was found wrong inside, with its place and a likely cause; empty where nothing was."""
    if not findings:
        return ""
    rows = [(f"<code>{escape(f.place)}</code>", escape(f.found), escape(f.cause)) for f in findings]
    return "<h2>Found inside</h2>\n" + table(("where", "what", "likely cause"), rows)


def layers(found: Sequence[LayerFinding]) -> str:
    """Signal to noise layer by layer; empty where the layers could not be compared."""
    if not found:
        return ""
    names = [f"{f.layer} ({f.operator})" if f.operator else f.layer for f in found]
    chart = layer_chart(names, [f.accumulated_db for f in found], [f.local_db for f in found], "dB")
    least = sorted(found, key=lambda f: f.local_db)[:WORST_LAYERS]
    rows = [
        (
            f'<code class="name">{escape(f.layer)}</code> {escape(f.operator)}',
            escape(f.grid) + (f", {f.weight_bits}-bit weights" if f.weight_bits else ""),
            number(f.accumulated_db),
            number(f.local_db),
            f"{100 * (f.below + f.above):.2g} %",
            f"{number(f.worst_channel_db)} in {f.worst_channel}",
        )
        for f in least
    ]
    heads = ("layer", "grid", "#gathered, dB", "#alone, dB", "#beyond its grid", "#worst channel, dB")
    return (
        "<h2>Layer by layer</h2>\n"
        "<p>Signal to noise of each value against the float model's, in order: a bar for what has gathered "
        f"up to there, a dot for what the layer adds alone. On {found[0].cases} cases.</p>\n{chart}"
        '<p class="soft">Those with most noise of their own:</p>\n' + table(heads, rows)
    )


def cause(divergences: Sequence[Divergence], remedy: Remedy | None) -> str:
    """The first node that diverges, why, and what was tried; empty where nothing diverges."""
    if not divergences and remedy is None:
        return ""
    told = "".join(
        f"<p><b>{escape(d.kind.capitalize())}</b> diverges first at <code>{escape(d.layer)}</code> "
        f"({escape(d.operator)}): {escape(d.because)}</p>\n"
        for d in divergences
    )
    return "<h2>The cause, and what heals it</h2>\n" + told + ("" if remedy is None else _tried(remedy))


def _tried(remedy: Remedy) -> str:
    if not remedy.attempts:
        waiting = "".join(f"<li>{escape(words)}</li>" for words in remedy.untried)
        return f"<p>Not tried yet (<code>--remedies</code> does):</p><ul>{waiting}</ul>" if waiting else ""
    rows = [
        (
            escape(a.change),
            "<br>".join(f"{escape(c.name)} {number(c.value)} {escape(c.unit)}" for c in a.checks)
            or escape(a.error),
            f"{a.size_bytes:,}" if a.size_bytes else "",
            verdict_mark("passed" if a.passed else "failed"),
        )
        for a in (remedy.before, *remedy.attempts)
    ]
    best = remedy.recommended
    recipe = f"<pre>{escape(best.recipe)}</pre>" if best is not None and best.recipe else ""
    words = "<p>None of these heals it.</p>"
    if best is not None:
        words = f"<p><b>{escape(best.change)}</b> heals it.</p>"
    return words + recipe + table(("change", "what it gives", "#bytes", "verdict"), rows)


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
