"""`edgewright` and `ds_export`: the trip from a trained model to a signed release, on the command line."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from edgewright.console import (
    DID_NOT_HOLD,
    JsonOption,
    check_writable,
    console_for,
    emit,
    progress_bar,
    run,
)
from edgewright.errors import PublishError, VerifyError
from edgewright.sample_files import labelled_in, samples_in
from edgewright_device import (
    BACKENDS,
    Artifact,
    ArtifactError,
    Runner,
    RunnerError,
    Target,
)

app = typer.Typer(
    name="edgewright",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(
        help="FILE.py:NAME or package.module:NAME (calling NAME gives the nn.Module), .pt2 or .onnx.",
        metavar="MODEL",
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Its weights, a safetensors state dict.")]
DataSource = Annotated[
    str,
    typer.Option(
        "--data",
        help=".npz with x and y, or x_train, y_train, x_validation, y_validation; or FILE.py:NAME, calling "
        "NAME giving an edgewright.Data.",
        metavar="DATA",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help=r"NAME.pt2, the smaller model (NAME.onnx, if the recipe has \[qat]), or NAME.ew, its artifact."
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="A folder for what is done so far, which stays; else NAME.checkpoint, until OUT is written.",
        metavar="DIR",
    ),
]
LockedOption = Annotated[
    Path | None,
    typer.Option("--locked", help="A lock of an earlier run: refuse what differs from it.", metavar="LOCK"),
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="QUANTITY=LIMIT",
        help="Search for a recipe: latency=5ms, size=200kB, or latency=60% of the model in INT8 alone.",
    ),
]
TeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="The teacher, as MODEL.", metavar="MODEL")
]
TeacherWeights = Annotated[Path | None, typer.Option(help="The teacher's weights.")]
ArtifactPath = Annotated[Path, typer.Argument(help="An artifact, NAME.ew.", metavar="ARTIFACT")]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="A target's name or TOML file; this machine if left out.")
]
Seed = Annotated[int, typer.Option(min=0, help="Fixes all random choices.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgewright {installed('edgewright')}")
        raise typer.Exit


@app.callback()
def _edgewright(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Take a trained PyTorch model to a fleet of edge devices."""
    del version


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where artifacts, repository and device go.")] = Path("out/demo"),
    seed: Seed = 0,
    json_to: JsonOption = None,
) -> None:
    """The whole trip on handwritten digits: compress, verify, publish, update, roll back."""
    import torch

    from edgewright.demo import run_demo, show

    # Networks this small are no faster on more threads, and on a busy machine these wait for one another.
    torch.set_num_threads(1)
    console = console_for(json_to)
    result = run_demo(out, seed=seed, console=console)
    show(result, console)
    emit(json_to, result)


