from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewright_ota import PackageError, Release, coding, delta, pack, unpack
from edgewright_ota import package as package_format
from edgewright_ota.release import scan

from .conftest import write_model

FIXED = struct.Struct("<8sI16s16s")


def release_of(folder: Path, version: str = "1.0.0") -> Release:
    return Release(name="model", version=version, files=scan(folder))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, new/, full.ewpk and delta.ewpk."""
    root = tmp_path_factory.mktemp("built")
    base, new = write_model(root / "base", seed=1), write_model(root / "new", seed=1, step=1)
    pack(new, release_of(new), root / "full.ewpk")
    pack(new, release_of(new), root / "delta.ewpk", base=base)
    return root


def assert_refused(
    package: Path, release: Release, out: Path, base: Path | None, match: str | None = None
) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(PackageError, match=match):
        unpack(package, release, out, base=base)
    assert sorted(out.parent.iterdir()) == before


files = st.dictionaries(
    st.from_regex(r"([a-c]{1,2}/){0,2}[d-f]{1,2}", fullmatch=True),
    st.binary(max_size=300),
    min_size=1,
    max_size=4,
)


@given(files, files)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_folder_comes_back_bit_for_bit(
    tmp_path: Path, old: dict[str, bytes], new: dict[str, bytes]
) -> None:
    shutil.rmtree(tmp_path)
    for name, content in {"old": old, "new": new}.items():
        for path, data in content.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
    release = release_of(tmp_path / "new")
    for base in (None, tmp_path / "old"):
        pack(tmp_path / "new", release, tmp_path / "package", base=base)
        unpack(tmp_path / "package", release, tmp_path / "out", base=base)
        assert scan(tmp_path / "out") == release.files
        shutil.rmtree(tmp_path / "out")


def test_files_of_many_chunks_come_back(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "noise").write_bytes(bytes(range(256)) * 3000 + os.urandom(300_001))
    (tmp_path / "in" / "zeros").write_bytes(bytes(5_000_000))
    release = release_of(tmp_path / "in")
    seen: list[tuple[int, int]] = []
    pack(tmp_path / "in", release, tmp_path / "p.ewpk")
    unpack(tmp_path / "p.ewpk", release, tmp_path / "out", progress=lambda *x: seen.append(x))
    assert scan(tmp_path / "out") == release.files
    assert seen[-1] == (release.size_bytes, release.size_bytes)


def test_file_too_large_to_hold_in_memory_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "MAX_TENSOR_FILE_BYTES", 1000)
    for name in ("base", "new"):
        write_model(tmp_path / name, seed=1, step=int(name == "new"))
    release = release_of(tmp_path / "new")
    pack(tmp_path / "new", release, tmp_path / "p.ewpk", base=tmp_path / "base")
    unpack(tmp_path / "p.ewpk", release, tmp_path / "out", base=tmp_path / "base")
    assert scan(tmp_path / "out") == release.files


def test_delta_is_a_fraction_of_the_full_package(built: Path) -> None:
    full, delta = (built / "full.ewpk").stat().st_size, (built / "delta.ewpk").stat().st_size
    assert delta < full / 3


def test_unpack_leaves_one_folder_and_refuses_one_that_is_there(built: Path, tmp_path: Path) -> None:
    release = release_of(built / "new")
    unpack(built / "full.ewpk", release, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="exists already"):
        unpack(built / "full.ewpk", release, tmp_path / "out")


def test_leavings_of_a_killed_unpack_are_removed(built: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.abc.unpacking" / "files").mkdir(parents=True)
    unpack(built / "full.ewpk", release_of(built / "new"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["full.ewpk", "delta.ewpk"])
def test_a_flipped_bit_anywhere_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    data = (built / name).read_bytes()
    release = release_of(built / "new")
    for at in [*range(0, 120, 2), *range(120, len(data), max(1, len(data) // 40))]:
        hostile = bytearray(data)
        hostile[at] ^= 0x10
        (tmp_path / "p.ewpk").write_bytes(hostile)
        assert_refused(tmp_path / "p.ewpk", release, tmp_path / "out", built / "base")


@pytest.mark.parametrize("name", ["full.ewpk", "delta.ewpk"])
def test_a_truncated_or_lengthened_package_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    data = (built / name).read_bytes()
    release = release_of(built / "new")
    for size in [0, 1, 20, 43, 44, 60, len(data) // 2, len(data) - 1]:
        (tmp_path / "p.ewpk").write_bytes(data[:size])
        assert_refused(tmp_path / "p.ewpk", release, tmp_path / "out", built / "base")
    (tmp_path / "p.ewpk").write_bytes(data + b"x")
    assert_refused(tmp_path / "p.ewpk", release, tmp_path / "out", built / "base", "truncated")


def test_missing_wrong_or_incomplete_base_is_refused(built: Path, tmp_path: Path) -> None:
    release = release_of(built / "new")
    wrong = tmp_path / "wrong"
    shutil.copytree(built / "base", wrong)
    (wrong / "plan.bin").write_bytes(b"another")
    assert_refused(built / "delta.ewpk", release, tmp_path / "out", None, "no base was given")
    assert_refused(built / "delta.ewpk", release, tmp_path / "out", wrong, "not the base")
    (wrong / "plan.bin").unlink()
    assert_refused(built / "delta.ewpk", release, tmp_path / "out", wrong, "not the base")
    assert_refused(built / "absent.ewpk", release, tmp_path / "out", None, "No such file")


def test_a_package_of_another_release_is_refused(built: Path, tmp_path: Path) -> None:
    other = release_of(built / "new", "2.0.0")
    assert_refused(built / "full.ewpk", other, tmp_path / "out", None, "another release")


def test_a_newer_format_asks_for_an_update(built: Path, tmp_path: Path) -> None:
    data = bytearray((built / "full.ewpk").read_bytes())
    data[7] = 9
    (tmp_path / "p.ewpk").write_bytes(data)
    assert_refused(
        tmp_path / "p.ewpk", release_of(built / "new"), tmp_path / "out", None, "update Edgewright"
    )


def craft(release: Release, method: int, payload: bytes) -> bytes:
    """A one-file package whose hashes are right, whatever it holds."""
    chunks = [payload[i : i + 65536] for i in range(0, len(payload), 65536)]
    table = bytes([method]) + coding.put_varint(len(payload))
    table += b"".join(package_format._short_hash(c) for c in chunks)
    digest = bytes.fromhex(release.digest)[:16]
    return FIXED.pack(package_format.MAGIC, FIXED.size + len(table), digest, bytes(16)) + table + payload


def test_a_bomb_with_right_hashes_stops_at_the_signed_length(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_bytes(b"0123456789")
    release = release_of(tmp_path / "in")
    bomb = coding.compress(bytes(1 << 28))
    (tmp_path / "p.ewpk").write_bytes(craft(release, package_format.ZSTD, bomb))
    assert_refused(tmp_path / "p.ewpk", release, tmp_path / "out", None, "longer than the 10 bytes")
    for method, payload in [
        (package_format.STORED, b"01234567890"),
        (package_format.STORED, b"012345678X"),
        (package_format.ZSTD, b""),
        (package_format.TENSORS, b"x"),
        (200, b"x"),
    ]:
        (tmp_path / "p.ewpk").write_bytes(craft(release, method, payload))
        assert_refused(tmp_path / "p.ewpk", release, tmp_path / "out", None)
    (tmp_path / "p.ewpk").write_bytes(craft(release, package_format.STORED, b"0123456789"))
    unpack(tmp_path / "p.ewpk", release, tmp_path / "out")


def test_a_full_disk_is_told_before_anything_is_written(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert_refused(built / "full.ewpk", release_of(built / "new"), tmp_path / "out", None, "10 are free")


def test_files_that_changed_while_packing_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "in", seed=1)
    release = release_of(folder)
    (folder / "plan.bin").write_bytes(b"changed")
    with pytest.raises(PackageError, match="changed while"):
        pack(folder, release, tmp_path / "p.ewpk")
    assert not (tmp_path / "p.ewpk").exists()
