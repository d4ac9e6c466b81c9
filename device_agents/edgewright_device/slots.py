"""Slots A/B: two places on a disk that hold one release each, and the journal that says which counts.

    DIRECTORY/
      journal.json   the only truth (journal.py); replaced atomically
      a/  b/         the two slots; what the journal does not name is rubbish, removed at the next start
      filling/       work in progress, a release on its way into a slot
      lock           held by the one process that may write

The power may fail on any line. What is promised then: the confirmed release is untouched, and the new one is
complete or absent. It holds because nothing is named in the journal before every byte of it is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from edgewright_device import journal
from edgewright_device.errors import SlotError
from edgewright_device.journal import Failure, Journal, SlotName, SlotRelease, Trial

FILLING = "filling"
LOCK = "lock"
MARGIN_BYTES = 64 << 10  # for folders, the journal, and the last block of each file


class Disk:
    """Every effect that slots have on a disk; tests cut the power at any of them."""

    def write(self, file: Path, data: bytes) -> None:
        """Creates or overwrites a file; not on the disk before `sync`."""
        file.write_bytes(data)

    def sync(self, path: Path) -> None:
        """Returns when a file's bytes, or a folder's entries, are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file or folder in one step, over a file that is there; on the disk when its folder is."""
        source.replace(target)

    def remove_tree(self, folder: Path) -> None:
        """Removes a folder and all in it; none there is fine."""
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def free_bytes(self, folder: Path) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(folder).free


class Slots:
    """Both slots of a directory, for the one process that may change them.

    Args:
        directory: Made if missing.
        disk: Where effects go.
        now: The time, for the record of a failure.

    Raises:
        SlotError: Another process has them open, the journal is damaged, or the directory cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        disk: Disk | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.directory = Path(directory).absolute()
        self._disk = disk or Disk()
        self._now = now
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _lock(self.directory / LOCK)
        except OSError as error:
            raise SlotError(f"{self.directory}: cannot hold slots ({error.strerror})") from None
        try:
            self._journal = journal.read(self.directory)
            self._sweep()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process open the slots."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Slots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def journal(self) -> Journal:
        """The state as it is on the disk."""
        return self._journal

    @property
    def active(self) -> Path | None:
        """The folder of the confirmed release in use, or None before the first."""
        return None if self._journal.current is None else self.path(self._journal.current)

    def path(self, slot: SlotName) -> Path:
        """The folder of a slot, there or not."""
        return self.directory / slot

    def require_space(self, size_bytes: int, what: str) -> None:
        """Asks for room in the inactive slot; what lies there now counts as free.

        Args:
            size_bytes: Bytes that will be written.
            what: Who needs them, for the message.

        Raises:
            SlotError: There is not so much room.
        """
        free = self._disk.free_bytes(self.directory) + _tree_bytes(self.path(self._journal.inactive))
        if free < size_bytes + MARGIN_BYTES:
            raise self._full(what, size_bytes, free)

    def install(self, fill: Callable[[Path], None], release: SlotRelease, *, size_bytes: int) -> SlotName:
        """Puts a release into the inactive slot, complete or not at all; what was there is given up.

        Args:
            fill: Makes the folder it is given, which does not exist, and writes the release into it. What it
                puts beside that folder is removed.
            release: What it writes.
            size_bytes: How much it writes.

        Returns:
            The slot; `begin_trial` is next.

        Raises:
            SlotError: A trial is on, or the disk is full. The slot is empty then, the active one untouched.
        """
        if self._journal.trial is not None:
            raise SlotError(f"{self.directory}: a release is on trial; confirm or revert it first")
        what = f"installing {release.name} {release.version}"
        self.require_space(size_bytes, what)
        slot = self._journal.inactive
        filling = self.directory / FILLING
        try:
            self._give_up(slot)
            self._disk.remove_tree(filling)
            filling.mkdir()
            made = filling / "release"
            fill(made)
            self._sync_tree(made)
            self._disk.rename(made, self.path(slot))
            self._disk.sync(self.directory)
            self._save(self._journal.holding(slot, release))
        except Exception as error:
            with suppress(OSError, SlotError):
                self._give_up(slot)
            if _is_disk_full(error):
                raise self._full(what, size_bytes, self._disk.free_bytes(self.directory)) from error
            raise
        finally:
            self._remove_quietly(filling)
        return slot

    def begin_trial(self, deployment: str | None = None) -> None:
        """Puts the release in the inactive slot on trial.

        Raises:
            SlotError: That slot is empty, or a trial is on.
        """
        state, slot = self._journal, self._journal.inactive
        if state.trial is not None or state.previous == slot or state.held(slot) is None:
            raise SlotError(
                f"{self.directory}: slot {slot} holds nothing new to try; install a release first"
            )
        self._save(replace(state, trial=Trial(slot=slot, deployment=deployment)))

    def count_attempt(self) -> int:
        """Counts one more attempt at the release on trial, before it is tried; returns how many that makes.

        Raises:
            SlotError: No trial is on, or the journal cannot be written: do not try the release then.
        """
        trial = self._on_trial()
        self._save(replace(self._journal, trial=replace(trial, attempts=trial.attempts + 1)))
        return trial.attempts + 1

    def confirm(self) -> None:
        """Makes the release on trial the current one, and the current one the previous one.

        Raises:
            SlotError: No trial is on.
        """
        slot = self._on_trial().slot
        release = self._journal.held(slot)
        assert release is not None
        self._save(
            replace(
                self._journal,
                current=slot,
                previous=self._journal.current,
                trial=None,
                rollback_index=max(self._journal.rollback_index, release.rollback_index),
            )
        )

    def revert(self, reason: str) -> None:
        """Ends the trial, empties its slot and records why. The current release was never touched.

        Raises:
            SlotError: No trial is on.
        """
        trial = self._on_trial()
        failed = self._journal.held(trial.slot)
        assert failed is not None
        failure = self._failure(failed.version, reason, trial.deployment)
        self._save(replace(self._journal.holding(trial.slot, None), trial=None, failure=failure))
        self._remove_quietly(self.path(trial.slot))

    def roll_back(self, reason: str) -> SlotRelease:
        """Goes back to the previous confirmed release, empties the current slot and records why.

        Raises:
            SlotError: There is none, a trial is on, or its rollback index is no longer allowed.
        """
        state = self._journal
        if state.trial is not None:
            raise SlotError(f"{self.directory}: a release is on trial; it is confirmed or reverted first")
        if state.current is None or state.previous is None:
            raise SlotError(f"{self.directory}: there is no previous release to go back to")
        bad, good = state.held(state.current), state.held(state.previous)
        assert bad is not None
        assert good is not None
        if good.rollback_index < state.rollback_index:
            raise SlotError(
                f"{self.directory}: {good.name} {good.version} has rollback index {good.rollback_index}, and "
                f"{state.rollback_index} is the lowest allowed since {bad.version}; publish a newer release"
            )
        failure = self._failure(bad.version, reason, None)
        self._save(
            replace(
                state.holding(state.current, None), current=state.previous, previous=None, failure=failure
            )
        )
        self._remove_quietly(self.path(state.current))
        return good

    def record_failure(self, version: str, reason: str, deployment: str | None = None) -> None:
        """Records a release that did not even get into a slot."""
        self._save(replace(self._journal, failure=self._failure(version, reason, deployment)))

    def _failure(self, version: str, reason: str, deployment: str | None) -> Failure:
        at = self._now().astimezone(UTC).isoformat(timespec="seconds")
        return Failure(version=version, reason=reason[: journal.MAX_TEXT], at=at, deployment=deployment)

    def _on_trial(self) -> Trial:
        if self._journal.trial is None:
            raise SlotError(f"{self.directory}: no release is on trial")
        return self._journal.trial

    def _give_up(self, slot: SlotName) -> None:
        state = self._journal
        if state.held(slot) is not None:
            previous = None if state.previous == slot else state.previous
            self._save(replace(state.holding(slot, None), previous=previous))
        self._disk.remove_tree(self.path(slot))

    def _sweep(self) -> None:
        """Removes what an interrupted process left; the journal does not name it."""
        self._remove_quietly(self.directory / FILLING)
        for slot in journal.SLOT_NAMES:
            if self._journal.held(slot) is None:
                self._remove_quietly(self.path(slot))

    def _save(self, state: Journal) -> None:
        if self._lock_fd < 0:
            raise SlotError(f"{self.directory}: these slots were closed")
        file = self.directory / journal.FILE
        temporary = file.with_suffix(".tmp")
        try:
            self._disk.write(temporary, journal.encode(state))
            self._disk.sync(temporary)
            self._disk.rename(temporary, file)
            self._journal = state
            self._disk.sync(self.directory)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise SlotError(f"{file}: cannot be written ({error.strerror})") from error

    def _sync_tree(self, folder: Path) -> None:
        for path, _, files in os.walk(folder, topdown=False):
            for name in files:
                self._disk.sync(Path(path, name))
            self._disk.sync(Path(path))

    def _remove_quietly(self, folder: Path) -> None:
        # It is rubbish already: the next start tries again.
        with suppress(OSError):
            self._disk.remove_tree(folder)

    def _full(self, what: str, size_bytes: int, free: int) -> SlotError:
        return SlotError(
            f"{self.directory}: the disk is full: {what} needs {size_bytes + MARGIN_BYTES} bytes, "
            f"{free} are free"
        )


def _lock(file: Path) -> int:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # the pid is for messages: a full disk must not stop the agent
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        owner = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise SlotError(f"{file.parent}: in use by another process (pid {owner}); stop it first") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _tree_bytes(folder: Path) -> int:
    return sum(Path(path, f).lstat().st_size for path, _, files in os.walk(folder) for f in files)


def _is_disk_full(error: BaseException) -> bool:
    return any(isinstance(e, OSError) and e.errno in {errno.ENOSPC, errno.EDQUOT} for e in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
