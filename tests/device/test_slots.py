"""What slots promise wherever power fails: the confirmed release untouched, the new one whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewright_device import journal
from edgewright_device.errors import SlotError
from edgewright_device.journal import SlotRelease
from edgewright_device.slots import MARGIN_BYTES, Disk, Slots

V0 = SlotRelease(name="tiny", version="0.9.0", digest="0" * 64)
V1 = SlotRelease(name="tiny", version="1.0.0", digest="1" * 64, rollback_index=1)
V2 = SlotRelease(name="tiny", version="2.0.0", digest="2" * 64, rollback_index=1)
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def files_of(release: SlotRelease) -> dict[str, bytes]:
    return {"manifest.json": release.digest.encode(), "deep/weights.bin": release.version.encode() * 500}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def filler(release: SlotRelease, disk: Disk) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir(parents=True)
        for name, data in files_of(release).items():
            disk.write(folder / name, data)

    return fill


def put(slots: Slots, release: SlotRelease, disk: Disk | None = None) -> None:
    slots.install(filler(release, disk or Disk()), release, size_bytes=2000)


def bring_up(directory: Path, *releases: SlotRelease) -> None:
    """Installs and confirms each release in turn."""
    with Slots(directory) as slots:
        for release in releases:
            put(slots, release)
            slots.begin_trial()
            slots.count_attempt()
            slots.confirm()


class PowerCut(BaseException):
    """The power fails: no handler of an ordinary exception may run as if it had not."""


class CutDisk(Disk):
    """Cuts the power at one operation, and knows what had not reached the disk by then.

    Args:
        cut: The number of the operation, from 1, that does not happen, or happens by half.
        half: A write leaves half of its bytes, a removal half of its files.
    """

    def __init__(self, cut: int, *, half: bool) -> None:
        self.cut, self.half = cut, half
        self.operations = 0
        self.dirty: set[Path] = set()
        self.entries: set[Path] = set()
        self.renames: list[tuple[Path, Path, bytes | None]] = []
        self.removed: list[tuple[Path, dict[str, bytes]]] = []

    def _cut(self) -> bool:
        self.operations += 1
        if self.operations > self.cut or (self.operations == self.cut and not self.half):
            raise PowerCut
        return self.operations == self.cut

    def write(self, file: Path, data: bytes) -> None:
        cut = self._cut()
        self.dirty.add(file)
        if not file.exists():
            self.entries.add(file)
        super().write(file, data[: len(data) // 2] if cut else data)
        if cut:
            raise PowerCut

    def sync(self, path: Path) -> None:
        cut = self._cut()
        super().sync(path)
        if path.is_dir():
            self.entries = {e for e in self.entries if e.parent != path}
            self.renames = [r for r in self.renames if r[1].parent != path]
            self.removed = [r for r in self.removed if r[0].parent != path]
        else:
            self.dirty.discard(path)
        if cut:
            raise PowerCut

    def rename(self, source: Path, target: Path) -> None:
        cut = self._cut()
        old = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self.renames.append((source, target, old))
        self.dirty = {_moved(p, source, target) for p in self.dirty}
        self.entries = {_moved(p, source, target) for p in self.entries if p != source}
        if cut:
            raise PowerCut

    def remove_tree(self, folder: Path) -> None:
        cut = self._cut()
        if folder.exists():
            self.removed.append((folder, tree(folder)))
        if cut:
            for file in list(folder.rglob("*.json")):
                file.unlink()
            raise PowerCut
        super().remove_tree(folder)

    def lose(self, how: str) -> None:
        """Takes away what no sync has put on the disk.

        `how` is "kept" (nothing is lost), "lost" (all of it) or "reordered" (only the oldest rename: a disk
        may write a later one first).
        """
        if how == "reordered" and self.renames:
            source, target, old = self.renames[0]
            if old is None:
                target.replace(source)
        if how != "lost":
            return
        for file in self.dirty:
            if file.exists():
                file.write_bytes(b"")
        for file in self.entries:
            file.unlink(missing_ok=True)
        for source, target, old in reversed(self.renames):
            source.parent.mkdir(exist_ok=True)
            target.replace(source)
            if old is not None:
                target.write_bytes(old)
        for folder, files in self.removed:
            for name, data in files.items():
                if not (folder / name).exists():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)


def _moved(path: Path, source: Path, target: Path) -> Path:
    return target / path.relative_to(source) if path.is_relative_to(source) else path


def install(slots: Slots, disk: Disk) -> None:
    put(slots, V2, disk)


def install_and_try(slots: Slots, disk: Disk) -> None:
    install(slots, disk)
    slots.begin_trial("7")
    slots.count_attempt()


def confirm(slots: Slots, disk: Disk) -> None:
    slots.confirm()


def revert(slots: Slots, disk: Disk) -> None:
    slots.revert("golden vectors differ")


def roll_back(slots: Slots, disk: Disk) -> None:
    slots.roll_back("by hand")


def prepare(directory: Path, step: Callable[[Slots, Disk], None]) -> None:
    bring_up(directory, *((V0, V1) if step is not roll_back else (V2, V1)))
    if step in {confirm, revert}:
        with Slots(directory) as slots:
            install_and_try(slots, Disk())


def interrupted(directory: Path, step: Callable[[Slots, Disk], None], disk: CutDisk) -> bool:
    """Whether the power was cut before the step was done."""
    try:
        with Slots(directory, disk=disk, now=lambda: NOON) as slots:
            step(slots, disk)
    except PowerCut:
        return True
    return False


def assert_promise(slots: Slots, directory: Path, running: SlotRelease) -> None:
    """Every release the journal names is whole, and one that was confirmed is in use."""
    state = slots.journal
    assert slots.active is not None
    assert state.release is not None
    for slot in journal.SLOT_NAMES:
        held = state.held(slot)
        if held is None:
            assert not slots.path(slot).exists()
        else:
            assert tree(slots.path(slot)) == files_of(held)
    assert running in {state.a, state.b}
    assert {p.name for p in directory.iterdir()} <= {"a", "b", "lock", "journal.json", "journal.tmp"}


@pytest.mark.parametrize("loss", ["kept", "lost", "reordered"])
@pytest.mark.parametrize("half", [False, True], ids=["before", "half"])
@pytest.mark.parametrize(
    ("step", "least", "running"),
    [(install_and_try, 20, V1), (confirm, 4, V1), (revert, 5, V1), (roll_back, 5, V2)],
)
def test_power_cut_at_every_operation_leaves_old_untouched_and_new_complete_or_absent(
    tmp_path: Path,
    step: Callable[[Slots, Disk], None],
    least: int,
    running: SlotRelease,
    half: bool,
    loss: str,
) -> None:
    prepare(tmp_path / "start", step)
    with Slots(tmp_path / "start") as slots:
        before = slots.journal
    finished = tmp_path / "finished"
    shutil.copytree(tmp_path / "start", finished)
    with Slots(finished, now=lambda: NOON) as slots:
        step(slots, Disk())
        after = slots.journal

    cut = 0
    while True:
        cut += 1
        directory = tmp_path / str(cut)
        shutil.copytree(tmp_path / "start", directory)
        disk = CutDisk(cut, half=half)
        if not interrupted(directory, step, disk):
            disk.lose("lost")
            with Slots(directory) as slots:
                assert slots.journal == after
            break
        disk.lose(loss)
        with Slots(directory, now=lambda: NOON) as slots:
            assert_promise(slots, directory, running)
            if step is not install_and_try:
                assert slots.journal in {before, after}
            if slots.journal != after:
                if slots.journal.trial is not None and step is install_and_try:
                    slots.count_attempt()
                else:
                    step(slots, Disk())
                assert slots.journal.release == after.release
                assert_promise(slots, directory, running)
        shutil.rmtree(directory)
    assert cut > least


KILLED = """
import os, signal, sys
from pathlib import Path
from edgewright_device.journal import SlotRelease
from edgewright_device.slots import Disk, Slots

