from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgewright_ota import Release, ReleaseError, ReleaseFile
from edgewright_ota.release import MAX_RELEASE_BYTES, MAX_TOTAL_BYTES, parse_release, scan, version_key

HASH = "0" * 64


def one_file(path: str = "a", size_bytes: int = 1) -> Release:
    file = ReleaseFile(path=path, size_bytes=size_bytes, sha256=HASH)
    return Release(name="model", version="1.0.0", files=(file,))


def test_release_json_is_canonical_and_comes_back() -> None:
    release = one_file("folder/été.bin", 7)
    assert parse_release(release.to_json()) == release
    assert release.digest == parse_release(release.to_json()).digest
    with pytest.raises(ReleaseError, match="canonical"):
        parse_release(release.to_json() + b"\n")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        ".",
        "a\\b",
        "a\nb",
        "a\0b",
        "x" * 256,
        "\ud800",
    ],
)
def test_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(ReleaseError, match="unsafe path"):
        one_file(path)


def test_a_file_cannot_lie_inside_a_file_nor_come_twice() -> None:
    def release(*paths: str) -> Release:
        files = tuple(ReleaseFile(path=p, size_bytes=0, sha256=HASH) for p in paths)
        return Release(name="model", version="1.0.0", files=files)

    release("a", "b/c")
    for paths in [("a", "a/b"), ("a", "a"), ("b", "a")]:
        with pytest.raises(ReleaseError):
            release(*paths)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("name", "../x"),
        ("name", 3),
        ("version", "1.0"),
        ("version", "01.0.0"),
        ("rollback_index", -1),
        ("rollback_index", True),
        ("rollback_index", 1.0),
        ("files", []),
        ("files", {}),
        ("files", [["a", 1]]),
        ("files", [["a", -1, HASH]]),
        ("files", [["a", MAX_TOTAL_BYTES + 1, HASH]]),
        ("files", [["a", 1, HASH.upper() + "A"]]),
        ("files", [[f"{i:05}", 0, HASH] for i in range(10_001)]),
        ("extra", 1),
    ],
)
def test_release_json_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    body = json.loads(one_file().to_json())
    body[field] = value
    text = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(ReleaseError):
        parse_release(text)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_RELEASE_BYTES + 1)])
def test_what_is_not_release_json_is_refused(text: bytes) -> None:
    with pytest.raises(ReleaseError):
        parse_release(text)


def test_versions_sort_by_semantic_precedence() -> None:
    ordered = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-2",
        "1.0.0",
        "1.2.0",
        "1.10.0",
        "2.0.0",
    ]
    ordered.sort(key=version_key)
    assert ordered == [
        "1.0.0-2",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0",
        "1.2.0",
        "1.10.0",
        "2.0.0",
    ]
    assert version_key("1.0.0+a") == version_key("1.0.0+b")


def test_scan_refuses_links_special_files_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no file"):
        scan(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    assert [f.path for f in scan(tmp_path)] == ["file"]
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(ReleaseError, match="link"):
        scan(tmp_path)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReleaseError, match="pipe"):
        scan(tmp_path)
    with pytest.raises(ReleaseError, match="not a folder"):
        scan(tmp_path / "file")
