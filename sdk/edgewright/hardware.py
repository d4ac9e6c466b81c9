"""The hardware matrix: every target that comes along, for a terminal, for JSON and for docs/hardware.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_device import STATUS_WORDS, Provider, Target, TargetError, detect, target_names

_HEADINGS = (
    "target",
    "hardware",
    "kind",
    "memory",
    "engines, the preferred first",
    "integers: activations / weights",
    "shapes",
    "strategy",
    "status",
)


def show_all(console: Console) -> dict[str, Any]:
    """Prints the matrix; returns it as JSON data."""
    here = _here()
    table = Table("target", "hardware", "memory", "engines, the preferred first", "status", padding=(0, 1))
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    targets = [Target.load(name) for name in target_names()]
    for target in targets:
        table.add_row(
            f"{target.name} (here)" if target.name == here else target.name,
            escape(target.title),
            memory(target),
            ", ".join(engines(target)),
            STATUS_WORDS[target.status],
        )
    console.print(table, soft_wrap=False)
    console.print("`edgewright targets NAME` shows one in full, with where its facts are written.")
    return {"here": here, "targets": [as_json(t) for t in targets]}


def show_one(target: Target, console: Console) -> dict[str, Any]:
    """Prints all that is known of a target; returns it as JSON data."""
    table = Table(title=escape(target.title), title_justify="left", show_header=False, padding=(0, 1))
    table.add_row("name", f"{target.name} (here)" if target.name == _here() else target.name)
    table.add_row("kind", target.kind)
    table.add_row("processor", ", ".join((target.arch, *target.instruction_sets)))
    table.add_row("accelerator", escape(target.accelerator or "none"))
    table.add_row("memory", memory(target))
    table.add_row("backends", ", ".join(target.backends))
    for choice in target.choices():
        table.add_row(f"provider {choice}", escape(provider_words(choice.provider)))
    table.add_row("shapes", shapes(target))
    table.add_row("strategy", escape(target.strategy))
    status = STATUS_WORDS[target.status]
    table.add_row("status", escape(f"{status}: {target.evidence}" if target.evidence else status))
    for source in target.sources:
        table.add_row("source", escape(source))
    for choice in target.choices():
        for source in choice.provider.sources:
            table.add_row("source", escape(f"{choice.provider.short}: {source}"))
    console.print(table, soft_wrap=False)
    return as_json(target)


def hardware_table() -> str:
    """The matrix in Markdown, with its sources below."""
    lines = [f"| {' | '.join(_HEADINGS)} |", "|---|---|---|---:|---|---|---|---|---|"]
    targets = [Target.load(name) for name in target_names()]
    for target in targets:
        cells = [
            f"`{target.name}`",
            f"{target.title}; {target.accelerator}" if target.accelerator else target.title,
            target.kind,
            memory(target),
            ", ".join(engines(target)),
            integers(target),
            shapes(target),
            target.strategy,
            STATUS_WORDS[target.status],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What each status rests on, and where the facts are from:", ""]
    for target in targets:
        said = [f"{target.evidence}."] if target.evidence else []
        for source in target.sources:
            fact, _, address = source.rpartition(": ")
            said.append(f"[{fact[:1].upper()}{fact[1:]}]({address}).")
        lines.append(f"- `{target.name}`: {' '.join(said)}")
    providers = {c.provider.name: c.provider for t in targets for c in t.choices()}
    lines += ["", "| provider | package | integers: activations / weights | note |", "|---|---|---|---|"]
    for provider in providers.values():
        links = ", ".join(f"[{n}]({s})" for n, s in enumerate(provider.sources, 1))
        package = f"`{provider.package}`" if provider.package else "none: build ONNX Runtime with it"
        cells = [f"`{provider.short}`", package, provider.integers, f"{provider.note} ({links})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def engines(target: Target) -> list[str]:
    """Its engines, in order: the native one, ONNX Runtime by its providers, others by their names."""
    found: list[str] = []
    for backend in target.backends:
        found += [str(c) for c in target.choices()] if backend == "onnxruntime" else [backend]
    return found


def integers(target: Target) -> str:
    """What its preferred engine computes in."""
    if target.backends[0] != "onnxruntime":
        return "u8 s16 / s8 s4"
    return target.choices()[0].provider.integers if target.choices() else ""


def memory(target: Target) -> str:
    """What a model may count on, in GiB."""
    return f"{target.memory_bytes / (1 << 30):.3g} GiB"


def shapes(target: Target) -> str:
    """Which sizes may be free."""
    return "fixed, batch 1" if target.fixed_shapes else "free batch"


def provider_words(provider: Provider) -> str:
    """What a provider takes and needs, in a line."""
    package = f"pip install {provider.package}" if provider.package else "build ONNX Runtime with it"
    return f"{provider.integers}; {provider.note}; {package}"


def as_json(target: Target) -> dict[str, Any]:
    """A target with what follows from its providers."""
    providers = [
        {
            "provider": str(choice),
            "package": choice.provider.package,
            "activations": sorted(choice.provider.activations),
            "weights": sorted(choice.provider.weights),
            "symmetric": choice.provider.symmetric,
            "per_channel": choice.provider.per_channel,
            "fixed_shapes": choice.fixed_shapes,
            "note": choice.provider.note,
            "sources": choice.provider.sources,
        }
        for choice in target.choices()
    ]
    return asdict(target) | {"fixed_shapes": target.fixed_shapes, "takes": providers}


def _here() -> str | None:
    try:
        return detect().name
    except TargetError:
        return None
