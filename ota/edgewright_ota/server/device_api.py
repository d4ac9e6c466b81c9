"""What devices talk to: the Direct Device Integration API, as hawkBit's DDI v1 has it.

    GET  /{tenant}/controller/v1/{device}                                  poll
    GET  /{tenant}/controller/v1/{device}/deploymentBase/{action}          what to install
    POST /{tenant}/controller/v1/{device}/deploymentBase/{action}/feedback how it goes
    PUT  /{tenant}/controller/v1/{device}/configData                       what the device is

The packages themselves are fetched from /targets/.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgewright_ota.errors import RepositoryError
from edgewright_ota.release import Package, Release
from edgewright_ota.repository import Repository
from edgewright_ota.server.answers import (
    MAX_BODY_BYTES,
    credentials,
    hash_token,
    new_token,
    read_json,
    tagged,
    text,
    texts,
    token_fits,
)
from edgewright_ota.server.rollouts import OPEN, Action, Device
from edgewright_ota.server.store import Store

DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
EXECUTIONS = frozenset(
    {"closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"}
)
RESULTS = frozenset({"none", "success", "failure"})
MAX_ATTRIBUTES = 64
MAX_DETAILS = 64
MAX_DETAIL_CHARS = 1024

_NOBODY = hash_token("")


class DeviceApi:
    """The routes for devices.

    Args:
        store: The server's memory.
        repository: Where releases come from.
        tenant: The one tenant.
        gateway_token: A secret that may speak for any device and add new ones; None for none.
        poll_interval_s: How often devices shall poll, seconds.
        now: The clock.
    """

    def __init__(
        self,
        store: Store,
        repository: Repository,
        *,
        tenant: str,
        gateway_token: str | None,
        poll_interval_s: int,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._repository = repository
        self._tenant = tenant
        self._gateway_hash = None if gateway_token is None else hash_token(gateway_token)
        hours, seconds = divmod(poll_interval_s, 3600)
        self._sleep = f"{hours:02}:{seconds // 60:02}:{seconds % 60:02}"
        self._now = now
        self._hashes: dict[str, dict[str, str]] = {}
        self.last_polls: dict[str, str] = {}

    def routes(self) -> list[Route]:
        """The paths and what answers them."""
        base = "/{tenant}/controller/v1/{device}"
        return [
            Route(base, self.poll, methods=["GET"]),
            Route(f"{base}/deploymentBase/{{action}}", self.deployment, methods=["GET"]),
            Route(f"{base}/deploymentBase/{{action}}/feedback", self.feedback, methods=["POST"]),
            Route(f"{base}/configData", self.config, methods=["PUT"]),
        ]

    async def poll(self, request: Request) -> Response:
        """Whether there is something to do; an idle poll reads twice and writes nothing."""
        device, configured = await self._authenticate(request)
        self.last_polls[device.id] = self._now().isoformat(timespec="seconds")
        # A short indexed read costs less here than a thread would; only a rollout's arrival writes.
        action = self._store.due(device)
        here = str(request.url.replace(query="", fragment=""))
        links: dict[str, Any] = {}
        if action is not None:
            links["deploymentBase"] = {"href": f"{here}/deploymentBase/{action.id}"}
        if not configured:
            links["configData"] = {"href": f"{here}/configData"}
        return tagged(request, {"config": {"polling": {"sleep": self._sleep}}, "_links": links})

    async def deployment(self, request: Request) -> Response:
        """What to install, with links and hashes of its packages."""
        device, _ = await self._authenticate(request)
        action = await self._own_action(request, device)
        try:
            body = await run_in_threadpool(self._describe, action, str(request.base_url))
        except RepositoryError as error:
            raise HTTPException(404, f"{action.name} {action.version} is not published any more") from error
        return tagged(request, body)

    async def feedback(self, request: Request) -> Response:
        """How it goes on the device."""
        device, _ = await self._authenticate(request)
        action = await self._own_action(request, device)
        status = (await read_json(request)).get("status")
        result = status.get("result") if isinstance(status, dict) else None
        if not isinstance(status, dict) or not isinstance(result, dict):
            raise HTTPException(400, "status and status.result must be objects")
        execution = text(status, "execution")
        finished = text(result, "finished", default="none")
        lines = texts(status, "details", count=MAX_BODY_BYTES, limit=MAX_BODY_BYTES)
        details = [line[:MAX_DETAIL_CHARS] for line in lines[:MAX_DETAILS]]
        if execution not in EXECUTIONS or finished not in RESULTS:
            raise HTTPException(400, f"execution {execution!r} or result {finished!r} is not known")
        if action.status not in OPEN:
            if execution == "closed" and action.status == finished:
                return JSONResponse({})  # said again, because our answer got lost
            raise HTTPException(410, f"the action has ended already: {action.status}")
        if not await run_in_threadpool(self._store.report, action, execution, finished, details):
            raise HTTPException(403, "too many reports on one action")
        return JSONResponse({})

    async def config(self, request: Request) -> Response:
        """What the device says of itself."""
        device, _ = await self._authenticate(request)
        body = await read_json(request)
        data, mode = body.get("data"), body.get("mode", "merge")
        if not isinstance(data, dict) or mode not in {"merge", "replace", "remove"}:
            raise HTTPException(400, "data: must be an object; mode: merge, replace or remove")
        given = {key: text(data, key, limit=512) for key in data}
        kept = {} if mode == "replace" else {k: v for k, v in device.attributes.items() if k not in given}
        attributes = kept if mode == "remove" else kept | given
        if len(attributes) > MAX_ATTRIBUTES or any(len(key) > 128 for key in attributes):
            raise HTTPException(400, f"data: at most {MAX_ATTRIBUTES} names of at most 128 characters")
        await run_in_threadpool(self._store.set_attributes, device.id, attributes)
        return JSONResponse({})

    async def _authenticate(self, request: Request) -> tuple[Device, bool]:
        """The device that asks, and whether it has described itself.

        Raises:
            HTTPException: 404 for another tenant, 401 for a wrong token; unknown devices look the same.
        """
        if request.path_params["tenant"] != self._tenant:
            raise HTTPException(404, "no such tenant")
        name = request.path_params["device"]
        scheme, secret = credentials(request)
        known = self._store.device(name) if DEVICE_ID.fullmatch(name) else None
        if scheme == "TargetToken":
            fits = token_fits(secret, known[1] if known else _NOBODY)
            if fits and known:
                return known[0], known[2]
        elif self._is_gateway(scheme, secret) and DEVICE_ID.fullmatch(name):
            if known is None:
                await run_in_threadpool(self._store.add_device, name, hash_token(new_token()))
                known = self._store.device(name)
            if known is not None:
                return known[0], known[2]
        raise HTTPException(401, "the token does not fit the device", {"WWW-Authenticate": "TargetToken"})

    def _is_gateway(self, scheme: str, secret: str) -> bool:
        expected = self._gateway_hash
        return scheme == "GatewayToken" and expected is not None and token_fits(secret, expected)

    async def _own_action(self, request: Request, device: Device) -> Action:
        number = request.path_params["action"]
        found = None
        if number.isascii() and number.isdigit() and len(number) <= 18:
            found = await run_in_threadpool(self._store.action, device.id, int(number))
        if found is None:
            raise HTTPException(404, "no such action for this device")
        return found

    def _describe(self, action: Action, base_url: str) -> dict[str, Any]:
        release = self._repository.release(action.name, action.version)
        artifacts = [self._artifact(release, package, base_url) for package in release.packages]
        chunk = {"part": "bApp", "name": release.name, "version": release.version, "artifacts": artifacts}
        return {
            "id": str(action.id),
            "deployment": {"download": "forced", "update": "forced", "chunks": [chunk]},
        }

    def _artifact(self, release: Release, package: Package, base_url: str) -> dict[str, Any]:
        path = self._repository.package_path(release, package)
        if package.sha256 not in self._hashes:
            # The protocol wants these two; trust rests on TUF alone.
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                file.seek(0)
                sha1 = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
            self._hashes[package.sha256] = {"sha1": sha1, "md5": md5, "sha256": package.sha256}
        href = f"{base_url}targets/{path.relative_to(self._repository.targets_path).as_posix()}"
        return {
            "filename": package.filename,
            "hashes": self._hashes[package.sha256],
            "size": package.size_bytes,
            "_links": {"download": {"href": href}, "download-http": {"href": href}},
        }
