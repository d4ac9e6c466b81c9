"""The slots' journal: what each slot holds and which one counts, as frozen data, with its reader and writer.

`journal.json` is the only truth about the slots. It is small, replaced atomically, and checked when
it is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from edgewright_device.errors import SlotError

FORMAT = 1
FILE = "journal.json"
MAX_BYTES = 64 << 10
MAX_TEXT = 2000  # characters of one string, so that a long reason cannot outgrow MAX_BYTES

SlotName: TypeAlias = Literal["a", "b"]
SLOT_NAMES: tuple[SlotName, ...] = get_args(SlotName)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRelease:
    """The release that a slot holds.

    Attributes:
        name: The model's name.
        version: Its version.
        digest: SHA-256 (hex) of the release file that was signed.
        rollback_index: A confirmed release forbids every release with a lower one from then on.
    """

    name: str
    version: str
    digest: str
    rollback_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A release that is installed and not yet confirmed.

    Attributes:
        slot: Where it lies.
        attempts: How often it was tried; counted before each try.
        deployment: What the server calls this update, or None.
    """

    slot: SlotName
    attempts: int = 0
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last release that did not come to stay.

    Attributes:
        version: Its version.
        reason: Why, in one sentence.
        at: When, ISO 8601, UTC.
        deployment: What the server calls that update, or None.
    """

    version: str
    reason: str
    at: str
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The state of both slots.

    Attributes:
        current: The slot with the confirmed release that is in use, or None before the first.
        previous: The slot with the confirmed release before that, while it is still there.
        trial: The release on trial, if any; never in the current slot.
        a: What slot a holds; None when it is empty, whatever lies on the disk.
        b: What slot b holds.
        rollback_index: The highest of all releases confirmed so far.
        failure: The last failure, kept until the next one.
    """

    current: SlotName | None = None
    previous: SlotName | None = None
    trial: Trial | None = None
    a: SlotRelease | None = None
    b: SlotRelease | None = None
    rollback_index: int = 0
    failure: Failure | None = None

    @property
    def inactive(self) -> SlotName:
        """The slot that the next release goes into."""
        return "b" if self.current == "a" else "a"

    @property
    def release(self) -> SlotRelease | None:
        """The confirmed release that is in use."""
        return None if self.current is None else self.held(self.current)

    def held(self, slot: SlotName) -> SlotRelease | None:
        """What a slot holds."""
        return self.a if slot == "a" else self.b

    def holding(self, slot: SlotName, release: SlotRelease | None) -> Journal:
        """This journal with another content of one slot."""
        return replace(self, a=release) if slot == "a" else replace(self, b=release)


def encode(journal: Journal) -> bytes:
    """Writes a journal as JSON."""
    data = {"format": FORMAT, **asdict(journal)}
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


def read(directory: Path) -> Journal:
    """Reads the journal in a slots directory; safe while another process changes it.

    Raises:
        SlotError: It is damaged. No journal at all is not an error: nothing was ever installed.
    """
    file = directory / FILE
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        raise SlotError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        return _decode(data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SlotError(
            f"{file}: damaged ({error}); remove it to start with empty slots, which also forgets the lowest "
            "rollback index that is still allowed"
        ) from None


def _decode(data: bytes) -> Journal:
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    values = json.loads(data)
    if not isinstance(values, dict):
        raise TypeError("not a JSON object")
    if (version := values.pop("format", None)) != FORMAT:
        raise ValueError(f"format {version!r}; this version reads format {FORMAT}")
    journal = Journal(
        current=_slot(values.pop("current")),
        previous=_slot(values.pop("previous")),
        trial=_trial(values.pop("trial")),
        a=_release(values.pop("a")),
        b=_release(values.pop("b")),
        rollback_index=_count(values.pop("rollback_index")),
        failure=_failure(values.pop("failure")),
    )
    if values:
        raise ValueError(f"unknown key {min(values)!r}")
    trial_slot = None if journal.trial is None else journal.trial.slot
    for slot in (journal.current, journal.previous, trial_slot):
        if slot is not None and journal.held(slot) is None:
            raise ValueError(f"slot {slot} is in use but empty")
    if journal.current is not None and journal.current in {journal.previous, trial_slot}:
        raise ValueError(f"slot {journal.current} is in use twice")
    return journal


def _release(value: Any) -> SlotRelease | None:
    if value is None:
        return None
    return SlotRelease(
        name=_text(value["name"]),
        version=_text(value["version"]),
        digest=_text(value["digest"]),
        rollback_index=_count(value["rollback_index"]),
    )


def _trial(value: Any) -> Trial | None:
    if value is None:
        return None
    slot = _slot(value["slot"])
    if slot is None:
        raise ValueError("a trial needs a slot")
    return Trial(slot=slot, attempts=_count(value["attempts"]), deployment=_maybe_text(value["deployment"]))


def _failure(value: Any) -> Failure | None:
    if value is None:
        return None
    return Failure(
        version=_text(value["version"]),
        reason=_text(value["reason"]),
        at=_text(value["at"]),
        deployment=_maybe_text(value["deployment"]),
    )


def _slot(value: object) -> SlotName | None:
    if value is not None and value not in SLOT_NAMES:
        raise ValueError(f"{value!r} is not a slot")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _maybe_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0 up")
    return value
