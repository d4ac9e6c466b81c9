from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright_ota import Client, Release, ReleaseError, Repository, RepositoryError, unpack
from edgewright_ota.release import scan

from .conftest import Clock, FileServer, write_model

Published = tuple[Repository, Release, Release]


def client_of(repository: Repository, server: FileServer, folder: Path, clock: Clock) -> Client:
    return Client(
        folder,
        metadata_url=f"{server.url}/metadata",
        targets_url=f"{server.url}/targets",
        root=repository.root_bytes,
        now=clock,
    )


def test_published_releases_are_listed_with_full_and_delta(published: Published) -> None:
    repository, first, second = published
    assert repository.releases() == (first, second)
    assert repository.releases("other") == ()
    listed = repository.release("model", "1.1.0")
    assert [(p.filename, p.base) for p in listed.packages] == [
        ("full.ewpk", None),
        ("from-1.0.0.ewpk", "1.0.0"),
    ]
    assert listed.packages == second.packages
    full, delta = listed.packages
    assert delta.size_bytes < full.size_bytes / 3


def test_a_delta_may_be_added_later_and_does_not_change_the_release(
    published: Published, tmp_path: Path
) -> None:
    repository, first, _ = published
    third = repository.publish(
        write_model(tmp_path / "v3", seed=1, step=2), name="model", version="1.2.0", delta_from=None
    )
    assert [p.base for p in third.packages] == [None]
    package = repository.add_delta("model", "1.2.0", "1.0.0")
    again = repository.add_delta("model", "1.2.0", "1.0.0")
    listed = repository.release("model", "1.2.0")
    assert package == again
    assert listed.packages == (*third.packages, package)
    assert listed.digest == third.digest
    assert first == repository.release("model", "1.0.0")
    with pytest.raises(RepositoryError, match="two versions"):
        repository.add_delta("model", "1.2.0", "1.2.0")


def test_latest_base_is_the_highest_version_below(published: Published, tmp_path: Path) -> None:
    repository, _, _ = published
    fix = repository.publish(write_model(tmp_path / "fix", seed=1), name="model", version="1.0.1")
    assert [p.base for p in fix.packages] == [None, "1.0.0"]


def test_a_version_is_published_once(published: Published, tmp_path: Path) -> None:
    repository, _, _ = published
    with pytest.raises(RepositoryError, match="published before"):
        repository.publish(tmp_path / "v1", name="model", version="1.0.0")
    with pytest.raises(RepositoryError, match="never published"):
        repository.publish(tmp_path / "v1", name="model", version="3.0.0", delta_from="2.9.9")
    for name, version in [("../x", "3.0.0"), ("model", "3")]:
        with pytest.raises(ReleaseError):
            repository.publish(tmp_path / "v1", name=name, version=version)
    assert len(repository.releases()) == 2


def test_private_keys_are_for_their_owner_alone(repository: Repository, tmp_path: Path) -> None:
    assert repository.keys_path.stat().st_mode & 0o777 == 0o700
    modes = {p.name: p.stat().st_mode & 0o777 for p in repository.keys_path.iterdir()}
    assert modes == dict.fromkeys(("root.pem", "targets.pem", "snapshot.pem", "timestamp.pem"), 0o600)
    folder = write_model(tmp_path / "v1", seed=1)
    for path, mode, back in [
        (repository.keys_path / "targets.pem", 0o640, 0o600),
        (repository.keys_path, 0o750, 0o700),
    ]:
        path.chmod(mode)
        with pytest.raises(RepositoryError, match="open to others"):
            repository.publish(folder, name="model", version="1.0.0")
        path.chmod(back)
    assert repository.releases() == ()
    repository.publish(folder, name="model", version="1.0.0")


def test_a_missing_damaged_or_foreign_key_is_named(
    repository: Repository, tmp_path: Path, clock: Clock
) -> None:
    other = Repository.open(tmp_path / "other", create=True, now=clock)
    folder = write_model(tmp_path / "v1", seed=1)
    key = repository.keys_path / "targets.pem"
    for data, match in [
        (b"no key", "not the targets key"),
        ((other.keys_path / "targets.pem").read_bytes(), "not the targets key"),
        (None, "targets key is not here"),
    ]:
        key.unlink()
        if data is not None:
            key.touch(mode=0o600)
            key.write_bytes(data)
        with pytest.raises(RepositoryError, match=match):
            repository.publish(folder, name="model", version="1.0.0")
        key.touch(mode=0o600)
    assert repository.releases() == ()


def test_opening_what_is_no_repository_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="edgewright-ota init"):
        Repository.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError, match="cannot be made"):
        Repository.open(tmp_path / "file", create=True)


