"""The server as one ASGI application: devices' API, management API, and the repository's public files."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from edgewright_ota.clock import utc_now
from edgewright_ota.errors import RepositoryError
from edgewright_ota.repository import Repository
from edgewright_ota.server.answers import on_error
from edgewright_ota.server.device_api import DeviceApi
from edgewright_ota.server.management_api import ManagementApi
from edgewright_ota.server.store import Store

REFRESH_INTERVAL_S = 3600.0

_log = logging.getLogger(__name__)


def create_app(
    repository: str | os.PathLike[str],
    database: str,
    *,
    management_token: str,
    gateway_token: str | None = None,
    tenant: str = "default",
    poll_interval_s: int = 60,
    now: Callable[[], datetime] = utc_now,
) -> Starlette:
    """Makes the server.

    Args:
        repository: The folder of a repository. With the snapshot and timestamp keys there, the server keeps
            both fresh.
        database: A `sqlite:///PATH` URL.
        management_token: The secret of those who may manage.
        gateway_token: A secret that may speak for any device and add new ones; None for none.
        tenant: The one tenant, in the devices' URLs.
        poll_interval_s: How often devices shall poll, seconds, 1..86399.
        now: The clock.

    Raises:
        RepositoryError: The repository cannot be opened.
        DatabaseError: The database cannot be used.
        ValueError: An argument is out of its range.
    """
    if not 1 <= poll_interval_s < 86_400:
        raise ValueError(f"poll_interval_s {poll_interval_s}: must be in 1..86399")
    if not management_token or gateway_token == "":
        raise ValueError("tokens must not be empty")
    opened = Repository.open(repository, now=now)
    store = Store(database, now=now)
    devices = DeviceApi(
        store,
        opened,
        tenant=tenant,
        gateway_token=gateway_token,
        poll_interval_s=poll_interval_s,
        now=now,
    )
    management = ManagementApi(store, opened, devices, token=management_token)

    async def timestamp(_request: Request) -> Response:
        # Read at once: the file may be replaced at any moment.
        data = await run_in_threadpool((opened.metadata_path / "timestamp.json").read_bytes)
        return Response(data, media_type="application/json", headers={"Cache-Control": "no-cache"})

    routes: list[BaseRoute] = [
        Route("/metadata/timestamp.json", timestamp, methods=["GET"]),
        Mount("/metadata", _Files(directory=opened.metadata_path)),
        Mount("/targets", _Files(directory=opened.targets_path)),
        *management.routes(),
        *devices.routes(),
    ]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await _refresh(opened)
        task = asyncio.create_task(_keep_fresh(opened))
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        store.close()

    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: on_error, 500: on_error}
    )


class _Files(StaticFiles):
    """Public files, with Range. They never change, so any cache may keep them."""

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


async def _refresh(repository: Repository) -> None:
    try:
        await run_in_threadpool(repository.refresh)
    except RepositoryError as error:
        _log.warning("metadata is not kept fresh by this server: %s", error)


async def _keep_fresh(repository: Repository) -> None:
    while True:
        await asyncio.sleep(REFRESH_INTERVAL_S)
        await _refresh(repository)
