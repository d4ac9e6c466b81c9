"""The management side of a server: devices, rollouts and how they go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import urllib3

from edgewright_ota.transport import new_pool, request_json


class Fleet:
    """A server's devices and rollouts. Rows are JSON objects as docs/release-format.md lists them.

    Args:
        base_url: The server, such as http://127.0.0.1:8080.
        token: Its management token.
        http: The connections; None for a pool of its own.

    Every method raises ServerError when the server is out of reach or refuses.
    """

    def __init__(self, base_url: str, token: str, *, http: urllib3.PoolManager | None = None) -> None:
        self._base = f"{base_url.rstrip('/')}/api/v1"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = http or new_pool()

    def releases(self) -> list[dict[str, Any]]:
        """What is published."""
        return self._rows("releases")

    def devices(self) -> Iterator[dict[str, Any]]:
        """All devices by id, each with what it has installed and its newest action."""
        after = ""
        while rows := self._rows("devices", f"?after={quote(after, safe='')}"):
            yield from rows
            after = rows[-1]["id"]

    def device(self, device: str) -> dict[str, Any]:
        """One device with all its actions and reports."""
        return self._ask("GET", f"devices/{quote(device, safe='')}")

    def add_device(self, device: str, *, tags: Sequence[str] = ()) -> str:
        """Adds a device; gives its token, which cannot be read again."""
        return str(self._ask("POST", "devices", {"id": device, "tags": list(tags)})["token"])

    def renew_token(self, device: str) -> str:
        """Gives a device a new token; the old one ends."""
        return str(self._ask("POST", f"devices/{quote(device, safe='')}/token")["token"])

    def remove_device(self, device: str) -> None:
        """Removes a device and its actions."""
        self._ask("DELETE", f"devices/{quote(device, safe='')}")

    def rollouts(self) -> list[dict[str, Any]]:
        """All rollouts, the newest first, with the numbers of their actions by status."""
        return self._rows("rollouts")

    def start_rollout(
        self,
        name: str,
        version: str,
        *,
        percent: float = 100,
        tag: str | None = None,
        devices: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Starts to offer a release.

        Args:
            name: The release's name.
            version: Its version.
            percent: Share of the devices, 0..100; which ones is fixed, and a higher share only adds to them.
            tag: Only devices with this tag.
            devices: Only these devices.
        """
        body = {"name": name, "version": version, "percent": percent, "tag": tag, "devices": list(devices)}
        return self._ask("POST", "rollouts", body)

    def change_rollout(
        self, rollout: int, *, percent: float | None = None, state: str | None = None
    ) -> dict[str, Any]:
        """Changes the share of devices, or the state: "running" or "paused"."""
        body = {k: v for k, v in {"percent": percent, "state": state}.items() if v is not None}
        return self._ask("PATCH", f"rollouts/{rollout}", body)

    def actions(self, *, device: str | None = None, rollout: int | None = None) -> Iterator[dict[str, Any]]:
        """What devices were offered and how it went, the newest first."""
        wanted = "".join(
            f"&{k}={quote(str(v), safe='')}"
            for k, v in {"device": device, "rollout": rollout}.items()
            if v is not None
        )
        before = (1 << 53) - 1
        while rows := self._rows("actions", f"?before={before}{wanted}"):
            yield from rows
            before = rows[-1]["id"]

    def _rows(self, what: str, query: str = "") -> list[dict[str, Any]]:
        return list(self._ask("GET", what + query)[what])

    def _ask(self, method: str, path: str, body: object | None = None) -> dict[str, Any]:
        return request_json(self._pool, method, f"{self._base}/{path}", headers=self._headers, body=body)[1]
