"""`edgewright-ota`: make a repository, publish to it, serve it, and watch the fleet.

Exit codes: 0 done, 1 a server is out of reach or refuses, 2 bad use or bad input.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgewright_ota import durable
from edgewright_ota.errors import OtaError, RepositoryError, ServerError
from edgewright_ota.fleet import Fleet
from edgewright_ota.package import Progress as Report
from edgewright_ota.release import Package, Release
from edgewright_ota.repository import Repository

MAX_ARTIFACT_JSON_BYTES = 16 << 20
MAX_TOKEN_BYTES = 4096
DATABASE = "server.db"
TOKEN_FILE = "management.token"  # noqa: S105 - a file name

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sign releases, serve them, and watch devices take them.",
)
rollout_app = typer.Typer(no_args_is_help=True, help="Who gets a release, and how fast.")
device_app = typer.Typer(no_args_is_help=True, help="The devices a server knows.")
app.add_typer(rollout_app, name="rollout")
app.add_typer(device_app, name="device")

RepositoryPath = Annotated[Path, typer.Option("--repository", "-r", help="The repository's folder.")]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - is standard output."),
]
Server = Annotated[
    str, typer.Option("--server", "-s", envvar="EDGEWRIGHT_SERVER", help="The server's address.")
]
TokenFile = Annotated[
    Path,
    typer.Option("--token-file", envvar="EDGEWRIGHT_TOKEN_FILE", help="The file with its management token."),
]


def main() -> None:
    """Runs the command line; ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code.
    """
    try:
        app(arguments, prog_name="edgewright-ota")
    except SystemExit as end:  # how typer ends, well or after bad use
        return end.code if isinstance(end.code, int) else 0
    except OtaError as error:
        _err().print(f"edgewright-ota: {error}", markup=False, highlight=False)
        return 1 if isinstance(error, ServerError) else 2
    return 0


@app.command()
def init(repository: RepositoryPath, json_to: Json = None) -> None:
    """Makes a repository with new keys."""
    made = Repository.open(repository, create=True)
    root = repository / "root.json"
    durable.write_file(root, made.root_bytes)
    result = {"repository": str(repository), "root": str(root), "keys": str(made.keys_path)}
    if not _write_json(json_to, result):
        _out().print(f"Repository   {repository}")
        _out().print(f"Trusted root {root}   give it to each device once, over a channel you trust")
        _out().print(f"Private keys {made.keys_path}   back them up, show them to nobody")


@app.command()
def publish(
    directory: Annotated[Path, typer.Argument(help="The folder to release.")],
    repository: RepositoryPath,
    name: Annotated[str, typer.Option(help="The release's name.")],
    version: Annotated[str, typer.Option(help="A semantic version, such as 1.2.0.")],
    rollback_index: Annotated[int, typer.Option(help="Devices that confirmed a higher one refuse this.")] = 0,
    delta_from: Annotated[
        str, typer.Option(help="Base version of the delta; 'latest' or 'none'.")
    ] = "latest",
    json_to: Json = None,
) -> None:
    """Signs a folder's files as a release and puts it in force."""
    _require_verified(directory)
    opened = Repository.open(repository)
    base = None if delta_from == "none" else delta_from
    with _progress("Packing", json_to) as report:
        release = opened.publish(
            directory,
            name=name,
            version=version,
            rollback_index=rollback_index,
            delta_from=base,
            progress=report,
        )
    if not _write_json(json_to, _release_row(release)):
        _out().print(f"{release.name} {release.version} is published   {release.digest[:16]}…")
        _print_packages(release.packages)


@app.command()
def delta(
    repository: RepositoryPath,
    name: Annotated[str, typer.Option(help="The release's name.")],
    version: Annotated[str, typer.Option(help="The version to go to.")],
    base: Annotated[str, typer.Option("--from", help="The version to start from.")],
    json_to: Json = None,
) -> None:
    """Adds a delta package, for devices that have another version."""
    opened = Repository.open(repository)
    with _progress("Packing", json_to) as report:
        package = opened.add_delta(name, version, base, progress=report)
    if not _write_json(json_to, _package_row(package)):
        _print_packages((package,))


