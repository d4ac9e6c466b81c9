"""HTTP for clients: bounded, resumable, and with errors that say what, where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from edgewright_ota.errors import ServerError

TIMEOUT_S = 30.0
STEP_BYTES = 1 << 16
MAX_JSON_BYTES = 8 << 20


def new_pool() -> urllib3.PoolManager:
    """A pool of connections: 30 s for each step, two more tries to connect, at most 3 redirects."""
    retries = urllib3.Retry(connect=2, read=0, redirect=3, status=0, other=0, backoff_factor=0.1)
    return urllib3.PoolManager(timeout=TIMEOUT_S, retries=retries)


def request_json(
    pool: urllib3.PoolManager,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: object | None = None,
    expect: tuple[int, ...] = (200, 201, 204),
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """Sends a request and reads a JSON object of at most 8 MiB.

    Args:
        pool: The connections.
        method: GET, POST, …
        url: Where to.
        headers: To send along.
        body: JSON to send; None for none.
        expect: Statuses that are an answer rather than an error.

    Returns:
        The status, the object (empty when there was no body), and the headers.

    Raises:
        ServerError: No answer, another status, or not a JSON object.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = dict(headers) | ({"Content-Type": "application/json"} if data is not None else {})
    try:
        response = pool.request(method, url, body=data, headers=sent, preload_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise ServerError(f"{url}: no answer ({reason(error)}); is the server running?") from error
    try:
        text = response.read(MAX_JSON_BYTES + 1, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise ServerError(f"{url}: the answer was cut off ({reason(error)}); try again") from error
    finally:
        response.release_conn()
    if response.status not in expect:
        raise ServerError(f"{url}: {_explain(response.status, text)}", status=response.status)
    if not text:
        return response.status, {}, response.headers
    try:
        answer = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ServerError(f"{url}: the answer is not a JSON object; is this an Edgewright server?")
    return response.status, answer, response.headers


class Fetcher(FetcherInterface):
    """Fetches for TUF, and downloads large files with Range and resume."""

    def __init__(self, pool: urllib3.PoolManager) -> None:
        self._pool = pool

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._get(url, {})
        if response.status != 200:
            response.drain_conn()
            response.release_conn()
            raise DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
        return self._steps(url, response)

    def resume(
        self, url: str, part: Path, size_bytes: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Appends what is missing of a file, up to its known size.

        Args:
            url: Where it is.
            part: What was received so far; made when it is not there. Unverified.
            size_bytes: Its full length; nothing beyond it is asked for or kept.
            progress: Told of bytes received.

        Raises:
            DownloadError: No answer, an error, or a cut; what was received stays in `part`.
            DownloadLengthMismatchError: More was sent than the full length.
            OSError: The disk does not take it.
        """
        have = part.stat().st_size if part.exists() else 0
        if have > size_bytes:
            part.unlink()
            have = 0
        if have == size_bytes and have:
            return
        response = self._get(url, {"Range": f"bytes={have}-{size_bytes - 1}"} if have else {})
        try:
            if response.status not in {200, 206}:
                raise DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            ):
                raise DownloadError(f"{url}: answers with another range than was asked for")
            with part.open("ab" if response.status == 206 else "wb") as file:
                for block in self._steps(url, response):
                    if file.tell() + len(block) > size_bytes:
                        raise DownloadLengthMismatchError(
                            f"{url}: sends more than the {size_bytes} bytes signed"
                        )
                    file.write(block)
                    if progress:
                        progress(file.tell(), size_bytes)
                if file.tell() != size_bytes:
                    raise DownloadError(f"{url}: cut off after {file.tell()} of {size_bytes} bytes")
        finally:
            response.close()

    def _get(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        sent = {**headers, "Accept-Encoding": "identity"}
        try:
            return self._pool.request("GET", url, headers=sent, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: no answer ({reason(error)}); is the server running?") from error

    @staticmethod
    def _steps(url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            yield from response.stream(STEP_BYTES, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: cut off ({reason(error)}); it is resumed next time") from error
        finally:
            response.release_conn()


def reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    cause: object = getattr(error, "reason", None) or error
    return str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__


def _explain(status: int, text: bytes) -> str:
    hints = {401: "the token is missing or wrong", 404: "not there", 413: "too large"}
    try:
        detail = json.loads(text)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        detail = hints.get(status, "")
    return f"HTTP status {status}" + (f": {str(detail)[:500]}" if detail else "")
