from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewright_ota import Fleet, Release, Repository, cli


@dataclass
class Clock:
    """A clock that tests turn."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.time

    def turn(self, **delta: float) -> None:
        self.time += timedelta(**delta)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def write_model(folder: Path, *, seed: int, step: int = 0) -> Path:
    """A folder like an artifact's; a later step moves about a fifth of the weights by one."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for i, shape in enumerate([(16, 1, 3, 3), (32, 16, 3, 3), (10, 512)]):
        weight = np.clip(np.round(rng.normal(0, 25, shape)), -120, 120).astype(np.int8)
        for k in range(step):
            mover = np.random.default_rng([seed, i, k])
            moved = mover.random(shape) < 0.2
            weight = weight + np.where(moved, mover.choice([-1, 1], shape), 0).astype(np.int8)
        weights[f"{i}.weight"] = weight
        weights[f"{i}.bias"] = rng.integers(-9999, 9999, shape[0]).astype(np.int32) + np.int32(step)
        weights[f"{i}.scale"] = (rng.random(shape[0]) * (1 + step / 1000)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(weights, folder / "weights.safetensors")
    (folder / "notes").mkdir()
    (folder / "notes" / "about.txt").write_text(f"step {step}\n" + "the same words in each version\n" * 40)
    (folder / "plan.bin").write_bytes(rng.bytes(900))
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def repository(tmp_path: Path, clock: Clock) -> Repository:
    return Repository.open(tmp_path / "repository", create=True, now=clock)


@pytest.fixture
def published(repository: Repository, tmp_path: Path) -> tuple[Repository, Release, Release]:
    """A repository with `model` 1.0.0, and 1.1.0 with a delta."""
    first = repository.publish(write_model(tmp_path / "v1", seed=1), name="model", version="1.0.0")
    second = repository.publish(write_model(tmp_path / "v2", seed=1, step=1), name="model", version="1.1.0")
    return repository, first, second


@dataclass
class FileServer:
    """Serves a folder on loopback, and misbehaves as told.

    Attributes:
        cut_after: Number of body bytes after which a connection to a package is dropped; None for never.
        replace: By name of the file, what is sent instead.
        requests: (path, Range header) in order.
    """

    url: str
    root: Path
    cut_after: int | None = None
    ranges: bool = True
    replace: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def file_server(repository: Repository) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.requests.append((self.path, asked))
            path = server.root / self.path.lstrip("/")
            data = server.replace.get(path.name, path.read_bytes() if path.is_file() else None)
            if data is None:
                self.send_error(404)
                return
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked and server.ranges else 0
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            cut = server.cut_after if path.suffix == ".ewpk" else None
            self.wfile.write(data[first:] if cut is None else data[first : first + cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server = FileServer(url=f"http://127.0.0.1:{httpd.server_port}", root=repository.path)
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        httpd.shutdown()
        thread.join()


@dataclass
class Served:
    """A server in a process of its own."""

    url: str
    path: Path
    token: str
    process: subprocess.Popen[str]

    @property
    def fleet(self) -> Fleet:
        return Fleet(self.url, self.token)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ota(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs the command line."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> Done:
        code = cli.run([str(a) for a in arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Served]]:
    """Starts servers; ends those that still run."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, *options: str) -> Served:
        command = [sys.executable, "-m", "edgewright_ota", "serve", "--repository", str(path), "--port", "0"]
        process = subprocess.Popen(
            [*command, "--json", "-", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start: {process.stderr.read()}")
        said = json.loads(line)
        token = Path(said["token_file"]).read_text().strip()
        return Served(url=said["url"], path=path, token=token, process=process)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "error", "NO_COLOR": "1", "COLUMNS": "160"}
