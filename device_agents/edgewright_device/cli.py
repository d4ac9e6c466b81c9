"""`edgewright-agent`: run the agent of a device, look at its slots, run its model.

Exit codes: 0 done, 1 it ran but did not hold (an update failed or was rolled back), 2 bad use or an error.
"""

from __future__ import annotations

import io
import json
import platform
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import safetensors
import safetensors.numpy
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress
from rich.table import Table

from edgewright_device import journal
from edgewright_device.agent import Agent, Event
from edgewright_device.artifact import Artifact
from edgewright_device.errors import DeviceError, SlotError
from edgewright_device.golden import Arrays
from edgewright_device.journal import Journal
from edgewright_device.manifest import PLAN
from edgewright_device.provider import Choice
from edgewright_device.runner import Runner
from edgewright_device.serving import Serving
from edgewright_device.slots import Disk, Slots
from edgewright_kernels import KernelError, cpu_paths
from edgewright_kernels import plan as ewplan
from edgewright_ota import Client, DdiClient, OtaError

app = typer.Typer(
    help="Runs a model on this device and keeps it up to date.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BackendName = Literal["native", "onnxruntime", "reference"]
State = Annotated[Path, typer.Option("--state", metavar="DIR", help="What the agent keeps, slots and trust.")]
Backend = Annotated[BackendName, typer.Option("--backend", help="The engine that runs the model.")]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="With --backend onnxruntime: its execution provider, such as QNN or OpenVINO:NPU; repeat it for "
        "those to try next. CPU as the last runs what they do not.",
    ),
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Writes JSON to a file, or to standard output.")
]

_SLOTS = "slots"
_TRUST = "trust"


def main() -> None:
    """The program; an error of ours is one line on standard error and exit code 2."""
    try:
        app()
    except (DeviceError, OtaError, KernelError, OSError) as error:
        print(f"edgewright-agent: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


@app.command()
def run(
    *,
    state: State,
    server: Annotated[str, typer.Option(metavar="URL", help="The update server.")],
    device: Annotated[str, typer.Option(metavar="ID", help="This device's name on the server.")],
    token_file: Annotated[Path, typer.Option(metavar="FILE", help="Holds this device's token.")],
    root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The root.json to trust; needed on first use.")
    ] = None,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="The server's tenant.")] = "default",
    backend: Backend = "native",
    provider: Providers = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serves GET /status and POST /infer there.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=0.01, metavar="S", help="Seconds between polls, not the server's.")
    ] = None,
    latency_limit: Annotated[
        float | None, typer.Option(min=0.0, metavar="MS", help="Reverts a release that is slower.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One poll with all that follows, then ends.")] = False,
    json_to: Json = None,
) -> None:
    """Keeps this device on the release the server wants, until it is told to stop (SIGTERM)."""
    if once and listen is not None:
        raise typer.BadParameter("--once ends at once, so there is nothing to listen for; leave one out")
    providers = _providers(provider, backend)
    url = _server_url(server)
    address = None if listen is None else _address(listen)
    token = _token(token_file)
    trusted = None if root is None else _read_file(root)
    with ExitStack() as stack:
        stream = stack.enter_context(_lines(json_to))
        console = Console(quiet=json_to == "-", highlight=False)
        serving = None if address is None else stack.enter_context(Serving(*address))
        agent = stack.enter_context(
            Agent(
                state / _SLOTS,
                ddi=DdiClient(url, tenant, device, token),
                client=Client(
                    state / _TRUST,
                    metadata_url=f"{url}/metadata/",
                    targets_url=f"{url}/targets/",
                    root=trusted,
                ),
                backend=backend,
                providers=providers,
                attributes=_attributes(backend, providers),
                interval_s=interval,
                latency_limit_ms=latency_limit,
                on_event=lambda event: _show(event, console, stream),
                on_progress=stack.enter_context(_bar(console)),
                on_release=None if serving is None else serving.swap,
            )
        )
        if once:
            if agent.step()[-1].event in {"error", "rolled_back"}:
                raise typer.Exit(1)
            return
        if serving:
            console.print(f"listening on {serving.url}")
            line = {"event": "listening", "at": datetime.now(UTC).isoformat(), "url": serving.url}
            _write_line(stream, json.dumps(line))
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        agent.run(stop)


@app.command()
def status(*, state: State, json_to: Json = None) -> None:
    """Shows what each slot holds and what went wrong last; works while the agent runs."""
    data = _journal(state)
    if _write_json(json_to, asdict(data)):
        return
    table = Table("slot", "release", "rollback index", "state", title=str(state))
    for slot in journal.SLOT_NAMES:
        held = data.held(slot)
        roles = {data.current: "in use", data.previous: "previous"}
        role = f"on trial, {data.trial.attempts} attempts" if data.trial and data.trial.slot == slot else ""
        table.add_row(
            slot,
            f"{held.name} {held.version}" if held else "(empty)",
            str(held.rollback_index) if held else "",
            role or roles.get(slot, ""),
        )
    Console(highlight=False).print(table)
    if data.failure is not None:
        _say(f"last failure: {data.failure.version} at {data.failure.at}: {data.failure.reason}")


