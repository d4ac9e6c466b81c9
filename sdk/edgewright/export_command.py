"""`edgewright export` and `ds_export`: an artifact, float ONNX or a float model for LiteRT."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright.attention_forms import ATTENTION_OPSET
from edgewright.console import EXPORT_SHARES, console_for, emit, noting, progress_bar
from edgewright.plain import to_plain
from edgewright.sample_files import samples_in
from edgewright_device import Artifact, Target, detect

Format = Literal["artifact", "onnx", "litert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be asked for; each format takes some of it."""

    calibration: Path | None = None
    target: str | None = None
    out: Path | None = None
    optimize: bool = False
    opset: int | None = None
    base: Path | None = None
    recipe: Path | None = None
    backend: Literal["native", "onnxruntime"] = "native"
    fallback: bool = True
    lengths: str | None = None
    mask: str | None = None
    litert: bool = False
    batch: str | None = None
    environments: Path | None = None


TAKES: dict[Format, frozenset[str]] = {
    "artifact": frozenset(f.name for f in fields(Options)) - {"optimize", "opset", "batch", "environments"},
    "onnx": frozenset({"calibration", "out", "optimize", "opset"}),
    "litert": frozenset({"out", "batch", "lengths", "environments"}),
}


def run_export(model: Path, file_format: Format, options: Options, json_to: str | None) -> None:
    """Writes one of the formats, and shows what was written.

    Raises:
        typer.BadParameter: An option that this format has no use for.
    """
    _check(file_format, options)
    if file_format == "litert":
        from edgewright.litert.command import run_export_litert

        out = options.out or model.with_suffix(".tflite")
        batches, lengths = _sizes(options.batch, "--batch"), _sizes(options.lengths, "--lengths")
        run_export_litert(model, out, batches, lengths, options.environments, json_to)
    elif file_format == "onnx":
        _float_onnx(model, options, console_for(json_to), json_to)
    else:
        _artifact(model, options, console_for(json_to), json_to)


def _check(file_format: Format, options: Options) -> None:
    for field in fields(Options):
        unused = field.name not in TAKES[file_format]
        if unused and getattr(options, field.name) != field.default:
            hint = f"'--{field.name}'"
            if field.name == "optimize" and file_format == "artifact":
                raise typer.BadParameter(
                    "is for --format onnx; an artifact is always optimized", param_hint=hint
                )
            raise typer.BadParameter(f"has no meaning for --format {file_format}", param_hint=hint)
    if options.opset is not None and not options.optimize:
        raise typer.BadParameter("goes with --optimize", param_hint="'--opset'")
    if file_format == "onnx" and options.calibration is not None and not options.optimize:
        raise typer.BadParameter("goes with --optimize", param_hint="'--calibration'")
    if options.mask is not None and options.lengths is None:
        raise typer.BadParameter("goes with --lengths", param_hint="'--mask'")
    if not options.fallback and options.backend == "onnxruntime":
        raise typer.BadParameter("is for --backend native", param_hint="'--no-fallback'")


def _float_onnx(model: Path, options: Options, console: Console, json_to: str | None) -> None:
    import edgewright as ew

    beside = model.with_suffix(".optimized.onnx" if model.suffix == ".onnx" else ".onnx")
    written = ew.export_onnx(
        model,
        options.out or beside,
        optimize=options.optimize,
        opset=options.opset or ATTENTION_OPSET,
        data=samples_in(options.calibration) if options.calibration else None,
    )
    console.print(f"wrote {escape(str(written.path))}: {written.nodes} nodes, {written.size_bytes:,} bytes")
    if written.report:
        fused = f", {written.attentions} attentions in one node each" if written.attentions else ""
        console.print(
            f"optimized from {written.nodes_before} nodes{fused}; equal to the graph before on "
            f"{written.report.cases} cases (signal to noise {written.report.sqnr_db:.0f} dB)"
        )
    emit(json_to, to_plain(written) | {"path": str(written.path)})


def _artifact(model: Path, options: Options, console: Console, json_to: str | None) -> None:
    import edgewright as ew

    notes: list[str] = []
    with progress_bar(console, EXPORT_SHARES) as progress:
        artifact = ew.export(
            model,
            target=Target.load(options.target) if options.target else detect(),
            calibration=samples_in(options.calibration) if options.calibration else None,
            out=options.out or model.with_suffix(".ew"),
            base=Artifact.open(options.base) if options.base else None,
            quantize=ew.Recipe.from_toml(options.recipe).quantize if options.recipe else None,
            backend=options.backend,
            fallback=options.fallback,
            lengths=_sizes(options.lengths, "--lengths"),
            mask=options.mask,
            litert=options.litert,
            progress=noting(notes, progress),
        )
    for note in notes:
        console.print(escape(note))
    table = Table("file", "bytes", title=escape(str(artifact.path)), title_justify="left")
    for name, file in artifact.files.items():
        table.add_row(name, f"{file.size_bytes:,}")
    console.print(table)
    emit(
        json_to,
        {
            "artifact": str(artifact.path),
            "digest": artifact.digest,
            "targets": artifact.targets,
            "size_bytes": artifact.size_bytes,
            "files": {name: file.size_bytes for name, file in artifact.files.items()},
            "notes": notes,
            "parts": [asdict(part) for part in artifact.parts],
            "lengths": asdict(artifact.lengths) if artifact.lengths else None,
        },
    )


def _sizes(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: give numbers such as 32,64,128", param_hint=f"'{option}'"
        ) from None
