from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewright_ota import (
    Client,
    Package,
    PackageError,
    Release,
    Repository,
    ServerError,
    TrustError,
    unpack,
)
from edgewright_ota.release import scan

from .conftest import Clock, FileServer, write_model

Published = tuple[Repository, Release, Release]
Connect = Callable[..., Client]


@pytest.fixture
def connect(published: Published, file_server: FileServer, tmp_path: Path, clock: Clock) -> Connect:
    def make(name: str = "device", *, root: bytes | None = published[0].root_bytes) -> Client:
        return Client(
            tmp_path / name,
            metadata_url=f"{file_server.url}/metadata/",
            targets_url=f"{file_server.url}/targets/",
            root=root,
            now=clock,
        )

    return make


def package(release: Release, base: str | None = None) -> Package:
    found = release.package(base)
    assert found is not None
    return found


def test_a_device_goes_from_the_full_package_to_the_delta(
    published: Published, connect: Connect, tmp_path: Path
) -> None:
    _, first, second = published
    client = connect()
    assert client.release("model", "1.0.0") == first
    unpack(client.download(first, package(first)), first, tmp_path / "a")
    release = client.release("model", "1.1.0")
    assert release == second
    assert release.packages == second.packages
    delta = package(release, "1.0.0")
    seen: list[tuple[int, int]] = []
    path = client.download(release, delta, lambda *x: seen.append(x))
    assert seen[-1] == (delta.size_bytes, delta.size_bytes)
    unpack(path, release, tmp_path / "b", base=tmp_path / "a")
    assert scan(tmp_path / "b") == second.files
    # One package at a time is kept.
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_root_is_needed_once_and_never_taken_from_the_network(connect: Connect) -> None:
    with pytest.raises(TrustError, match="no trusted root"):
        connect(root=None)
    connect().release("model", "1.0.0")
    connect(root=None).release("model", "1.0.0")
    with pytest.raises(TrustError):
        connect("other", root=b"{}")
    with pytest.raises(TrustError, match="no trusted root"):
        connect("other", root=None)


def test_what_a_power_cut_took_from_the_metadata_is_fetched_again(connect: Connect, tmp_path: Path) -> None:
    connect().release("model", "1.0.0")
    metadata = tmp_path / "device" / "metadata"
    for path in metadata.rglob("*.json"):
        path.unlink() if path.is_symlink() else path.write_bytes(b"")
    connect(root=None).release("model", "1.0.0")


def test_metadata_signed_by_other_keys_is_refused(
    connect: Connect, file_server: FileServer, tmp_path: Path, clock: Clock
) -> None:
    other = Repository.open(tmp_path / "attacker", create=True, now=clock)
    other.publish(tmp_path / "v1", name="model", version="1.0.0")
    client = connect()
    file_server.root = other.path
    with pytest.raises(TrustError, match="cannot be trusted"):
        client.release("model", "1.0.0")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_edited_metadata_is_refused(
    published: Published, connect: Connect, file_server: FileServer, role: str
) -> None:
    (*_, path) = sorted(published[0].metadata_path.glob(f"*{role}.json"))
    body = json.loads(path.read_bytes())
    body["signed"]["expires"] = "2099-01-01T00:00:00Z"
    file_server.replace[path.name] = json.dumps(body).encode()
    with pytest.raises(TrustError):
        connect().release("model", "1.0.0")


def test_older_metadata_than_was_seen_is_refused(
    published: Published, connect: Connect, file_server: FileServer, tmp_path: Path
) -> None:
    repository, _, second = published
    shutil.copytree(repository.path, tmp_path / "old")
    repository.publish(tmp_path / "v1", name="model", version="2.0.0")
    connect().release("model", "2.0.0")
    file_server.root = tmp_path / "old"
    with pytest.raises(TrustError, match="version"):
        connect().release("model", "1.1.0")
    # A device that never saw the newer view cannot know.
    assert connect("fresh").release("model", "1.1.0") == second


def test_a_newer_timestamp_cannot_bring_back_an_older_snapshot(
    published: Published, connect: Connect, file_server: FileServer, tmp_path: Path, clock: Clock
) -> None:
    repository, _, _ = published
    shutil.copytree(repository.path, tmp_path / "old")
    repository.publish(tmp_path / "v1", name="model", version="2.0.0")
    connect().release("model", "2.0.0")
    # Whoever has the timestamp key alone signs the old view anew, many times.
    old = Repository.open(tmp_path / "old", now=clock)
    for _ in range(5):
        clock.turn(hours=13)
        old.refresh()
    file_server.root = old.path
    with pytest.raises(TrustError):
        connect().release("model", "1.1.0")