class Fatal(Disk):
    left = int(sys.argv[2])
    def _tick(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def write(self, file, data):
        self._tick()
        super().write(file, data)
    def sync(self, path):
        self._tick()
        super().sync(path)
    def rename(self, source, target):
        self._tick()
        super().rename(source, target)
    def remove_tree(self, folder):
        self._tick()
        super().remove_tree(folder)

disk = Fatal()
release = SlotRelease(name="tiny", version="2.0.0", digest="2" * 64, rollback_index=1)
def fill(folder):
    (folder / "deep").mkdir(parents=True)
    disk.write(folder / "manifest.json", release.digest.encode())
    disk.write(folder / "deep/weights.bin", release.version.encode() * 500)
slots = Slots(sys.argv[1], disk=disk)
disk.left = int(sys.argv[2])
slots.install(fill, release, size_bytes=2000)
slots.begin_trial("7")
print("done")
"""


# Counted from the install on: 2 is in the first write of the journal, 8 in the filling, 13 before the rename.
@pytest.mark.parametrize("operation", [2, 7, 8, 13, 15, 17])
def test_sigkill_during_install_frees_the_lock_and_keeps_the_promise(tmp_path: Path, operation: int) -> None:
    bring_up(tmp_path, V0, V1)
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(operation)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with Slots(tmp_path) as slots:
        assert_promise(slots, tmp_path, V1)
        assert slots.journal.release == V1
        put(slots, V2)
        assert slots.journal.held("a") == V2


def disk_suffices(slots: Slots, disk: Disk) -> bool:
    try:
        put(slots, V2, disk)
    except SlotError as error:
        told = re.search(r"needs (\d+) bytes, \d+ are free", str(error))
        assert told is not None, error  # noqa: PT017  whether it is raised depends on the disk
        assert int(told[1]) == 2000 + MARGIN_BYTES
        return False
    return True


class FullDisk(Disk):
    """Has no room for any write from one operation on."""

    def __init__(self, first: int) -> None:
        self.left = first

    def _room(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, file: Path, data: bytes) -> None:
        self._room()
        super().write(file, data)

    def sync(self, path: Path) -> None:
        self._room()
        super().sync(path)


def test_disk_full_at_any_write_names_the_bytes_and_leaves_the_old_slot(tmp_path: Path) -> None:
    bring_up(tmp_path / "start", V0, V1)
    for first in range(1, 40):
        directory = tmp_path / str(first)
        shutil.copytree(tmp_path / "start", directory)
        disk = FullDisk(first)
        with Slots(directory, disk=disk) as slots:
            if disk_suffices(slots, disk):
                break
            assert_promise(slots, directory, V1)
            assert slots.journal.release == V1
        with Slots(directory) as slots:
            assert_promise(slots, directory, V1)
            put(slots, V2)
    assert first > 10


def test_a_device_that_is_really_full_is_reported_as_full(tmp_path: Path) -> None:
    bring_up(tmp_path, V1)

    def fill(folder: Path) -> None:
        folder.mkdir()
        with Path("/dev/full").open("wb") as stream:
            stream.write(b"x" * 100_000)

    with Slots(tmp_path) as slots:
        with pytest.raises(SlotError, match=r"the disk is full: installing tiny 2\.0\.0 needs \d+ bytes"):
            slots.install(fill, V2, size_bytes=100_000)
        assert_promise(slots, tmp_path, V1)


class SmallDisk(Disk):
    """Says that it has little room left."""

    def free_bytes(self, folder: Path) -> int:  # noqa: ARG002
        return 1000


def test_space_is_asked_for_before_anything_is_given_up(tmp_path: Path) -> None:
    bring_up(tmp_path, V0, V1)
    with Slots(tmp_path, disk=SmallDisk()) as slots:
        before = slots.journal
        room = 1000 + sum(map(len, files_of(V0).values()))
        with pytest.raises(SlotError, match=f"needs {500_000 + MARGIN_BYTES} bytes, {room} are free"):
            slots.install(filler(V2, Disk()), V2, size_bytes=500_000)
        assert slots.journal == before
        assert tree(slots.path("a")) == files_of(V0)


def test_a_fill_that_fails_leaves_an_empty_slot_and_its_own_error(tmp_path: Path) -> None:
    bring_up(tmp_path, V1)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("the package is damaged")

    with Slots(tmp_path) as slots:
        with pytest.raises(RuntimeError, match="the package is damaged"):
            slots.install(fill, V2, size_bytes=10)
        assert_promise(slots, tmp_path, V1)
        put(slots, V2)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Slots(tmp_path), pytest.raises(SlotError, match=f"in use by another process .pid {os.getpid()}."):
        Slots(tmp_path)
    Slots(tmp_path).close()


def test_closed_slots_change_nothing(tmp_path: Path) -> None:
    bring_up(tmp_path, V0, V1)
    slots = Slots(tmp_path)
    slots.close()
    with pytest.raises(SlotError, match="closed"):
        slots.roll_back("by hand")


def test_first_release_goes_from_empty_to_confirmed(tmp_path: Path) -> None:
    with Slots(tmp_path) as slots:
        active = [slots.active]
        put(slots, V1)
        active.append(slots.active)
        slots.begin_trial()
        assert [slots.count_attempt(), slots.count_attempt()] == [1, 2]
        active.append(slots.active)
        slots.confirm()
        active.append(slots.active)
        assert active == [None, None, None, tmp_path / "a"]
        assert slots.journal.release == V1
        assert slots.journal.rollback_index == 1


def test_roll_back_returns_to_the_previous_release_once(tmp_path: Path) -> None:
    bring_up(tmp_path, V1, V2)
    with Slots(tmp_path, now=lambda: NOON) as slots:
        assert slots.roll_back("too many false alarms") == V1
        assert slots.journal.release == V1
        assert slots.journal.failure == journal.Failure(
            version="2.0.0", reason="too many false alarms", at="2026-11-01T12:00:00+00:00"
        )
        assert not slots.path("b").exists()
        with pytest.raises(SlotError, match="there is no previous release"):
            slots.roll_back("again")


def test_roll_back_below_the_confirmed_rollback_index_is_refused(tmp_path: Path) -> None:
    bring_up(tmp_path, V0, V1)
    with Slots(tmp_path) as slots:
        with pytest.raises(SlotError, match=r"0\.9\.0 has rollback index 0, and 1 is the lowest allowed"):
            slots.roll_back("by hand")
        assert slots.journal.release == V1


def test_rollback_index_rises_on_confirm_alone(tmp_path: Path) -> None:
    bring_up(tmp_path, V0)
    with Slots(tmp_path) as slots:
        put(slots, V1)
        slots.begin_trial()
        slots.count_attempt()
        assert slots.journal.rollback_index == 0
        slots.revert("NaN")
        assert slots.journal.rollback_index == 0


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    bring_up(tmp_path, V0, V1)
    with Slots(tmp_path) as slots:
        with pytest.raises(SlotError, match="nothing new to try"):
            slots.begin_trial()  # the previous release is no candidate
        for act in (slots.confirm, slots.count_attempt, lambda: slots.revert("x")):
            with pytest.raises(SlotError, match="no release is on trial"):
                act()
        install_and_try(slots, Disk())
        with pytest.raises(SlotError, match="a release is on trial"):
            put(slots, V2)
        with pytest.raises(SlotError, match="a release is on trial"):
            slots.roll_back("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"current": "c"}, "'c' is not a slot"),
        ({"current": "a", "a": None}, "slot a is in use but empty"),
        ({"previous": "b"}, "slot b is in use twice"),
        ({"rollback_index": -1}, "-1 is not a whole number"),
        ({"more": 1}, "unknown key 'more'"),
        ({"a": {"name": "tiny"}}, "version"),
        ({"trial": {"slot": None, "attempts": 0, "deployment": None}}, "a trial needs a slot"),
    ],
)
def test_damaged_journal_is_a_clear_error_and_removes_nothing(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    bring_up(tmp_path, V0, V1)
    file = tmp_path / "journal.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(SlotError, match=rf"journal\.json: damaged \(.*{message}"):
        Slots(tmp_path)
    assert tree(tmp_path / "b") == files_of(V1)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 60_000, b" " * (65 << 10)])
def test_garbage_for_a_journal_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "journal.json").write_bytes(data)
    with pytest.raises(SlotError, match="damaged"):
        Slots(tmp_path)
    Slots(tmp_path / "other").close()
