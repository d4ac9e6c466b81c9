"""What people and tools talk to, under /api/v1/, with a bearer token.

GET  releases                            GET  actions?device=&rollout=&before=
GET  devices?after=   POST devices       GET  devices/{id}   DELETE devices/{id}   POST devices/{id}/token
GET  rollouts         POST rollouts      PATCH rollouts/{id}
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgewright_ota.errors import RepositoryError
from edgewright_ota.repository import Repository
from edgewright_ota.server.answers import (
    credentials,
    hash_token,
    new_token,
    read_json,
    text,
    texts,
    token_fits,
)
from edgewright_ota.server.device_api import DEVICE_ID, DeviceApi
from edgewright_ota.server.rollouts import Action, Device, Rollout
from edgewright_ota.server.store import Store

MAX_BODY_BYTES = 1 << 20
MAX_TAGS = 64
MAX_ROLLOUT_DEVICES = 10_000


class ManagementApi:
    """The routes for people and tools.

    Args:
        store: The server's memory.
        repository: Where releases come from.
        devices: The device routes; they know who polled.
        token: The secret of those who may manage.
    """

    def __init__(self, store: Store, repository: Repository, devices: DeviceApi, *, token: str) -> None:
        self._store = store
        self._repository = repository
        self._devices = devices
        self._token_hash = hash_token(token)

    def routes(self) -> list[Route]:
        """The paths and what answers them."""
        return [
            Route("/api/v1/releases", self.releases, methods=["GET"]),
            Route("/api/v1/devices", self.devices, methods=["GET", "POST"]),
            Route("/api/v1/devices/{device}", self.device, methods=["GET", "DELETE"]),
            Route("/api/v1/devices/{device}/token", self.token, methods=["POST"]),
            Route("/api/v1/rollouts", self.rollouts, methods=["GET", "POST"]),
            Route("/api/v1/rollouts/{rollout:int}", self.rollout, methods=["PATCH"]),
            Route("/api/v1/actions", self.actions, methods=["GET"]),
        ]

    async def releases(self, request: Request) -> Response:
        """What is published."""
        self._authorize(request)
        try:
            found = await run_in_threadpool(self._repository.releases)
        except RepositoryError as error:
            raise HTTPException(500, str(error)) from error
        rows = [
            {
                "name": r.name,
                "version": r.version,
                "rollback_index": r.rollback_index,
                "size_bytes": r.size_bytes,
                "digest": r.digest,
                "packages": [asdict(p) for p in r.packages],
            }
            for r in found
        ]
        return JSONResponse({"releases": rows})

    async def devices(self, request: Request) -> Response:
        """Lists devices, or adds one and gives its token, once."""
        self._authorize(request)
        if request.method == "GET":
            after = request.query_params.get("after", "")
            found = await run_in_threadpool(self._store.devices, after=after)
            latest = await run_in_threadpool(self._store.latest_actions, [d.id for d in found])
            return JSONResponse({"devices": [self._device_row(d, latest.get(d.id)) for d in found]})
        data = await read_json(request, limit=MAX_BODY_BYTES)
        name = text(data, "id")
        if not DEVICE_ID.fullmatch(name):
            raise HTTPException(
                400, "id: use 1-128 letters, digits, '.', '_' or '-', beginning with one of the first two"
            )
        tags = texts(data, "tags", count=MAX_TAGS, limit=64)
        token = new_token()
        if not await run_in_threadpool(self._store.add_device, name, hash_token(token), tags):
            raise HTTPException(409, f"device {name} exists already")
        return JSONResponse({"id": name, "token": token}, status_code=201)

    async def device(self, request: Request) -> Response:
        """One device with its actions and reports; or removes it."""
        self._authorize(request)
        name = request.path_params["device"]
        if request.method == "DELETE":
            if not await run_in_threadpool(self._store.remove_device, name):
                raise HTTPException(404, f"no device {name[:128]}")
            self._devices.last_polls.pop(name, None)
            return Response(status_code=204)
        return JSONResponse(await run_in_threadpool(self._describe_device, name))

    async def token(self, request: Request) -> Response:
        """Gives a device a new token; the old one ends."""
        self._authorize(request)
        name, token = request.path_params["device"], new_token()
        if not await run_in_threadpool(self._store.set_token, name, hash_token(token)):
            raise HTTPException(404, f"no device {name[:128]}")
        return JSONResponse({"id": name, "token": token})

    async def rollouts(self, request: Request) -> Response:
        """Lists rollouts with the numbers of their actions, or starts one."""
        self._authorize(request)
        if request.method == "GET":
            found = await run_in_threadpool(self._store.rollouts)
            counts = await run_in_threadpool(self._store.counts)
            return JSONResponse({"rollouts": [_rollout_row(r, counts.get(r.id, {})) for r in found]})
        data = await read_json(request, limit=MAX_BODY_BYTES)
        name, version = text(data, "name", limit=64), text(data, "version", limit=64)
        tag = text(data, "tag", limit=64) if data.get("tag") is not None else None
        devices = texts(data, "devices", count=MAX_ROLLOUT_DEVICES)
        percent = _percent(data.get("percent", 100))
        try:
            await run_in_threadpool(self._repository.release, name, version)
        except RepositoryError as error:
            raise HTTPException(400, f"{name} {version} is not published") from error
        made = await run_in_threadpool(
            self._store.add_rollout, name, version, percent, tag=tag, devices=devices
        )
        return JSONResponse(_rollout_row(made, {}), status_code=201)

    async def rollout(self, request: Request) -> Response:
        """Changes the percent or the state of a rollout."""
        self._authorize(request)
        data = await read_json(request)
        values: dict[str, Any] = {}
        if "percent" in data:
            values["percent"] = _percent(data["percent"])
        if "state" in data:
            if data["state"] not in {"running", "paused"}:
                raise HTTPException(400, "state: must be running or paused")
            values["state"] = data["state"]
        if not values or set(data) != set(values):
            raise HTTPException(400, "give percent, state or both, and nothing else")
        found = await run_in_threadpool(self._store.change_rollout, request.path_params["rollout"], values)
        if found is None:
            raise HTTPException(404, f"no rollout {request.path_params['rollout']}")
        counts = await run_in_threadpool(self._store.counts)
        return JSONResponse(_rollout_row(found, counts.get(found.id, {})))

    async def actions(self, request: Request) -> Response:
        """What devices were offered and how it went, the newest first."""
        self._authorize(request)
        query = request.query_params
        found = await run_in_threadpool(
            self._store.actions,
            device=query.get("device"),
            rollout=_number(query.get("rollout"), "rollout"),
            before=_number(query.get("before"), "before"),
        )
        return JSONResponse({"actions": [asdict(a) for a in found]})

    def _authorize(self, request: Request) -> None:
        scheme, secret = credentials(request)
        if not token_fits(secret, self._token_hash) or scheme != "Bearer":
            raise HTTPException(
                401, "the management token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    def _describe_device(self, name: str) -> dict[str, Any]:
        found = self._store.device(name)
        if found is None:
            raise HTTPException(404, f"no device {name[:128]}")
        actions = self._store.actions(device=name, limit=100)
        row = self._device_row(found[0], actions[0] if actions else None)
        row["actions"] = [asdict(a) | {"reports": self._store.reports(a.id)} for a in actions]
        return row

    def _device_row(self, device: Device, action: Action | None) -> dict[str, Any]:
        installed = (
            {"name": device.installed[0], "version": device.installed[1]} if device.installed else None
        )
        return {
            "id": device.id,
            "tags": sorted(device.tags),
            "attributes": device.attributes,
            "installed": installed,
            "last_poll": self._devices.last_polls.get(device.id),
            "action": None if action is None else asdict(action),
            "created": device.created,
        }


def _rollout_row(rollout: Rollout, counts: dict[str, int]) -> dict[str, Any]:
    return asdict(rollout) | {"devices": sorted(rollout.devices), "actions": counts}


def _percent(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
        raise HTTPException(400, "percent: must be a number in 0..100")
    return float(value)


def _number(value: str | None, key: str) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise HTTPException(400, f"{key}: must be a number")
    return int(value)
