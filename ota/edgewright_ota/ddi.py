"""The device's side of the Direct Device Integration API (hawkBit's DDI v1): poll, report, describe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from edgewright_ota.errors import ServerError
from edgewright_ota.transport import new_pool, request_json

Execution: TypeAlias = Literal[
    "closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"
]
Result: TypeAlias = Literal["none", "success", "failure"]

MIN_INTERVAL_S = 1
MAX_INTERVAL_S = 86_400
MAX_DETAILS = 32
MAX_DETAIL_CHARS = 512

_SLEEP = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the server wants this device to hold. It is a wish, not a proof: TUF decides what is genuine."""

    id: str
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """One answer to a poll.

    Attributes:
        interval_s: Seconds to wait before the next one, in 1..86400.
        deployment: What to install, or None.
        wants_config: Whether the server asks for `send_config`.
    """

    interval_s: int
    deployment: Deployment | None
    wants_config: bool


class DdiClient:
    """A device at a DDI server.

    Args:
        base_url: The server, such as http://127.0.0.1:8080.
        tenant: The tenant's name, "default" unless the server says otherwise.
        device: This device's id.
        token: Its secret.
        gateway: Whether the token is a gateway's rather than the device's own.
        http: The connections; None for a pool of its own.
    """

    def __init__(
        self,
        base_url: str,
        tenant: str,
        device: str,
        token: str,
        *,
        gateway: bool = False,
        http: urllib3.PoolManager | None = None,
    ) -> None:
        self._base = f"{base_url.rstrip('/')}/{quote(tenant, safe='')}/controller/v1/{quote(device, safe='')}"
        kind = "GatewayToken" if gateway else "TargetToken"
        self._headers = {
            "Authorization": f"{kind} {token}",
            "Accept": "application/hal+json, application/json",
        }
        self._pool = http or new_pool()
        self._etag: str | None = None
        self._last: tuple[int, str | None, bool] = (60, None, False)
        self._deployment: tuple[str, Deployment] | None = None

    def poll(self) -> Poll:
        """Asks whether there is something to do.

        Raises:
            ServerError: Out of reach, the token is refused, or the answer is not DDI.
        """
        headers = self._headers | ({"If-None-Match": self._etag} if self._etag else {})
        status, body, received = request_json(
            self._pool, "GET", self._base, headers=headers, expect=(200, 304)
        )
        if status == 200:
            self._last = (
                _interval_s(body),
                self._link(body, "deploymentBase"),
                self._link(body, "configData") is not None,
            )
            self._etag = received.get("ETag")
        interval_s, link, wants_config = self._last
        return Poll(
            interval_s=interval_s,
            deployment=self._read_deployment(link) if link else None,
            wants_config=wants_config,
        )

    def feedback(
        self, deployment_id: str, *, execution: Execution, result: Result, details: Sequence[str] = ()
    ) -> None:
        """Reports on a deployment.

        Args:
            deployment_id: `Deployment.id`.
            execution: How far it is; "closed" ends it.
            result: How it went; "success" and "failure" count when closed.
            details: For people: what happened. At most 32 lines of 512 characters are sent.

        Raises:
            ServerError: Out of reach, or the server does not take it.
        """
        if not _ID.fullmatch(deployment_id):
            raise ValueError(f"deployment id {deployment_id!r}: give Deployment.id")
        body = {
            "id": deployment_id,
            "status": {
                "execution": execution,
                "result": {"finished": result},
                "details": [d[:MAX_DETAIL_CHARS] for d in details[:MAX_DETAILS]],
            },
        }
        url = f"{self._base}/deploymentBase/{deployment_id}/feedback"
        request_json(self._pool, "POST", url, headers=self._headers, body=body)
        self._etag = None

    def send_config(self, attributes: Mapping[str, str]) -> None:
        """Tells the server what this device is.

        Args:
            attributes: Such as {"cpu": "avx2"}; replaces what was sent before.

        Raises:
            ServerError: Out of reach, or the server does not take it.
        """
        body = {"mode": "replace", "data": dict(attributes)}
        request_json(self._pool, "PUT", f"{self._base}/configData", headers=self._headers, body=body)
        self._etag = None

    def _read_deployment(self, url: str) -> Deployment:
        if self._deployment is not None and self._deployment[0] == url:
            return self._deployment[1]
        _, body, _ = request_json(self._pool, "GET", url, headers=self._headers)
        try:
            chunk = body["deployment"]["chunks"][0]
            found = Deployment(id=str(body["id"]), name=str(chunk["name"]), version=str(chunk["version"]))
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{url}: describes no deployment") from None
        if not _ID.fullmatch(found.id):
            raise ServerError(f"{url}: gives the deployment an impossible id")
        self._deployment = (url, found)
        return found

    def _link(self, body: dict[str, Any], name: str) -> str | None:
        """A link of the answer; the token is sent nowhere but to the server it belongs to."""
        links = body.get("_links", {})
        link = links.get(name) if isinstance(links, dict) else None
        if link is None:
            return None
        href = link.get("href") if isinstance(link, dict) else None
        if not isinstance(href, str):
            raise ServerError(f"{self._base}: its link {name} has no address")
        url = urljoin(self._base, href)
        if urlsplit(url)[:2] != urlsplit(self._base)[:2]:
            raise ServerError(f"{self._base}: its link {name} points to another server: {url[:200]}")
        return url


def _interval_s(body: dict[str, Any]) -> int:
    try:
        match = _SLEEP.fullmatch(body["config"]["polling"]["sleep"])
    except (KeyError, TypeError):
        match = None
    if match is None:
        raise ServerError("the server's answer has no polling interval; is it a DDI server?")
    hours, minutes, seconds = (int(x) for x in match.groups())
    return min(max(hours * 3600 + minutes * 60 + seconds, MIN_INTERVAL_S), MAX_INTERVAL_S)