@app.command()
def serve(
    repository: RepositoryPath,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 8080,
    database: Annotated[
        str | None, typer.Option(help="A sqlite:///PATH URL. [in the repository's folder]")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="The management token; made when missing. [in the repository's folder]"),
    ] = None,
    gateway_token_file: Annotated[
        Path | None, typer.Option(help="A token that may speak for any device and add new ones.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="The tenant in the devices' URLs.")] = "default",
    poll_interval_s: Annotated[int, typer.Option(min=1, max=86399, help="Seconds between polls.")] = 60,
    json_to: Json = None,
) -> None:
    """Serves a repository to devices until it is ended."""
    try:
        import uvicorn

        from edgewright_ota.server import create_app
    except ImportError as error:
        raise OtaError(
            f"the server needs more packages ({error}); pip install 'edgewright[server]'"
        ) from None
    opened = Repository.open(repository)
    token_path = token_file or repository / TOKEN_FILE
    with _listen(host, port) as listener:
        application = create_app(
            opened.path,
            database or f"sqlite:///{(repository / DATABASE).absolute()}",
            management_token=_own_token(token_path),
            gateway_token=_read_token(gateway_token_file) if gateway_token_file else None,
            tenant=tenant,
            poll_interval_s=poll_interval_s,
        )
        bound_host, bound_port = listener.getsockname()[:2]
        url = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        config = uvicorn.Config(
            application, log_config=None, access_log=False, timeout_graceful_shutdown=5, server_header=False
        )
        server = uvicorn.Server(config)

        def end(_number: int, _frame: object) -> None:
            server.should_exit = True

        # Counts before uvicorn listens to signals, and when it raises the one that ended it once more.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        result = {"url": url, "tenant": tenant, "token_file": str(token_path)}
        if not _write_json(json_to, result):
            _out().print(f"Listening on {url}   tenant {tenant}, management token in {token_path}")
        sys.stdout.flush()
        server.run(sockets=[listener])


@app.command()
def status(server: Server, token_file: TokenFile, json_to: Json = None) -> None:
    """Shows what each device has, and how the rollouts go."""
    fleet = Fleet(server, _read_token(token_file))
    devices, rollouts = list(fleet.devices()), fleet.rollouts()
    if _write_json(json_to, {"devices": devices, "rollouts": rollouts}):
        return
    _print_rollouts(rollouts)
    _print_devices(devices)


@rollout_app.command("start")
def rollout_start(
    server: Server,
    token_file: TokenFile,
    name: Annotated[str, typer.Option(help="The release's name.")],
    version: Annotated[str, typer.Option(help="Its version.")],
    percent: Annotated[float, typer.Option(min=0, max=100, help="Share of the devices.")] = 100,
    tag: Annotated[str | None, typer.Option(help="Only devices with this tag.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this device; may be given again.")] = None,
    json_to: Json = None,
) -> None:
    """Starts to offer a release to devices."""
    fleet = Fleet(server, _read_token(token_file))
    row = fleet.start_rollout(name, version, percent=percent, tag=tag, devices=device or [])
    if not _write_json(json_to, row):
        _print_rollouts([row])


@rollout_app.command("change")
def rollout_change(
    rollout: Annotated[int, typer.Argument(help="The rollout's number.")],
    server: Server,
    token_file: TokenFile,
    percent: Annotated[float | None, typer.Option(min=0, max=100, help="Share of the devices.")] = None,
    pause: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Stop offering it, or go on.")
    ] = None,
    json_to: Json = None,
) -> None:
    """Changes a rollout's share of devices, pauses it, or goes on."""
    if percent is None and pause is None:
        raise typer.BadParameter("give --percent, --pause or --resume")
    state = None if pause is None else "paused" if pause else "running"
    row = Fleet(server, _read_token(token_file)).change_rollout(rollout, percent=percent, state=state)
    if not _write_json(json_to, row):
        _print_rollouts([row])


@rollout_app.command("list")
def rollout_list(server: Server, token_file: TokenFile, json_to: Json = None) -> None:
    """Lists all rollouts."""
    rows = Fleet(server, _read_token(token_file)).rollouts()
    if not _write_json(json_to, rows):
        _print_rollouts(rows)


@device_app.command("add")
def device_add(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    server: Server,
    token_file: TokenFile,
    tag: Annotated[list[str] | None, typer.Option(help="A tag, for rollouts; may be given again.")] = None,
    json_to: Json = None,
) -> None:
    """Adds a device and prints its token, once."""
    token = Fleet(server, _read_token(token_file)).add_device(device, tags=tag or [])
    if not _write_json(json_to, {"id": device, "token": token}):
        _out().print(token, markup=False, highlight=False)


@device_app.command("token")
def device_token(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    server: Server,
    token_file: TokenFile,
    json_to: Json = None,
) -> None:
    """Gives a device a new token and prints it, once; the old one ends."""
    token = Fleet(server, _read_token(token_file)).renew_token(device)
    if not _write_json(json_to, {"id": device, "token": token}):
        _out().print(token, markup=False, highlight=False)


@device_app.command("remove")
def device_remove(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    server: Server,
    token_file: TokenFile,
    json_to: Json = None,
) -> None:
    """Removes a device and what it reported."""
    Fleet(server, _read_token(token_file)).remove_device(device)
    if not _write_json(json_to, {"id": device}):
        _out().print(f"{device} is removed", markup=False, highlight=False)


