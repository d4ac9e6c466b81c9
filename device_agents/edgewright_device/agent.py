"""The agent: keeps one device on the release its server wants, and on the last good one when that fails.

One step is: finish a trial that an interruption left, ask the server, and, when it wants another release:
verify it (TUF), fetch the smallest package that fits, install it into the inactive slot, try it, confirm or
revert it, and report. The journal is the only memory: a server goes on offering a deployment until it has a
report, so a report that was lost is made again from what the journal says.
"""

from __future__ import annotations

import json
import os
import random as _random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from edgewright_device import health
from edgewright_device.artifact import Artifact
from edgewright_device.errors import ArtifactError, DeviceError, SlotError
from edgewright_device.journal import SlotName, SlotRelease
from edgewright_device.runner import Runner
from edgewright_device.slots import Slots
from edgewright_ota import (
    Client,
    DdiClient,
    Deployment,
    OtaError,
    Package,
    PackageError,
    Release,
    ServerError,
    TrustError,
    unpack,
)

MAX_ATTEMPTS = 3
BACKOFF_FIRST_S = 5.0
BACKOFF_MAX_S = 600.0
JITTER = 0.1
MAX_VERSION_CHARS = 64

EventKind: TypeAlias = Literal["poll", "downloading", "installed", "confirmed", "rolled_back", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        event: What. An "error" leaves the device as it was; "rolled_back" took a release out of use.
        at: When, ISO 8601, UTC.
        version: Of the release it is about; on "poll", what the server wants, or None.
        slot: Where that release lies.
        package: How it came.
        size_bytes: Bytes of that package.
        latency_ms: Median time of one sample in the health check, milliseconds.
        provider: After "confirmed", on ONNX Runtime: the provider that runs it, and why others do not.
        to: After "rolled_back": the version in use now, or None if there is none.
        reason: Why, in one sentence.
    """

    event: EventKind
    at: str
    version: str | None = None
    slot: SlotName | None = None
    package: Literal["full", "delta"] | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    provider: str | None = None
    to: str | None = None
    reason: str | None = None

    def to_json(self) -> str:
        """One JSON line, without the attributes that are None."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None})


class Agent:
    """The agent of one device.

    Args:
        directory: Its slots; made if missing.
        ddi: The server to ask and to report to.
        client: The trusted view of the repository.
        backend: The engine that runs the model.
        providers: ONNX Runtime's, as in `Runner`; what they compile is kept in `providers` beside the slots.
        attributes: What to tell the server about this device when it asks.
        interval_s: Seconds between two polls; None takes the server's word.
        latency_limit_ms: A release that takes longer for one sample is not confirmed; None sets no limit.
        now: The time.
        random: Numbers in [0, 1), for jitter.
        on_event: Told of each event as it happens.
        on_progress: Told of bytes done and bytes in all, of a download and then of its unpacking.
        on_release: Given the runner of the confirmed release, at start and after each change.

    Raises:
        SlotError: The slots are in use by another process, or damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        ddi: DdiClient,
        client: Client,
        backend: str = "native",
        providers: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        interval_s: float | None = None,
        latency_limit_ms: float | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        random: Callable[[], float] = _random.random,
        on_event: Callable[[Event], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_release: Callable[[Runner, SlotRelease], None] | None = None,
    ) -> None:
        self.slots = Slots(directory, now=now)
        self.delay_s = 0.0
        """Seconds to wait before the next step."""
        self._ddi = ddi
        self._client = client
        self._backend = backend
        self._providers = tuple(providers)
        self._cache = Path(directory).parent / "providers" if providers else None
        self._attributes = dict(attributes or {})
        self._interval_s = interval_s
        self._latency_limit_ms = latency_limit_ms
        self._now = now
        self._random = random
        self._on_event = on_event
        self._on_progress = on_progress
        self._on_release = on_release
        self._events: list[Event] = []
        self._misses = 0
        self._started = False
        self._runs = False
        self._stop = threading.Event()

    def close(self) -> None:
        """Lets another process have the slots."""
        self.slots.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, stop: threading.Event) -> None:
        """Steps until `stop` is set; a download under way is cut short, and resumed by the next run."""
        self._stop = stop
        while not stop.is_set():
            with suppress(_StoppedError):
                self.step()
                stop.wait(self.delay_s)

    def step(self) -> tuple[Event, ...]:
        """Does what there is to do now, and sets `delay_s`.

        What goes wrong is an "error" event, and after a step that could not reach the server the delay grows.

        Returns:
            What happened, in order.
        """
        self._events = []
        try:
            self._start()
            self._finish_trial()
            interval_s = self._ask()
        except (OtaError, DeviceError, OSError) as error:
            self._emit("error", reason=str(error))
            self._misses += 1
            longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._misses - 1, 16))
            self.delay_s = longest * (0.5 + 0.5 * self._random())
        else:
            self._misses = 0
            self.delay_s = interval_s * (1 + JITTER * (2 * self._random() - 1))
        return tuple(self._events)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._load()

    def _finish_trial(self) -> None:
        """A trial found here was interrupted: by the power, or by the release itself."""
        trial = self.slots.journal.trial
        if trial is None:
            return
        reason = self._try()
        if trial.deployment is not None:
            self._report(trial.deployment, reason)

    def _ask(self) -> float:
        poll = self._ddi.poll()
        wanted = poll.deployment
        self._emit("poll", version=None if wanted is None else wanted.version)
        if poll.wants_config:
            self._ddi.send_config(self._attributes)
        if wanted is not None and not self._settled(wanted):
            self._deploy(wanted)
        return poll.interval_s if self._interval_s is None else self._interval_s

    def _settled(self, wanted: Deployment) -> bool:
        """Reports again on a deployment that was settled before, when the server did not hear of it."""
        release, failure = self.slots.journal.release, self.slots.journal.failure
        same = release is not None and (release.name, release.version) == (wanted.name, wanted.version)
        if same and self._runs:
            self._report(wanted.id, None)
            return True
        if failure is None or (failure.deployment, failure.version) != (wanted.id, _short(wanted.version)):
            return False
        self._report(wanted.id, failure.reason)
        return True

    def _deploy(self, wanted: Deployment) -> None:
        try:
            release = self._client.release(wanted.name, wanted.version)
            self._install(release, wanted.id)
        except ServerError as error:
            # It is tried again; whoever waits for it shall see why it takes so long.
            with suppress(ServerError):
                self._ddi.feedback(wanted.id, execution="proceeding", result="none", details=[str(error)])
            raise
        except (OtaError, DeviceError) as error:
            self._emit("error", version=wanted.version, reason=str(error))
            with suppress(SlotError):  # a full disk must not keep the reason from the server
                self.slots.record_failure(_short(wanted.version), str(error), wanted.id)
            self._report(wanted.id, str(error))
        else:
            self._report(wanted.id, self._try())

    def _install(self, release: Release, deployment: str) -> None:
        lowest = self.slots.journal.rollback_index
        if release.rollback_index < lowest:
            raise SlotError(
                f"{release.name} {release.version}: its rollback index {release.rollback_index} is below "
                f"{lowest}, which this device has confirmed; publish it again with a higher one"
            )
        packages = self._usable(release)
        self._ddi.feedback(
            deployment,
            execution="proceeding",
            result="none",
            details=[f"{packages[0].filename}, {packages[0].size_bytes} bytes"],
        )
        for package in packages:
            try:
                self._install_package(release, package)
                break
            except (PackageError, TrustError) as error:
                if package is packages[-1]:
                    raise
                self._emit("error", version=release.version, package=_kind(package), reason=str(error))
        self.slots.begin_trial(deployment)

    def _install_package(self, release: Release, package: Package) -> None:
        # The package and the files that come out of it lie on the disk together.
        self.slots.require_space(release.size_bytes + package.size_bytes, f"{release.name} {release.version}")
        about = {"version": release.version, "package": _kind(package), "size_bytes": package.size_bytes}
        self._emit("downloading", **about)
        file = self._client.download(release, package, self._watch)
        base = None if package.base is None else self.slots.active

        def fill(folder: Path) -> None:
            unpack(file, release, folder, base=base, progress=self._watch)

        held = SlotRelease(
            name=release.name,
            version=release.version,
            digest=release.digest,
            rollback_index=release.rollback_index,
        )
        slot = self.slots.install(fill, held, size_bytes=release.size_bytes)
        self._emit("installed", slot=slot, **about)

    def _usable(self, release: Release) -> list[Package]:
        """Packages this device can use, the smallest first."""
        active = self.slots.journal.release
        base = active.version if active is not None and active.name == release.name else None
        usable = [p for p in release.packages if p.base is None or p.base == base]
        if not usable:
            raise PackageError(
                f"{release.name} {release.version}: no package fits a device that holds {base or 'nothing'}"
            )
        return sorted(usable, key=lambda p: p.size_bytes)

    def _try(self) -> str | None:
        """Tries the release on trial; returns why it was reverted, or None when it was confirmed."""
        trial = self.slots.journal.trial
        assert trial is not None
        release = self.slots.journal.held(trial.slot)
        assert release is not None
        if self.slots.count_attempt() > MAX_ATTEMPTS:
            reason = f"never confirmed: {MAX_ATTEMPTS} attempts ended with the agent killed or the power cut"
            latency_ms, provider = None, ""
        else:
            report = health.check(
                self.slots.path(trial.slot),
                backend=self._backend,
                providers=self._providers,
                cache=self._cache,
                latency_limit_ms=self._latency_limit_ms,
            )
            reason, latency_ms, provider = report.reason, report.latency_ms, report.provider
        if reason:
            self.slots.revert(reason)
            self._rolled_back(release, trial.slot, reason, latency_ms)
            return reason
        self.slots.confirm()

        def announce() -> None:
            self._emit(
                "confirmed",
                version=release.version,
                slot=trial.slot,
                latency_ms=latency_ms,
                provider=provider or None,
            )

        self._load(announce)
        return None

    def _load(self, announce: Callable[[], None] = lambda: None) -> None:
        """Hands on the confirmed release; one that is damaged on the disk gives way to the previous one.

        Args:
            announce: Called once the release serves, or before it is said why it cannot.
        """
        self._runs = False
        path, release = self.slots.active, self.slots.journal.release
        if path is None or release is None:
            return
        try:
            runner = Runner(Artifact.open(path), self._backend, providers=self._providers, cache=self._cache)
        except ArtifactError as error:
            announce()
            slot, reason = self.slots.journal.current, str(error)
            try:
                self.slots.roll_back(reason)
            except SlotError as no_way_back:
                self._emit("error", version=release.version, slot=slot, reason=f"{reason}; {no_way_back}")
                return
            self._rolled_back(release, slot, reason, None)
            self._load()
        except DeviceError as error:
            announce()
            self._emit("error", version=release.version, slot=self.slots.journal.current, reason=str(error))
        else:
            self._runs = True
            if self._on_release is not None:
                self._on_release(runner, release)
            announce()

    def _report(self, deployment: str, reason: str | None) -> None:
        """Ends a deployment on the server: with success, or with the reason of the failure."""
        state = self.slots.journal
        running = "nothing" if state.release is None else f"{state.release.name} {state.release.version}"
        self._ddi.feedback(
            deployment,
            execution="closed",
            result="success" if reason is None else "failure",
            details=[f"runs {running}"] if reason is None else [reason, f"runs {running}"],
        )

    def _rolled_back(
        self, release: SlotRelease, slot: SlotName | None, reason: str, latency_ms: float | None
    ) -> None:
        now_used = self.slots.journal.release
        self._emit(
            "rolled_back",
            version=release.version,
            slot=slot,
            latency_ms=latency_ms,
            to=None if now_used is None else now_used.version,
            reason=reason,
        )

    def _watch(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _emit(self, event: EventKind, **about: object) -> None:
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        made = Event(event=event, at=at, **about)  # type: ignore[arg-type]
        self._events.append(made)
        if self._on_event is not None:
            self._on_event(made)


class _StoppedError(Exception):
    """The agent was asked to stop in the middle of a step."""


def _kind(package: Package) -> Literal["full", "delta"]:
    return "full" if package.base is None else "delta"


def _short(version: str) -> str:
    """A version the server named, unverified, at a length that the journal takes."""
    return version[:MAX_VERSION_CHARS]
