"""The tables of how well `verify` tells broken artifacts from healthy ones."""

from __future__ import annotations

from typing import Any

from where import where


def _rows(result: dict[str, Any], table: str) -> list[dict[str, Any]]:
    return [r for r in result["rows"] if r["table"] == table]


def verifiers(result: dict[str, Any]) -> str:
    """What `verify` and its rivals caught, and over how many healthy artifacts they cried; the times."""
    claims = {c["id"]: c for c in result["claims"]}
    kinds, healthy = _rows(result, "kinds"), _rows(result, "healthy")
    mutants, killed = (sum(k[n] for k in kinds) for n in ("mutants", "killed"))
    lines = [
        "| verifier | mutants killed | of | share | false alarms | of |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def line(name: str, caught: int, total: int, alarms: int, of: int) -> str:
        return f"| {name} | {caught:,} | {total:,} | {caught / total:.1%} | {alarms} | {of} |"

    alarms = int(claims["false_alarms"]["value"])
    lines.append(line("**`edgewright verify`**", killed, mutants, alarms, len(healthy)))
    lines += [
        line(r["rival"], r["killed"], r["mutants"], r["false_alarms"], r["healthy"])
        for r in _rows(result, "rivals")
    ]
    lines += ["", "| claim | measured | aimed at | |", "|---|---:|---:|---|"]
    for claim in result["claims"]:
        verdict = "reached" if claim["reached"] else "not reached"
        lines.append(
            f"| {claim['id']}: {claim['what']} | {claim['value']:.4g} {claim['unit']} | "
            f"{claim['goal']:g} {claim['unit']} | {verdict} |"
        )
    equivalent = sum(len(k["equivalent"]) for k in kinds)
    left = f"{equivalent} mutants were left out, as what they give is proven to be the same. "
    return "\n".join([*lines, "", left + where(result)]) + "\n"


def defects(result: dict[str, Any]) -> str:
    """Every kind of defect: where it is born, what it is, how many mutants, how many were killed."""
    lines = ["| born in | defect | mutants | killed |", "|---|---|---:|---:|"]
    order = ("graph", "program", "engine", "files")
    for kind in sorted(_rows(result, "kinds"), key=lambda k: order.index(k["where"])):
        if kind["mutants"]:
            cells = [kind["where"], f"{kind['kind']}: {kind['what']}", kind["mutants"], kind["killed"]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    survivors = [s for k in _rows(result, "kinds") for s in k["survivors"]]
    lines += ["", f"Survivors: {'; '.join(f'`{s}`' for s in survivors) or 'none'}."]
    return "\n".join(lines) + "\n"


def artifacts(result: dict[str, Any]) -> str:
    """Every healthy artifact, what shows that it is healthy, and the verdict."""
    lines = ["| artifact | decisions as the float model's | SQNR | `verify` |", "|---|---:|---:|---|"]
    for row in _rows(result, "healthy"):
        evidence = row["evidence"]
        agreement = f"{evidence['agreement']:.1%}" if "agreement" in evidence else ""
        verdict = "; ".join(row["why"]) if row["objects"] else "passed"
        lines.append(f"| {row['subject']} | {agreement} | {evidence['sqnr_db']:.1f} dB | {verdict} |")
    return "\n".join(lines) + "\n"
