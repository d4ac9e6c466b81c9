"""`edgewright export --format litert`: what a person sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from edgewright.console import check_writable, console_for, emit, progress_bar
from edgewright.litert.convert import converter_environment, export_litert
from edgewright.side_environment import cost, is_ready


def run_export_litert(
    model: Path,
    out: Path,
    batches: Sequence[int] | None,
    lengths: Sequence[int] | None,
    environments: Path | None,
    json_to: str | None,
) -> None:
    """Converts a `.pt2` program, says before what the converter costs, and shows what was written."""
    console = console_for(json_to)
    check_writable(out)
    environment = converter_environment()
    if model.suffix == ".pt2" and not is_ready(environment, environments):
        console.print(
            f"LiteRT's converter is not here yet and is installed first: {cost(environment)}; Ctrl-C stops it"
        )
    with progress_bar(console) as progress:
        written = export_litert(
            model,
            out,
            batches=batches or (1,),
            lengths=lengths or (),
            environments=environments,
            progress=progress,
        )
    title = f"{escape(str(written.path))}: {written.size_bytes:,} bytes"
    table = Table("signature", "inputs", "outputs", "largest error", title=title, title_justify="left")
    for signature in written.signatures:
        ports = (
            ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in each.items())
            for each in (signature.inputs, signature.outputs)
        )
        table.add_row(signature.name, *map(escape, ports), f"{signature.largest_error:.2g}")
    console.print(table)
    console.print("largest error: against torch, in parts of the largest output")
    if written.narrowed:
        console.print(f"int64 in the model, int32 in the file: {escape(', '.join(written.narrowed))}")
    emit(json_to, asdict(written) | {"path": str(written.path)})
