"""Who gets what: decisions about rollouts, as plain functions of plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

RolloutState: TypeAlias = Literal["running", "paused"]
ActionStatus: TypeAlias = Literal["pending", "proceeding", "superseded", "success", "failure", "canceled"]

OPEN: frozenset[str] = frozenset({"pending", "proceeding", "superseded"})
"""Statuses that a device's report can still change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A release on its way to devices.

    Attributes:
        id: Rises with time; the newest rollout that includes a device is the one that counts for it.
        name: The release's name.
        version: Its version.
        percent: Share of the devices, 0..100.
        tag: Only devices with this tag; None for all.
        devices: Only these devices; empty for all.
        state: A paused rollout is offered to nobody.
        created: When, ISO 8601, UTC.
    """

    id: int
    name: str
    version: str
    percent: float
    tag: str | None
    devices: frozenset[str]
    state: RolloutState
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as the server knows it.

    Attributes:
        id: Its name, unique.
        tags: Set by people, for rollouts.
        attributes: What it says of itself.
        installed: Name and version that it last confirmed, or None.
        created: When it was added, ISO 8601, UTC.
    """

    id: str
    tags: frozenset[str]
    attributes: dict[str, str]
    installed: tuple[str, str] | None
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One rollout on one device.

    Attributes:
        id: Unique; the device knows it as the deployment's id.
        device: Whose it is.
        rollout: Which rollout.
        name: The release's name.
        version: Its version.
        status: How far it is.
        details: The lines of the device's last report.
        created: When it was first offered, ISO 8601, UTC.
        updated: When its status last changed.
    """

    id: int
    device: str
    rollout: int
    name: str
    version: str
    status: ActionStatus
    details: tuple[str, ...]
    created: str
    updated: str


def share(device: str, rollout: int) -> float:
    """Where a device stands in a rollout, in [0, 100): fixed, uniform, and fresh for each rollout."""
    digest = hashlib.sha256(f"{rollout}\0{device}".encode()).digest()
    return int.from_bytes(digest[:6]) / (1 << 48) * 100


def includes(rollout: Rollout, device: Device) -> bool:
    """Whether a rollout is for a device; raising its percent never drops one."""
    if rollout.state != "running":
        return False
    if rollout.devices and device.id not in rollout.devices:
        return False
    if rollout.tag is not None and rollout.tag not in device.tags:
        return False
    return share(device.id, rollout.id) < rollout.percent


def pick(newest_first: Iterable[Rollout], device: Device) -> Rollout | None:
    """The rollout that counts for a device: the newest that includes it. An older one never comes back."""
    return next((r for r in newest_first if includes(r, device)), None)


def is_due(rollout: Rollout, device: Device, action: Action | None) -> bool:
    """Whether to offer a rollout: not when the device has the version, nor once it has reported an end."""
    if device.installed == (rollout.name, rollout.version):
        return False
    return action is None or action.status in OPEN
