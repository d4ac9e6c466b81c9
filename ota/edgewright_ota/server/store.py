"""What the server remembers: devices, rollouts, actions and the devices' reports, in SQLite (WAL).

Only hashes of device tokens are kept. One server process at a time uses a database: it keeps the running
rollouts in memory. Reads are short; nothing is written unless something changed.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from edgewright_ota.errors import DatabaseError
from edgewright_ota.server.rollouts import OPEN, Action, Device, Rollout, is_due, pick

MAX_REPORTS = 1000
"""Reports kept for one action; a device that sends more is refused."""

SCHEMA = 1

_tables = sa.MetaData()
_devices = sa.Table(
    "devices",
    _tables,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("token_hash", sa.String(64), nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("configured", sa.Boolean, nullable=False),
    sa.Column("installed_name", sa.String(64)),
    sa.Column("installed_version", sa.String(64)),
    sa.Column("created", sa.String(32), nullable=False),
)
_rollouts = sa.Table(
    "rollouts",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("percent", sa.Float, nullable=False),
    sa.Column("tag", sa.String(64)),
    sa.Column("devices", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)
_actions = sa.Table(
    "actions",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", sa.ForeignKey("devices.id", ondelete="CASCADE"), nullable=False),
    sa.Column("rollout", sa.ForeignKey("rollouts.id"), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("updated", sa.String(32), nullable=False),
    sa.UniqueConstraint("device", "rollout"),
    sqlite_autoincrement=True,
)
_reports = sa.Table(
    "reports",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("action", sa.ForeignKey("actions.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("execution", sa.String(16), nullable=False),
    sa.Column("result", sa.String(16), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
)
_action_columns = (
    _actions.c.id,
    _actions.c.device,
    _actions.c.rollout,
    _rollouts.c.name,
    _rollouts.c.version,
    _actions.c.status,
    _actions.c.details,
    _actions.c.created,
    _actions.c.updated,
)
_select_device = sa.select(_devices).where(_devices.c.id == sa.bindparam("device"))
_select_action = sa.select(*_action_columns).join_from(_actions, _rollouts)
_select_own_action = _select_action.where(
    _actions.c.device == sa.bindparam("device"), _actions.c.rollout == sa.bindparam("rollout")
)


class Store:
    """The server's memory.

    Args:
        url: A `sqlite:///PATH` URL; the file is made when it is not there.
        now: The clock.

    Raises:
        DatabaseError: Another kind of URL, or the database cannot be opened.
    """

    def __init__(self, url: str, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lock = threading.Lock()
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise DatabaseError(f"database {url!r}: not a URL; use sqlite:///PATH") from None
        if parsed.get_backend_name() != "sqlite" or parsed.database in {None, "", ":memory:"}:
            raise DatabaseError(
                f"database {parsed.render_as_string()}: this version keeps its data in sqlite:///PATH"
            )
        self._hold = _hold(Path(str(parsed.database)))
        self._engine = sa.create_engine(parsed, pool_size=8, max_overflow=40)
        sa.event.listen(self._engine, "connect", _set_up)
        sa.event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(write=True)
        try:
            with self._writing.begin() as connection:
                version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
                if version not in {0, SCHEMA}:
                    self.close()
                    raise DatabaseError(
                        f"database {parsed.database}: was written by a newer Edgewright; update this one"
                    )
                _tables.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
            self._running = self._load_running()
        except DBAPIError as error:
            self.close()
            raise DatabaseError(f"database {parsed.database}: cannot be used: {error.orig}") from error

    def close(self) -> None:
        """Closes all connections and lets another server use the database."""
        self._engine.dispose()
        self._hold.close()

    def add_device(self, device: str, token_hash: str, tags: Iterable[str] = ()) -> bool:
        """Adds a device; False when it is there already."""
        with self._write() as connection:
            if connection.execute(_select_device, {"device": device}).first() is not None:
                return False
            connection.execute(
                sa.insert(_devices).values(
                    id=device,
                    token_hash=token_hash,
                    tags=sorted(set(tags)),
                    attributes={},
                    configured=False,
                    created=self._stamp(),
                )
            )
            return True

    def set_token(self, device: str, token_hash: str) -> bool:
        """Replaces a device's token; False when there is no such device."""
        with self._write() as connection:
            found = connection.execute(
                sa.update(_devices).where(_devices.c.id == device).values(token_hash=token_hash)
            )
            return found.rowcount == 1

    def remove_device(self, device: str) -> bool:
        """Removes a device with its actions; False when there is none."""
        with self._write() as connection:
            return connection.execute(sa.delete(_devices).where(_devices.c.id == device)).rowcount == 1

    def device(self, device: str) -> tuple[Device, str, bool] | None:
        """A device, the hash of its token, and whether it has described itself."""
        with self._engine.connect() as connection:
            row = connection.execute(_select_device, {"device": device}).first()
        return None if row is None else (_device(row), row.token_hash, row.configured)

    def devices(self, *, after: str = "", limit: int = 1000) -> list[Device]:
        """Devices by id, those after `after`."""
        query = sa.select(_devices).where(_devices.c.id > after).order_by(_devices.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [_device(row) for row in connection.execute(query)]

    def set_attributes(self, device: str, attributes: dict[str, str]) -> None:
        """Keeps what a device says of itself."""
        with self._write() as connection:
            connection.execute(
                sa.update(_devices)
                .where(_devices.c.id == device)
                .values(attributes=attributes, configured=True)
            )

    def add_rollout(
        self, name: str, version: str, percent: float, *, tag: str | None, devices: Iterable[str]
    ) -> Rollout:
        """Starts a rollout."""
        with self._write() as connection:
            row = connection.execute(
                sa.insert(_rollouts)
                .values(
                    name=name,
                    version=version,
                    percent=percent,
                    tag=tag,
                    devices=sorted(set(devices)),
                    state="running",
                    created=self._stamp(),
                )
                .returning(_rollouts)
            ).one()
        self._running = self._load_running()
        return _rollout(row)

    def change_rollout(self, rollout: int, values: dict[str, Any]) -> Rollout | None:
        """Sets percent or state; None when there is no such rollout."""
        with self._write() as connection:
            connection.execute(sa.update(_rollouts).where(_rollouts.c.id == rollout).values(**values))
            row = connection.execute(sa.select(_rollouts).where(_rollouts.c.id == rollout)).first()
        self._running = self._load_running()
        return None if row is None else _rollout(row)

    def rollouts(self) -> list[Rollout]:
        """All rollouts, the newest first."""
        with self._engine.connect() as connection:
            return [
                _rollout(r) for r in connection.execute(sa.select(_rollouts).order_by(_rollouts.c.id.desc()))
            ]

    def counts(self) -> dict[int, dict[str, int]]:
        """Number of actions of each rollout by status."""
        query = sa.select(_actions.c.rollout, _actions.c.status, sa.func.count()).group_by(
            _actions.c.rollout, _actions.c.status
        )
        found: dict[int, dict[str, int]] = {}
        with self._engine.connect() as connection:
            for rollout, status, count in connection.execute(query):
                found.setdefault(rollout, {})[status] = count
        return found

    def due(self, device: Device) -> Action | None:
        """What a device shall do now. Writes only when a rollout reaches the device for the first time."""
        rollout = pick(self._running, device)
        if rollout is None:
            return None
        with self._engine.connect() as connection:
            action = _own_action(connection, device.id, rollout.id)
        if not is_due(rollout, device, action):
            return None
        return action if action is not None else self._offer(device, rollout)

    def action(self, device: str, action: int) -> Action | None:
        """A device's own action; None for another's, too."""
        query = _select_action.where(_actions.c.id == action, _actions.c.device == device)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else _action(row)

    def actions(
        self,
        *,
        device: str | None = None,
        rollout: int | None = None,
        before: int | None = None,
        limit: int = 1000,
    ) -> list[Action]:
        """Actions, the newest first."""
        query = _select_action.order_by(_actions.c.id.desc()).limit(limit)
        if device is not None:
            query = query.where(_actions.c.device == device)
        if rollout is not None:
            query = query.where(_actions.c.rollout == rollout)
        if before is not None:
            query = query.where(_actions.c.id < before)
        with self._engine.connect() as connection:
            return [_action(row) for row in connection.execute(query)]

    def latest_actions(self, devices: Iterable[str]) -> dict[str, Action]:
        """The newest action of each of these devices."""
        newest = sa.select(sa.func.max(_actions.c.id)).where(_actions.c.device.in_(list(devices)))
        query = _select_action.where(_actions.c.id.in_(newest.group_by(_actions.c.device)))
        with self._engine.connect() as connection:
            return {row.device: _action(row) for row in connection.execute(query)}

    def reports(self, action: int) -> list[dict[str, Any]]:
        """A device's reports on an action, the oldest first."""
        columns = (_reports.c.execution, _reports.c.result, _reports.c.details, _reports.c.created)
        query = sa.select(*columns).where(_reports.c.action == action).order_by(_reports.c.id)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def report(self, action: Action, execution: str, result: str, details: list[str]) -> bool:
        """Keeps a device's report and its consequences; False when the action has enough reports."""
        status = _status_after(execution, result)
        with self._write() as connection:
            of_action = _reports.c.action == action.id
            if connection.execute(sa.select(sa.func.count()).where(of_action)).scalar_one() >= MAX_REPORTS:
                return False
            stamp = self._stamp()
            connection.execute(
                sa.insert(_reports).values(
                    action=action.id, execution=execution, result=result, details=details, created=stamp
                )
            )
            connection.execute(
                sa.update(_actions)
                .where(_actions.c.id == action.id, _actions.c.status.in_(OPEN))
                .values(status=status, details=details, updated=stamp)
            )
            if status == "success":
                connection.execute(
                    sa.update(_devices)
                    .where(_devices.c.id == action.device)
                    .values(installed_name=action.name, installed_version=action.version)
                )
            return True

    def _offer(self, device: Device, rollout: Rollout) -> Action | None:
        with self._write() as connection:
            action = _own_action(connection, device.id, rollout.id)
            if action is not None:
                return action
            stamp = self._stamp()
            older = sa.and_(_actions.c.device == device.id, _actions.c.status.in_(OPEN))
            connection.execute(sa.update(_actions).where(older).values(status="superseded", updated=stamp))
            connection.execute(
                sa.insert(_actions).values(
                    device=device.id,
                    rollout=rollout.id,
                    status="pending",
                    details=[],
                    created=stamp,
                    updated=stamp,
                )
            )
            return _own_action(connection, device.id, rollout.id)

    def _load_running(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts() if r.state == "running")

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._lock, self._writing.begin() as connection:
            yield connection

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="seconds")