def test_a_frozen_repository_is_refused_once_its_timestamp_expired(connect: Connect, clock: Clock) -> None:
    client = connect()
    client.release("model", "1.0.0")
    clock.turn(hours=23)
    client.release("model", "1.0.0")
    clock.turn(hours=2)
    with pytest.raises(TrustError, match="expired"):
        client.release("model", "1.0.0")


def test_a_release_that_was_never_signed_is_refused(connect: Connect) -> None:
    with pytest.raises(TrustError, match="not signed"):
        connect().release("model", "9.0.0")
    with pytest.raises(TrustError, match="impossible"):
        connect().release("../model", "1.0.0")


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1] + b"X", lambda d: d[:-1], lambda d: d + b"X", lambda _: b"", lambda d: d * 50]
)
def test_a_tampered_release_or_package_is_refused_and_removed(
    published: Published,
    connect: Connect,
    file_server: FileServer,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
) -> None:
    repository, first, _ = published
    client = connect()
    (listed,) = repository.targets_path.glob("model/1.0.0/*.release.json")
    file_server.replace[listed.name] = change(listed.read_bytes())
    with pytest.raises(TrustError):
        client.release("model", "1.0.0")
    path = repository.package_path(first, package(first))
    data = change(path.read_bytes())
    file_server.replace[path.name] = data
    # One that is too short looks like a cut, and never becomes a package.
    short = len(data) < first.packages[0].size_bytes
    with pytest.raises(ServerError if short else TrustError):
        client.download(first, package(first))
    left = [p.suffix for p in (tmp_path / "device" / "downloads").iterdir()]
    assert left == ([".part"] if short else [])
    file_server.replace.clear()
    assert client.download(client.release("model", "1.0.0"), package(first)).read_bytes() == path.read_bytes()


def test_a_cut_download_resumes_where_it_stopped(
    published: Published, connect: Connect, file_server: FileServer
) -> None:
    _, first, _ = published
    client, wanted = connect(), package(first)
    file_server.cut_after = wanted.size_bytes // 3 + 1
    for _ in range(2):
        with pytest.raises(ServerError, match="cut off"):
            client.download(first, wanted)
    path = client.download(first, wanted)
    assert path.stat().st_size == wanted.size_bytes
    step = file_server.cut_after
    assert [asked for _, asked in file_server.requests] == [
        None,
        f"bytes={step}-{wanted.size_bytes - 1}",
        f"bytes={2 * step}-{wanted.size_bytes - 1}",
    ]
    # What is complete is not asked for again.
    client.download(first, wanted)
    assert len(file_server.requests) == 3


def test_a_server_without_ranges_starts_over(
    published: Published, connect: Connect, file_server: FileServer
) -> None:
    _, first, _ = published
    client, wanted = connect(), package(first)
    file_server.cut_after = 1000
    with pytest.raises(ServerError):
        client.download(first, wanted)
    file_server.cut_after, file_server.ranges = None, False
    assert client.download(first, wanted).stat().st_size == wanted.size_bytes


def test_a_part_that_a_power_cut_damaged_is_fetched_again(
    published: Published, connect: Connect, file_server: FileServer, tmp_path: Path
) -> None:
    _, first, _ = published
    client, wanted = connect(), package(first)
    part = tmp_path / "device" / "downloads" / f"{wanted.sha256}.part"
    part.write_bytes(bytes(1000))
    assert client.download(first, wanted).stat().st_size == wanted.size_bytes
    assert [asked is None for _, asked in file_server.requests] == [False, True]


def test_a_finished_package_that_was_damaged_is_fetched_again(published: Published, connect: Connect) -> None:
    _, first, _ = published
    client, wanted = connect(), package(first)
    path = client.download(first, wanted)
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    assert client.download(first, wanted).read_bytes() == data


def test_a_server_that_is_away_is_a_server_error(connect: Connect, file_server: FileServer) -> None:
    client = connect()
    file_server.root = file_server.root / "nowhere"
    with pytest.raises(ServerError, match="404"):
        client.release("model", "1.0.0")


def test_a_full_disk_is_told_before_the_download(
    published: Published, connect: Connect, file_server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = published
    client = connect()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(PackageError, match="10 are free"):
        client.download(first, package(first))
    assert file_server.requests == []


def test_a_rotated_root_is_followed(
    published: Published, connect: Connect, clock: Clock, tmp_path: Path
) -> None:
    repository, _, _ = published
    old_root = repository.root_bytes
    connect().release("model", "1.0.0")
    clock.turn(days=200)
    repository.publish(write_model(tmp_path / "v3", seed=3), name="model", version="3.0.0")
    assert repository.root_bytes != old_root
    connect().release("model", "3.0.0")
    connect("fresh", root=old_root).release("model", "3.0.0")