@app.command()
def rollback(
    *,
    state: State,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; it is kept in the journal.")
    ] = "rolled back by hand",
    json_to: Json = None,
) -> None:
    """Goes back to the previous confirmed release. Stop the agent first."""
    before = _journal(state).release
    with Slots(state / _SLOTS) as slots:
        release = slots.roll_back(reason)
    if not _write_json(json_to, {"from": before.version if before else None, "to": release.version}):
        _say(f"in use: {release.name} {release.version}")


@app.command()
def infer(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Inputs by name, a lone one by any: .npz or .safetensors.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Outputs by name: .npz or .safetensors.")],
    *,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Runs the release in use by this agent.")
    ] = None,
    artifact: Annotated[Path | None, typer.Option(metavar="DIR", help="Runs this artifact.")] = None,
    backend: Backend = "native",
    provider: Providers = None,
    json_to: Json = None,
) -> None:
    """Runs the model once: a file of arrays in, a file of arrays out."""
    providers = _providers(provider, backend)
    if (state is None) == (artifact is None):
        raise typer.BadParameter("give either --state or --artifact")
    for path in (source, target):
        if path.suffix not in {".npz", ".safetensors"}:
            raise typer.BadParameter(f"{path}: its name must end in .npz or .safetensors")
    if artifact is None:
        assert state is not None
        current = _journal(state).current
        if current is None:
            raise SlotError(f"{state}: no release is confirmed yet; run the agent first")
        artifact = state / _SLOTS / current
    runner = Runner(Artifact.open(artifact), backend, providers=providers)
    try:
        arrays = _read_arrays(source)
        names = [port.name for port in runner.artifact.inputs]
        if len(arrays) == len(names) == 1:
            arrays = dict(zip(names, arrays.values(), strict=True))
        outputs = runner.run(arrays)
    except ValueError as error:
        raise typer.BadParameter(f"{source}: {error}") from None
    _write_arrays(target, outputs)
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    engine = runner.provider.text if runner.provider else None
    told = {"model": runner.artifact.name, "backend": backend, "provider": engine, "outputs": shapes}
    if not _write_json(json_to, told):
        _say(f"{target}: {shapes}")
        if providers:
            _say(f"provider: {engine}")


@app.command()
def tensorrt(
    path: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact for a target with TensorRT.")],
    *,
    batch: Annotated[
        str, typer.Option(help="The smallest, the usual and the largest batch of the engine.")
    ] = "1,1,8",
) -> None:
    """Prints a shell script that builds the artifact's TensorRT engine on the device, once."""
    from edgewright_device.tensorrt import build_script

    sizes = batch.split(",")
    batches = tuple(map(int, sizes)) if all(s.strip().isdecimal() for s in sizes) else ()
    try:
        script = build_script(Artifact.open(path), batches)
    except ValueError as error:
        raise typer.BadParameter(f"{batch!r}: {error}", param_hint="'--batch'") from None
    sys.stdout.write(script)


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An artifact (.ew) or a plan.bin.")],
    *,
    json_to: Json = None,
) -> None:
    """Prints the integer program of a model; each of them, where it has parts or several lengths."""
    if not path.is_dir():
        program = ewplan.decode(_read_file(path))
        if not _write_json(json_to, _plain(program)):
            _print_plan(str(path), program)
        return
    artifact = Artifact.open(path)
    files = (
        [p.file for p in artifact.parts]
        or sorted(n for n in artifact.files if n.startswith("plan"))
        or [PLAN]
    )
    programs = {n: ewplan.decode(artifact.read(n)) for n in files if n.endswith(".bin")}
    others = {p.file: p for p in artifact.parts if not p.native}
    if json_to is not None:
        data = {n: _plain(programs[n]) if n in programs else asdict(others[n]) for n in files}
        _write_json(json_to, data if len(files) > 1 else data[files[0]])
        return
    for name in files:
        if name in programs:
            _print_plan(str(path / name) if len(files) > 1 else str(path), programs[name])
        else:
            part = others[name]
            _say(
                f"{path / name}: ONNX Runtime, {', '.join(part.operators)}: "
                f"reads {', '.join(part.inputs)}, gives {', '.join(part.outputs)}"
            )


def _print_plan(title: str, program: ewplan.Plan) -> None:
    table = Table("#", "operator", "reads", "gives", "shape", "details", title=title)
    for number, op in enumerate(program.ops):
        result = program.tensors[op.y]
        table.add_row(
            str(number),
            type(op).__name__,
            ", ".join(program.tensors[t].name for t in ewplan.tensor_inputs(op)),
            result.name,
            " x ".join(map(str, result.shape)),
            _details(program, op),
        )
    Console(highlight=False, markup=False).print(table)
    _say(
        f"{len(program.ops)} operators, {program.weights_bytes} bytes of weights file, "
        f"{program.arena_bytes} bytes of working memory per sample"
    )


@app.command()
def cpu(*, json_to: Json = None) -> None:
    """Names the kernel paths that this CPU can run, the best first; EDGEWRIGHT_CPU forces one."""
    paths = cpu_paths()
    if not _write_json(json_to, {"machine": platform.machine(), "paths": list(paths)}):
        _say("\n".join(paths))