def test_damaged_metadata_or_release_is_named(published: Published) -> None:
    repository, _, _ = published
    (file,) = repository.targets_path.glob("model/1.0.0/*.release.json")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"1.0.0", b"1.0.9"))
    with pytest.raises(RepositoryError, match=r"release.json: is damaged"):
        Repository.open(repository.path).releases()
    file.write_bytes(data)
    (repository.metadata_path / "timestamp.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"timestamp.json: cannot be read"):
        Repository.open(repository.path)


def test_refresh_signs_only_what_nears_its_end(published: Published, clock: Clock) -> None:
    repository, _, _ = published
    files = {p.name for p in repository.metadata_path.iterdir()}
    assert not repository.refresh()
    clock.turn(hours=13)
    stamp = (repository.metadata_path / "timestamp.json").read_bytes()
    assert repository.refresh()
    assert (repository.metadata_path / "timestamp.json").read_bytes() != stamp
    assert {p.name for p in repository.metadata_path.iterdir()} == files
    clock.turn(days=4)
    assert repository.refresh()
    assert {p.name for p in repository.metadata_path.iterdir()} - files == {"4.snapshot.json"}


def test_a_server_with_online_keys_alone_keeps_clients_going(
    published: Published, file_server: FileServer, tmp_path: Path, clock: Clock
) -> None:
    repository, _, second = published
    client = client_of(repository, file_server, tmp_path / "device", clock)
    away = {
        role: (repository.keys_path / f"{role}.pem").rename(tmp_path / role) for role in ("root", "targets")
    }
    for _ in range(20):
        clock.turn(days=3)
        repository.refresh()
        assert client.release("model", "1.1.0") == second
    for role, path in away.items():
        path.rename(repository.keys_path / f"{role}.pem")
    for _ in range(5):
        clock.turn(days=85)
        assert repository.refresh()
        assert client.release("model", "1.1.0") == second
    assert (repository.metadata_path / "3.root.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from edgewright_ota import Repository, durable
stop, calls, real = int(sys.argv[3]), 0, durable.write_file
def write(*arguments, **options):
    global calls
    calls += 1
    if calls == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments, **options)
durable.write_file = write
Repository.open(sys.argv[1], create=True).publish(sys.argv[2], name="model", version="1.1.0")
"""


def kill_publish(path: Path, folder: Path, stop: int) -> int:
    command = [sys.executable, "-c", KILLED, str(path), str(folder), str(stop)]
    return subprocess.run(command, timeout=60).returncode


def test_a_publish_killed_at_any_write_leaves_the_view_before_it(
    repository: Repository, file_server: FileServer, tmp_path: Path, clock: Clock
) -> None:
    first = repository.publish(write_model(tmp_path / "v1", seed=1), name="model", version="1.0.0")
    second = write_model(tmp_path / "v2", seed=1, step=1)
    for stop in range(1, 5):  # release.json, targets, snapshot, timestamp
        assert kill_publish(repository.path, second, stop) == -signal.SIGKILL
        assert Repository.open(repository.path).releases() == (first,)
        client = client_of(repository, file_server, tmp_path / f"device{stop}", clock)
        assert client.release("model", "1.0.0") == first
    done = repository.publish(second, name="model", version="1.1.0")
    client = client_of(repository, file_server, tmp_path / "device", clock)
    release = client.release("model", "1.1.0")
    assert release == done
    unpack(client.download(release, release.packages[0]), release, tmp_path / "out")
    assert scan(tmp_path / "out") == done.files


def test_a_creation_killed_at_any_write_can_be_finished(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "v1", seed=1)
    for stop in (3, 5, 6, 8):  # of four keys, root, targets, snapshot, timestamp
        path = tmp_path / f"repository{stop}"
        assert kill_publish(path, folder, stop) == -signal.SIGKILL
        with pytest.raises(RepositoryError, match="is not a repository"):
            Repository.open(path)
        Repository.open(path, create=True).publish(folder, name="model", version="1.0.0")


def test_leavings_of_a_killed_publish_are_removed(published: Published, tmp_path: Path) -> None:
    repository, _, _ = published
    (repository.path / ".work-abc").mkdir()
    repository.publish(tmp_path / "v1", name="other", version="1.0.0")
    assert sorted(p.name for p in repository.path.iterdir()) == [".lock", "keys", "metadata", "targets"]


def test_public_files_never_change_and_carry_their_digest(published: Published, tmp_path: Path) -> None:
    repository, _, _ = published
    before = {p: p.read_bytes() for p in repository.path.rglob("*") if p.is_file()}
    repository.publish(tmp_path / "v2", name="model", version="2.0.0")
    changed = {p.name for p, data in before.items() if p.read_bytes() != data}
    assert changed == {"timestamp.json"}
    for path in repository.targets_path.rglob("*.*"):
        if path.is_file():
            assert path.name.split(".")[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.access(repository.metadata_path / "1.root.json", os.R_OK)