@device_app.command("show")
def device_show(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    server: Server,
    token_file: TokenFile,
    json_to: Json = None,
) -> None:
    """Shows a device with everything it reported."""
    row = Fleet(server, _read_token(token_file)).device(device)
    if _write_json(json_to, row):
        return
    _print_devices([row])
    for action in row["actions"]:
        for report in action["reports"]:
            release = f"{action['name']} {action['version']}"
            result = f"{report['execution']}/{report['result']}"
            line = "  ".join([report["created"], release, result, *report["details"]])
            _out().print(line, markup=False, highlight=False)


def _out() -> Console:
    return Console(soft_wrap=True)


def _err() -> Console:
    return Console(stderr=True, soft_wrap=True)


def _require_verified(directory: Path) -> None:
    """Refuses an artifact that was not verified, or was changed after it was.

    Raises:
        RepositoryError: It has a manifest.json, and no report.json that passed for exactly that manifest.
    """
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return
    advice = "run `edgewright verify` and publish what passed"
    try:
        with manifest.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with (directory / "report.json").open("rb") as file:
            report = json.loads(file.read(MAX_ARTIFACT_JSON_BYTES))
    except FileNotFoundError:
        raise RepositoryError(
            f"{directory}: is an artifact without a verification report; {advice}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RepositoryError(f"{directory}/report.json: cannot be read ({error}); {advice}") from None
    if not isinstance(report, dict) or report.get("passed") is not True:
        raise RepositoryError(f"{directory}: its verification did not pass; {advice}")
    if report.get("artifact") != digest:
        raise RepositoryError(f"{directory}: its verification report is about another artifact; {advice}")


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OtaError(f"{host}: cannot listen there: {error.strerror}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            raise OtaError(
                f"{host}:{port}: cannot listen there: {error.strerror}; choose another --port, or 0 for any"
            ) from None
        yield listener


def _own_token(path: Path) -> str:
    """The management token in a file, made on first use."""
    if not path.exists():
        durable.write_file(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    return _read_token(path)


def _read_token(path: Path) -> str:
    """The secret in a file that its owner alone can read.

    Raises:
        OtaError: It is missing, empty, or open to others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OtaError(f"{path}: no token can be read there: {error}") from None
    if mode & 0o077:
        raise OtaError(f"{path}: others can read this token; run chmod 600 on it")
    if not token:
        raise OtaError(f"{path}: is empty; remove it and a new token is made")
    return token


def _write_json(where: str | None, result: Any) -> bool:
    """Writes the result where it was asked for; True when that is standard output, which is then full."""
    if where is None:
        return False
    text = json.dumps(result, ensure_ascii=False)
    if where == "-":
        print(text, flush=True)  # noqa: T201 - this is the output
        return True
    try:
        durable.write_file(Path(where), f"{text}\n".encode())
    except OSError as error:
        raise OtaError(f"{where}: cannot be written: {error.strerror}") from None
    return False


@contextmanager
def _progress(what: str, json_to: str | None) -> Iterator[Report | None]:
    """A bar on standard error when a person is watching."""
    console = _err()
    if not console.is_terminal or json_to == "-":
        yield None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _release_row(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "version": release.version,
        "rollback_index": release.rollback_index,
        "digest": release.digest,
        "size_bytes": release.size_bytes,
        "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in release.files],
        "packages": [_package_row(p) for p in release.packages],
    }


def _package_row(package: Package) -> dict[str, Any]:
    return {
        "filename": package.filename,
        "base": package.base,
        "size_bytes": package.size_bytes,
        "sha256": package.sha256,
    }


def _print_packages(packages: tuple[Package, ...]) -> None:
    table = Table("package", "from", "bytes")
    for package in packages:
        table.add_row(package.filename, package.base or "-", f"{package.size_bytes:,}")
    _out().print(table)


def _print_rollouts(rows: list[dict[str, Any]]) -> None:
    table = Table("rollout", "release", "percent", "for", "state", "devices")
    for row in rows:
        who = row["tag"] or (f"{len(row['devices'])} named" if row["devices"] else "all")
        counts = ", ".join(f"{n} {status}" for status, n in sorted(row["actions"].items())) or "-"
        release = f"{row['name']} {row['version']}"
        table.add_row(str(row["id"]), release, f"{row['percent']:g}", who, row["state"], counts)
    _out().print(table)


def _print_devices(rows: list[dict[str, Any]]) -> None:
    table = Table("device", "has", "newest action", "status", "last poll", "says")
    for row in rows:
        installed, action = row["installed"], row["action"]
        table.add_row(
            row["id"],
            f"{installed['name']} {installed['version']}" if installed else "-",
            f"{action['name']} {action['version']}" if action else "-",
            action["status"] if action else "-",
            row["last_poll"] or "-",
            "\n".join(action["details"]) if action else "",
        )
    _out().print(table)
