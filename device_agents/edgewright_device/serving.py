"""A local HTTP server for inference: GET /status, POST /infer, with tensors as safetensors bytes.

It has no authentication and listens on loopback alone. The release behind it is swapped whole: each request
is answered by one release from beginning to end.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
import safetensors.numpy

from edgewright_device.errors import ServingError
from edgewright_device.journal import SlotRelease
from edgewright_device.manifest import Port
from edgewright_device.runner import Runner

MAX_BODY_BYTES = 64 << 20
REQUEST_TIMEOUT_S = 30.0

_JSON = "application/json"
_BYTES = "application/octet-stream"


class Serving:
    """The server; it listens from `start` (or `with`) to `close`.

    Args:
        host: A loopback IPv4 address.
        port: 0 takes a free one.
        max_body_bytes: A larger request is refused with 413.

    Raises:
        ServingError: Not a loopback address, or it cannot be listened on.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        if not _is_loopback(host):
            raise ServingError(
                f"{host}: not an IPv4 loopback address; this server asks for no password, so use 127.0.0.1"
            )
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ServingError(f"{host}:{port}: cannot listen ({why}); choose another port, or 0") from None
        self._server.serving = self
        self._thread: threading.Thread | None = None
        self._loaded: tuple[Runner, SlotRelease] | None = None
        self.max_body_bytes = max_body_bytes

    @property
    def url(self) -> str:
        """Where it listens: "http://127.0.0.1:PORT"."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Answers requests, in threads of its own."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="serving")
        self._thread.start()

    def close(self) -> None:
        """Stops listening; a second call does nothing."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def swap(self, runner: Runner, release: SlotRelease) -> None:
        """From the next request on, this release answers."""
        self._loaded = (runner, release)

    def status(self) -> dict[str, Any]:
        """What GET /status answers."""
        loaded = self._loaded
        if loaded is None:
            return {"release": None, "backend": None, "provider": None, "inputs": [], "outputs": []}
        runner, release = loaded
        return {
            "release": asdict(release),
            "backend": runner.backend,
            "provider": runner.provider.text if runner.provider else None,
            "inputs": [_port(p) for p in runner.artifact.inputs],
            "outputs": [_port(p) for p in runner.artifact.outputs],
        }

    def infer(self, body: bytes) -> bytes:
        """What POST /infer answers.

        Raises:
            Refused: The body or its tensors are wrong, or there is no model.
        """
        loaded = self._loaded
        if loaded is None:
            raise Refused(503, "no release is confirmed on this device yet")
        try:
            inputs = safetensors.numpy.load(body)
        except Exception as error:  # beside its own error it lets KeyError, TypeError and others through
            raise Refused(400, f"the body is not safetensors: {error}") from None
        try:
            outputs = loaded[0].run(inputs)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        except Exception as error:
            raise Refused(500, f"the model failed: {type(error).__name__}: {error}") from error
        return safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in outputs.items()})


class Refused(Exception):  # noqa: N818  an answer to a client, not an error of this program
    """A request that is answered with an HTTP error.

    Args:
        status: The HTTP status.
        reason: What is wrong, in one sentence.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    serving: Serving

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "edgewright-agent"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        if self.path == "/status":
            self._reply(200, json.dumps(self.server.serving.status()).encode(), _JSON)
        else:
            self._refuse(Refused(404, f"GET {self.path}: there is GET /status and POST /infer"))

    def do_POST(self) -> None:
        try:
            if self.path != "/infer":
                raise Refused(404, f"POST {self.path}: there is GET /status and POST /infer")
            self._check_length()
        except Refused as refused:
            self._refuse(refused)
            self._drop_body()
            return
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client has left
            self.close_connection = True
            return
        try:
            self._reply(200, self.server.serving.infer(body), _BYTES)
        except Refused as refused:
            self._refuse(refused)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing: standard error belongs to the agent's one-line errors."""

    def _check_length(self) -> None:
        limit = self.server.serving.max_body_bytes
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a Content-Length is needed")
        if not length.isascii() or not length.isdecimal():
            raise Refused(400, f"Content-Length {length!r} is not a number")
        if len(length) > 18 or int(length) > limit:
            raise Refused(413, f"a body of {length[:20]} bytes; at most {limit} are taken")

    def _refuse(self, refused: Refused) -> None:
        self._reply(refused.status, json.dumps({"error": str(refused)}).encode(), _JSON)

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drop_body(self) -> None:
        """Ends the connection in a way that lets the client read the answer before it has sent everything."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_WR)
        for _ in range(1024):
            if not self.rfile.read1(1 << 16):
                break


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": port.shape, "dtype": port.dtype}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        return False