@app.command()
def compress(
    model: Model,
    data: DataSource,
    out: Out,
    recipe: Annotated[Path | None, typer.Option(help="The recipe, TOML; a search may do without.")] = None,
    weights: Weights = None,
    teacher: TeacherOption = None,
    teacher_weights: TeacherWeights = None,
    target: TargetOption = None,
    checkpoint: CheckpointOption = None,
    locked: LockedOption = None,
    budget: BudgetOption = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="For a search: points that may be lost against the float model; -1 by default."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="For a search: recipes to try; 30 by default.")
    ] = None,
    confirm: Annotated[
        Path | None,
        typer.Option(help="For a search: .npz with x, y to confirm the winner on; else half of validation."),
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="For a search: the folder of its trials; else NAME.search.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Distil, prune and fine-tune a model as a recipe says; with --out NAME.ew also quantize it.

    Beside the result goes NAME.lock: recipe, digests of model and data, versions. What was cut off goes on
    where it was when the same command runs again. With --budget, search for a recipe that meets it and keeps
    the accuracy; then NAME.toml has the recipe found.
    """
    from edgewright.compress_command import Wanted, run_compress
    from edgewright.recipe import Recipe

    only_searching = {"min-accuracy": min_accuracy, "trials": trials, "confirm": confirm, "search": search}
    for name, value in only_searching.items():
        if value is not None and not budget:
            raise typer.BadParameter("is for a search; give a --budget too", param_hint=f"'--{name}'")
    if recipe is None and not budget:
        raise typer.BadParameter("give one; only a search may do without", param_hint="'--recipe'")
    wanted = Wanted(
        model=model,
        recipe=Recipe.from_toml(recipe) if recipe else Recipe(name="search"),
        data=data,
        out=out,
        weights=weights,
        teacher=teacher,
        teacher_weights=teacher_weights,
        target=Target.load(target) if target else None,
        checkpoint=checkpoint,
        locked=locked,
    )
    if budget:
        from edgewright.search_command import Asked, run_search

        asked = Asked.parsed(budget, min_accuracy, trials, confirm, search or out.with_suffix(".search"))
        raise typer.Exit(run_search(wanted, asked, json_to))
    raise typer.Exit(run_compress(wanted, json_to))


@app.command()
def distill(
    student: Model,
    teacher: Annotated[str, typer.Option(help="The teacher, as MODEL.", metavar="MODEL")],
    data: DataSource,
    out: Out,
    weights: Weights = None,
    teacher_weights: TeacherWeights = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of the optimizer, at its highest.")] = 2e-3,
    temperature: Annotated[float, typer.Option(help="Softens both outputs.")] = 4.0,
    alpha: Annotated[float, typer.Option(help="Weight of the teacher, 0..1.")] = 0.7,
    seed: Seed = 0,
    target: TargetOption = None,
    checkpoint: CheckpointOption = None,
    locked: LockedOption = None,
    json_to: JsonOption = None,
) -> None:
    """Train a student from a teacher's outputs: `compress` with a recipe of one step, written as options."""
    from edgewright.compress_command import Wanted, run_compress
    from edgewright.recipe import Distill, Recipe

    try:
        how = Distill(epochs=epochs, learning_rate=learning_rate, temperature=temperature, alpha=alpha)
        recipe = Recipe(name="distill", seed=seed, distill=how)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    wanted = Wanted(
        model=student,
        recipe=recipe,
        data=data,
        out=out,
        weights=weights,
        teacher=teacher,
        teacher_weights=teacher_weights,
        target=Target.load(target) if target else None,
        checkpoint=checkpoint,
        locked=locked,
    )
    raise typer.Exit(run_compress(wanted, json_to))


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(help="A .pt2 program, or an .onnx file, float or QDQ.", metavar="MODEL")
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(help=".npz with x, or with an array for each input; a QDQ file may do without."),
    ] = None,
    target: TargetOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; beside the model if left out.")] = None,
    file_format: Annotated[
        Literal["artifact", "onnx", "litert"],
        typer.Option("--format", help="artifact: INT8; onnx, litert: float32, the latter of a .pt2 alone."),
    ] = "artifact",
    optimize: Annotated[
        bool,
        typer.Option("--optimize", help="With --format onnx: simplify the graph, and check it is equal."),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(min=20, help="With --optimize: the latest opset to use, 23 if left out."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The artifact now on the devices: keeps updates small.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help=r"A recipe; its \[quantize] part is used.")] = None,
    backend: Annotated[
        Literal["native", "onnxruntime"],
        typer.Option(help="onnxruntime takes operators that the native engine lacks."),
    ] = "native",
    fallback: Annotated[
        bool,
        typer.Option(help="Hand operators that the native engine lacks to ONNX Runtime, the rest to itself."),
    ] = True,
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths of sequences to make a program for each of, such as 32,64,128."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="With --lengths: the input that hides padding; found if left out.")
    ] = None,
    litert: Annotated[
        bool, typer.Option("--litert", help="Also put the same integers into model.tflite, for LiteRT.")
    ] = False,
    batch: Annotated[
        str | None, typer.Option(help="With --format litert: sizes of the batch, such as 1,8; 1 if left out.")
    ] = None,
    environments: Annotated[
        Path | None,
        typer.Option(
            help="With --format litert: where its converter is installed; else ~/.cache/edgewright/envs."
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Quantize a model to INT8 and write it as an artifact; or write it as float ONNX, or for LiteRT."""
    from edgewright.export_command import Options, run_export

    run_export(
        model,
        file_format,
        Options(
            calibration=calibration,
            target=target,
            out=out,
            optimize=optimize,
            opset=opset,
            base=base,
            recipe=recipe,
            backend=backend,
            fallback=fallback,
            lengths=lengths,
            mask=mask,
            litert=litert,
            batch=batch,
            environments=environments,
        ),
        json_to,
    )


@app.command()
def sensitivity(
    model: Annotated[Path, typer.Argument(help="A .pt2 program, or a float .onnx file.", metavar="MODEL")],
    calibration: Annotated[Path, typer.Option(help=".npz with x, or with an array for each input.")],
    data: Annotated[
        Path | None,
        typer.Option(help=".npz to measure on, with labels in y; else 64 calibration samples serve."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help=r"A recipe; its \[quantize] part is used.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many layers to show.")] = 30,
    json_to: JsonOption = None,
) -> None:
    """What each layer's quantization alone does to a model's outputs, the most sensitive first."""
    import edgewright as ew

    console = console_for(json_to)
    measured, labels = labelled_in(data) if data else (None, None)
    with progress_bar(console) as progress:
        found = ew.sensitivity(
            model,
            calibration=samples_in(calibration),
            data=measured,
            labels=labels,
            quantize=ew.Recipe.from_toml(recipe).quantize if recipe else None,
            progress=progress,
        )
    table = Table("layer", "operator", "grid", "SQNR, dB", "of the noise", "flipped", "MMACs")
    if found.accuracy is not None:
        table.add_column("accuracy lost, points")
    for row in found.layers[:top]:
        cells = [row.layer, row.operator, row.grid, f"{row.sqnr_db:.1f}", f"{row.share:.1%}"]
        cells += [f"{row.flip_rate:.2%}", f"{row.macs / 1e6:.3g}" if row.macs else ""]
        if row.accuracy_lost is not None:
            cells.append(f"{100 * row.accuracy_lost:+.2f}")
        table.add_row(*map(escape, cells))
    table.add_section()
    cells = ["all", "", "", f"{found.sqnr_db:.1f}", "", f"{found.flip_rate:.2%}", ""]
    if found.accuracy_lost is not None:
        cells.append(f"{100 * found.accuracy_lost:+.2f}")
    table.add_row(*cells)
    console.print(table)
    console.print(f"measured on {found.samples} samples, one layer quantized at a time")
    emit(json_to, asdict(found))


@app.command()
def verify(
    artifact: Annotated[
        Path, typer.Argument(help="An artifact, NAME.ew; or an .onnx file, as ONNX Runtime runs it.")
    ],
    reference: Annotated[Path, typer.Option(help="The float model it was made from, .pt2 or .onnx.")],
    cases: Annotated[int, typer.Option(min=20, help="Generated cases.")] = 1000,
    data: Annotated[Path | None, typer.Option(help=".npz with real samples that cases grow from.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Points of accuracy that may be lost on the samples; the data has labels in y."),
    ] = None,
    seed: Seed = 0,
    report: Annotated[Path | None, typer.Option(help="Write the report, for `publish`.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page for people.")] = None,
    remedies: Annotated[
        bool, typer.Option("--remedies", help="Try what may heal it; needs --calibration, and some time.")
    ] = False,
    calibration: Annotated[Path | None, typer.Option(help=".npz with samples, as for export.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe it was exported with, for remedies.")
    ] = None,
    healed: Annotated[
        Path | None, typer.Option(help="Write what the recommended remedy gave, as .onnx or NAME.ew.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Compare what will run with its integer definition, exactly, and with the float model."""
    from edgewright.verify_command import Outputs, quantize_of, run_verify

    for file in (report, html):
        if file:
            check_writable(file)
    samples, labels = (samples_in(data) if data else None), None
    if margin is not None and data:
        samples, labels = labelled_in(data)
    if margin is not None and labels is None:
        raise typer.BadParameter("needs --data with labels in y", param_hint="'--margin'")
    if margin is not None and not 0 < margin < 100:
        raise typer.BadParameter("give points between 0 and 100, such as 0.5", param_hint="'--margin'")
    if remedies != (calibration is not None) or (recipe is not None and not remedies):
        raise typer.BadParameter("--remedies and --calibration go together", param_hint="'--remedies'")
    if healed and (not remedies or healed.suffix != (".onnx" if artifact.suffix == ".onnx" else ".ew")):
        raise typer.BadParameter("needs --remedies, and ends as what is verified", param_hint="'--healed'")
    if healed and healed.suffix == ".onnx":
        check_writable(healed)
    code = run_verify(
        artifact,
        Outputs(report=report, html=html, json_to=json_to),
        reference=reference,
        cases=cases,
        data=samples,
        labels=labels,
        margin=0.01 if margin is None else margin / 100,
        seed=seed,
        remedies=remedies,
        calibration=samples_in(calibration) if calibration else None,
        quantize=quantize_of(recipe) if recipe else None,
        healed=healed,
    )
    raise typer.Exit(code)


@app.command()
def bench(
    artifact: ArtifactPath,
    reference: Annotated[
        Path | None, typer.Option(help="An .onnx to time beside it in ONNX Runtime: float, or QDQ.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, interleaved.")] = 200,
    threads: Annotated[
        int,
        typer.Option(min=1, max=64, help="Threads that share one call, in each engine but the reference."),
    ] = 1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each operator of the native engine, and nothing else.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the profile as a Chrome trace, JSON; chrome://tracing opens it."),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Latency of an artifact on each engine here, paired and interleaved, and how exact each one is."""
    import numpy as np

    import edgewright as ew
    from edgewright.latency import onnx_call

    console = console_for(json_to)
    opened = Artifact.open(artifact)
    if profile or trace:
        if trace:
            check_writable(trace)
        if not opened.native:
            raise ArtifactError(f"{artifact}: has no integer program (plan.bin) to profile")
        _profile(opened, rounds, threads, trace, console, json_to)
        return
    inputs, expected = (
        {name: np.resize(value, (batch, *value.shape[1:])) for name, value in golden.items()}
        for golden in opened.golden()
    )
    in_order = [p.name for p in opened.outputs]
    can = {"native": opened.native, "onnxruntime": True, "litert": "model.tflite" in opened.files}
    calls: dict[str, Any] = {}  # each gives the outputs in their order
    for backend in (b for b in BACKENDS if can.get(b)):
        try:
            runner = Runner(opened, backend=backend, threads=threads)
        except RunnerError as error:
            if backend == "native":
                raise
            console.print(f"left out: {escape(str(error))}")
            continue
        calls[backend] = lambda runner=runner: list(map(runner.run(inputs).get, in_order))
    if "onnxruntime" in calls:
        calls["onnxruntime, fastest"] = onnx_call(artifact / "model.onnx", inputs, threads=threads)
    if reference:
        ordered = [inputs[p.name] for p in opened.inputs]
        calls["onnx"] = onnx_call(reference, ordered, threads=threads)
    exact = [expected.get(name) for name in in_order]
    off = {name: _steps_off(opened, exact, call()) for name, call in calls.items()}
    times = ew.measure(calls, rounds=rounds)
    best = min(t.min_ms for t in times.values())
    title = f"{escape(str(artifact))}: batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    table = Table("engine", "min ms", "median ms", "to the fastest", "off by, steps", title=title)
    for name, time in times.items():
        table.add_row(
            name,
            f"{time.min_ms:.4f}",
            f"{time.median_ms:.4f}",
            f"{time.min_ms / best:.2f}",
            "" if off[name] is None else f"{off[name]:.3g}",
        )
    console.print(table)
    console.print(
        "off by: the largest difference from the exact integer result, in steps of an output's grid"
    )
    emit(json_to, {name: asdict(time) | {"steps_off": off[name]} for name, time in times.items()})


def _steps_off(artifact: Artifact, exact: list[Any], found: list[Any]) -> float | None:
    """The largest difference of outputs in steps of their grids; None where they cannot be compared."""
    import numpy as np

    if [np.shape(e) for e in exact] != [np.shape(f) for f in found]:
        return None
    scales = [port.scale or 1.0 for port in artifact.outputs]
    return max(float(np.abs(f - e).max() / s) for e, f, s in zip(exact, found, scales, strict=True))


def _profile(
    artifact: Artifact, rounds: int, threads: int, trace: Path | None, console: Any, json_to: str | None
) -> None:
    import json

    from edgewright.profiling import chrome_trace, profile

    times = profile(artifact, rounds=rounds, threads=threads)
    table = Table("", "operator", "shape", "µs", "share", "GMAC/s", title=escape(str(artifact.path)))
    for name in ("µs", "share", "GMAC/s"):
        next(c for c in table.columns if c.header == name).justify = "right"
    for t in times:
        speed = f"{t.gmacs_per_s:.1f}" if t.macs else ""
        table.add_row(
            str(t.number), t.operator, t.shape, f"{t.microseconds:.1f}", f"{100 * t.share:.1f} %", speed
        )
    total, macs = sum(t.microseconds for t in times), sum(t.macs for t in times)
    table.add_section()
    table.add_row("", "all", "", f"{total:.1f}", "100.0 %", f"{macs / total / 1e3:.1f}")
    console.print(table)
    if trace:
        trace.write_text(json.dumps(chrome_trace(times)) + "\n", "utf-8")
        console.print(f"wrote {escape(str(trace))}")
    emit(json_to, {"operators": [asdict(t) | {"gmacs_per_s": t.gmacs_per_s} for t in times]})


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="What there is: NAME.ew or NAME.onnx.", metavar="A")],
    b: Annotated[str, typer.Argument(help="What may take its place.", metavar="B")],
    data: Annotated[
        Path | None, typer.Option(help=".npz with samples, and labels in y; else an artifact's own few.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The float model, .pt2 or .onnx: count agreement with it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a timed call.")] = 1,
    equivalent: Annotated[
        str, typer.Option(help="A difference in latency that counts as none.", metavar="PERCENT")
    ] = "2%",
    max_slowdown: Annotated[
        str | None, typer.Option(help="How much slower B may be; exit code 1 if more.", metavar="PERCENT")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points of accuracy that B may lose; exit code 1 if more.")
    ] = None,
    max_pairs: Annotated[int, typer.Option(min=10, help="Pairs of calls after which to give up.")] = 2000,
    seed: Seed = 0,
    json_to: JsonOption = None,
) -> None:
    """Which of two models is faster, and what it costs: stops by itself as soon as that is known.

    A and B may name a configuration: NAME.ew@backend=onnxruntime, NAME.ew@threads=2, NAME.ew@kernels=avx2, or
    several with commas between. An .onnx file runs in stock ONNX Runtime.
    """
    from edgewright.compare_command import run_compare

    samples, labels = labelled_in(data) if data else (None, None)
    raise typer.Exit(
        run_compare(
            a,
            b,
            data=samples,
            labels=labels,
            reference=reference,
            batch=batch,
            equivalent=equivalent,
            max_slowdown=max_slowdown,
            margin=margin,
            max_pairs=max_pairs,
            seed=seed,
            json_to=json_to,
        )
    )