def _details(program: ewplan.Plan, op: ewplan.Op) -> str:
    parts = []
    if isinstance(
        op, ewplan.Convolution | ewplan.TransposedConvolution | ewplan.MaxPool | ewplan.AveragePool
    ):
        parts.append(f"kernel {op.window.kernel}, stride {op.window.stride}, padding {op.window.padding}")
    if isinstance(op, ewplan.Convolution | ewplan.TransposedConvolution) and op.groups > 1:
        parts.append(f"{op.groups} groups")
    if isinstance(op, ewplan.Convolution | ewplan.TransposedConvolution | ewplan.FullyConnected):
        parts.append(f"{program.ranges[op.weight].size} bytes of {op.weight_bits}-bit weights")
    if isinstance(op, ewplan.Quantize | ewplan.Dequantize | ewplan.Transpose):
        parts.append(f"order {op.order}")
    if isinstance(op, ewplan.Quantize):
        parts.append(f"scale {program.tensors[op.y].scale:.6g}, zero {program.tensors[op.y].zero_point}")
    rescale = getattr(op, "rescale", None)
    if rescale is not None and (rescale.low, rescale.high) != (0, 255):
        parts.append(f"clamp {rescale.low}..{rescale.high}")
    return "; ".join(parts)


def _plain(value: Any) -> Any:
    """A plan as JSON data; each operator says its kind."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if is_dataclass(value):
        data = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"op": type(value).__name__, **data} if isinstance(value, ewplan.OP_KINDS) else data
    return value


def _say(text: str) -> None:
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


def _show(event: Event, console: Console, stream: IO[str] | None) -> None:
    _write_line(stream, event.to_json())
    about = json.loads(event.to_json())
    text = " ".join(f"{k}={v}" for k, v in about.items() if k not in {"event", "at"})
    console.print(f"{event.at[:19]} {event.event} {text}", markup=False, soft_wrap=True)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that is there while bytes move; on a terminal alone."""
    if not console.is_terminal or console.quiet:
        yield None
        return
    with Progress(BarColumn(), DownloadColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=done < total)


@contextmanager
def _lines(json_to: str | None) -> Iterator[IO[str] | None]:
    """Where events go as JSON lines, if anywhere."""
    if json_to is None or json_to == "-":
        yield None if json_to is None else sys.stdout
        return
    with Path(json_to).open("w", encoding="utf-8") as stream:
        yield stream


def _write_line(stream: IO[str] | None, line: str) -> None:
    if stream is not None:
        stream.write(line + "\n")
        stream.flush()


def _write_json(json_to: str | None, data: object) -> bool:
    """Whether the data went to standard output, which then has no room for words."""
    if json_to is None:
        return False
    text = json.dumps(data, indent=1) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
        return True
    _write_file(Path(json_to), text.encode())
    return False


def _write_file(file: Path, data: bytes) -> None:
    disk, temporary = Disk(), file.with_name(f".{file.name}.tmp")
    try:
        disk.write(temporary, data)
        disk.sync(temporary)
        disk.rename(temporary, file)
        disk.sync(file.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


def _read_file(file: Path) -> bytes:
    if not file.is_file():
        raise typer.BadParameter(f"{file}: there is no such file")
    return file.read_bytes()


def _read_arrays(file: Path) -> Arrays:
    data = _read_file(file)
    try:
        if file.suffix == ".safetensors":
            return safetensors.numpy.load(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (
        safetensors.SafetensorError,
        zipfile.BadZipFile,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
    ) as error:
        raise typer.BadParameter(f"{file}: cannot be read as {file.suffix[1:]} ({error})") from None


def _write_arrays(file: Path, arrays: Arrays) -> None:
    if file.suffix == ".safetensors":
        _write_file(file, safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in arrays.items()}))
        return
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    _write_file(file, out.getvalue())


def _journal(state: Path) -> Journal:
    if not (state / _SLOTS).is_dir():
        raise SlotError(f"{state}: no agent has run here; `edgewright-agent run --state {state}` makes it")
    return journal.read(state / _SLOTS)


def _server_url(server: str) -> str:
    parts = urlsplit(server)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise typer.BadParameter(f"--server {server!r}: give an address such as http://127.0.0.1:8080")
    return server.rstrip("/")


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen {listen!r}: give HOST:PORT, such as 127.0.0.1:0")
    return host, int(port)


def _token(file: Path) -> str:
    try:
        token = _read_file(file).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise typer.BadParameter(f"{file}: holds no token; `edgewright-ota device` makes one")
    return token


def _providers(names: list[str] | None, backend: str) -> tuple[str, ...]:
    if names and backend != "onnxruntime":
        raise typer.BadParameter("is for --backend onnxruntime; give that too", param_hint="'--provider'")
    try:
        return tuple(str(Choice.of(name)) for name in names or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--provider'") from None


def _attributes(backend: str, providers: Sequence[str]) -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "cpu": cpu_paths()[0],
        "backend": backend,
        **({"providers": ", ".join(providers)} if providers else {}),
        "edgewright": version("edgewright"),
    }