def _hold(database: Path) -> IO[bytes]:
    """Keeps other servers off the database until the file is closed."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        held = database.with_name(f"{database.name}.lock").open("ab")
    except OSError as error:
        raise DatabaseError(f"database {database}: cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise DatabaseError(f"database {database}: another server uses it; end that one first") from None
    return held


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin alone
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _own_action(connection: sa.Connection, device: str, rollout: int) -> Action | None:
    row = connection.execute(_select_own_action, {"device": device, "rollout": rollout}).first()
    return None if row is None else _action(row)


def _status_after(execution: str, result: str) -> str:
    if execution == "closed":
        return "success" if result == "success" else "failure"
    if execution == "rejected":
        return "failure"
    return "canceled" if execution == "canceled" else "proceeding"


def _device(row: Any) -> Device:
    installed = (row.installed_name, row.installed_version) if row.installed_name else None
    return Device(
        id=row.id,
        tags=frozenset(row.tags),
        attributes=row.attributes,
        installed=installed,
        created=row.created,
    )


def _rollout(row: Any) -> Rollout:
    return Rollout(
        id=row.id,
        name=row.name,
        version=row.version,
        percent=row.percent,
        tag=row.tag,
        devices=frozenset(row.devices),
        state=row.state,
        created=row.created,
    )


def _action(row: Any) -> Action:
    return Action(
        id=row.id,
        device=row.device,
        rollout=row.rollout,
        name=row.name,
        version=row.version,
        status=row.status,
        details=tuple(row.details),
        created=row.created,
        updated=row.updated,
    )