@app.command()
def targets(
    name: Annotated[
        str | None, typer.Argument(help="One of them, or a TOML file: everything known of it.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """The hardware that comes described, what runs on it, and this machine."""
    from edgewright.hardware import show_all, show_one

    console = console_for(json_to)
    emit(json_to, show_one(Target.load(name), console) if name else show_all(console))


@app.command()
def publish(
    artifact: ArtifactPath,
    report: Annotated[Path, typer.Option(help="What `edgewright verify --report` wrote.")],
    repository: Annotated[Path, typer.Option(help="Made, with its keys, on first use.")],
    version: Annotated[str, typer.Option(help="Semantic version, not published before.")],
    rollback_index: Annotated[
        int, typer.Option(min=0, help="Devices never go below the highest they confirmed.")
    ] = 0,
    json_to: JsonOption = None,
) -> None:
    """Sign a verified artifact as a release, with a delta against the release before."""
    import edgewright as ew

    console = console_for(json_to)
    opened = Artifact.open(artifact)
    try:
        found = ew.VerificationReport.from_json(report.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, VerifyError) as error:
        raise VerifyError(f"{report}: cannot be read ({error})") from None
    try:
        release = ew.publish(
            opened, found, repository=repository, version=version, rollback_index=rollback_index
        )
    except PublishError as error:
        sys.stderr.write(f"not published: {error}\n")
        raise typer.Exit(DID_NOT_HOLD) from None
    table = Table("package", "bytes", title=f"{release.name} {release.version}", title_justify="left")
    for package in release.packages:
        table.add_row(package.filename, f"{package.size_bytes:,}")
    console.print(table)
    emit(
        json_to,
        {"name": release.name, "version": release.version, "packages": [asdict(p) for p in release.packages]},
    )


def main() -> None:
    """The `edgewright` command."""
    run(app)


def main_ds_export() -> None:
    """The `ds_export` command, another name for `edgewright export`."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name="ds_export", help=export.__doc__)(export)
    run(alone)
