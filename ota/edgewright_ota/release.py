"""A release: the list of files that a device shall hold, and the packages that bring them.

`release.json` names the files with their sizes and digests; TUF signs it. The packages are not in it: they
are signed beside it, so a delta can be added to a release later without changing the release's digest. The
text is untrusted until TUF has verified it, and capped even then. docs/release-format.md specifies it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewright_ota.errors import ReleaseError

FORMAT = 1
MAX_RELEASE_BYTES = 4 << 20
MAX_FILES = 10_000
MAX_TOTAL_BYTES = 16 << 30
MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255
MAX_VERSION_BYTES = 64
MAX_ROLLBACK_INDEX = (1 << 31) - 1

FULL = "full.ewpk"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = r"(?:0|[1-9][0-9]*)"
_LABEL = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_LABEL}(?:\.{_LABEL})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """One file of a release.

    Attributes:
        path: Relative, POSIX, safe to join to a folder.
        size_bytes: Its length.
        sha256: Its SHA-256, hex.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One way to bring a release to a device.

    Attributes:
        filename: `full.ewpk`, or `from-BASE.ewpk`.
        base: The version whose files it builds on; None when it needs none.
        size_bytes: Bytes on the wire.
        sha256: SHA-256 of the package, hex.
    """

    filename: str
    base: str | None
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A signed list of files.

    Attributes:
        name: What is released; a device asks for it by name.
        version: A semantic version.
        rollback_index: A device that confirmed a release refuses every release with a lower index.
        files: In the order of their paths; no two are the same and none lies inside another.
        packages: The full package first, then deltas; not part of release.json nor of the digest.

    Raises:
        ReleaseError: A rule of the format is broken.
    """

    name: str
    version: str
    rollback_index: int = 0
    files: tuple[ReleaseFile, ...]
    packages: tuple[Package, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> bytes:
        """release.json: canonical, so the same release is the same bytes."""
        body = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "rollback_index": self.rollback_index,
            "files": [[f.path, f.size_bytes, f.sha256] for f in self.files],
        }
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of release.json; it names the exact files."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files once rebuilt."""
        return sum(f.size_bytes for f in self.files)

    def package(self, base: str | None) -> Package | None:
        """The package from a base version (None: the full one), or None when there is none."""
        return next((p for p in self.packages if p.base == base), None)

    def with_packages(self, packages: tuple[Package, ...]) -> Release:
        """The same release with these packages."""
        return replace(self, packages=packages)


def parse_release(data: bytes) -> Release:
    """Reads release.json.

    Raises:
        ReleaseError: Too large, not JSON, an unknown or missing field, or a rule broken.
    """
    if len(data) > MAX_RELEASE_BYTES:
        raise ReleaseError(f"release.json: {len(data)} bytes; at most {MAX_RELEASE_BYTES} are allowed")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"release.json: not JSON: {error}") from None
    wanted = {"format", "name", "version", "rollback_index", "files"}
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ReleaseError(f"release.json: not of format {FORMAT}; a newer Edgewright may read it")
    if set(body) != wanted:
        raise ReleaseError(f"release.json: must have exactly the fields {', '.join(sorted(wanted))}")
    if not isinstance(body["name"], str) or not isinstance(body["version"], str):
        raise ReleaseError("release.json: name and version must be strings")
    rows = body["files"]
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        raise ReleaseError(f"release.json: files must be a list of at most {MAX_FILES}")
    release = Release(
        name=body["name"],
        version=body["version"],
        rollback_index=_integer(body["rollback_index"], "rollback_index"),
        files=tuple(_parse_file(row, i) for i, row in enumerate(rows)),
    )
    if release.to_json() != data:
        raise ReleaseError("release.json: not in canonical form")
    return release


def scan(directory: Path) -> tuple[ReleaseFile, ...]:
    """Lists and hashes every file under a folder, in the order of their paths.

    Raises:
        ReleaseError: It is not a folder, holds a link or a special file, or breaks a cap.
    """
    if not directory.is_dir():
        raise ReleaseError(f"{directory}: is not a folder; give the folder that holds the release's files")
    paths = []
    for path in _walk(directory):
        paths.append((path.relative_to(directory).as_posix(), path))
        if len(paths) > MAX_FILES:
            raise ReleaseError(f"{directory}: more than {MAX_FILES} files")
    if not paths:
        raise ReleaseError(f"{directory}: holds no file")
    total = sum(path.stat().st_size for _, path in paths)
    if total > MAX_TOTAL_BYTES:
        raise ReleaseError(f"{directory}: {total} bytes; a release may have at most {MAX_TOTAL_BYTES}")
    return tuple(
        ReleaseFile(path=name, size_bytes=size, sha256=digest)
        for name, (size, digest) in ((name, hash_file(path)) for name, path in sorted(paths))
    )


def hash_file(path: Path) -> tuple[int, str]:
    """Length in bytes and SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def check_name(name: str) -> str:
    """Gives the name back.

    Raises:
        ReleaseError: Not 1-64 letters, digits, '.', '_', '-', beginning with a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise ReleaseError(
            f"name {name!r}: use 1-64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return name


def version_key(version: str) -> tuple[Any, ...]:
    """A key that sorts versions by semantic-version precedence.

    Raises:
        ReleaseError: Not a semantic version.
    """
    match = _VERSION.fullmatch(version) if len(version) <= MAX_VERSION_BYTES else None
    if match is None:
        raise ReleaseError(f"version {version[:80]!r}: use a semantic version such as 1.2.0 or 1.2.0-rc.1")
    major, minor, patch, labels = match.groups()
    numbers = (int(major), int(minor), int(patch))
    if labels is None:
        return (*numbers, 1)
    # A number ranks below a word; fewer labels below more.
    key = tuple((0, int(x), "") if x.isdigit() else (1, 0, x) for x in labels.split("."))
    return (*numbers, 0, key)


def delta_filename(base: str) -> str:
    """The file name of the delta package from a base version."""
    return f"from-{base}.ewpk"


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _walk(Path(entry.path))
            elif stat.S_ISREG(mode):
                yield Path(entry.path)
            else:
                raise ReleaseError(f"{entry.path}: only plain files and folders can be released")


def _parse_file(row: object, index: int) -> ReleaseFile:
    if (
        not isinstance(row, list)
        or len(row) != 3
        or not isinstance(row[0], str)
        or not isinstance(row[2], str)
    ):
        raise ReleaseError(f"release.json: file {index} must be [path, size, sha256]")
    return ReleaseFile(path=row[0], size_bytes=_integer(row[1], f"size of file {index}"), sha256=row[2])


def _integer(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ReleaseError(f"release.json: {what} must be an integer")
    return value


def _check(release: Release) -> None:
    check_name(release.name)
    version_key(release.version)
    if not 0 <= release.rollback_index <= MAX_ROLLBACK_INDEX:
        raise ReleaseError(f"rollback index {release.rollback_index}: must be in 0..{MAX_ROLLBACK_INDEX}")
    if not 1 <= len(release.files) <= MAX_FILES:
        raise ReleaseError(f"{len(release.files)} files; a release has 1 to {MAX_FILES}")
    total = 0
    paths: set[str] = set()
    for file in release.files:
        _check_path(file.path)
        if not _SHA256.fullmatch(file.sha256):
            raise ReleaseError(f"{file.path}: its SHA-256 must be 64 small hex digits")
        if file.size_bytes < 0 or (total := total + file.size_bytes) > MAX_TOTAL_BYTES:
            raise ReleaseError(f"{file.path}: sizes must be >= 0 and sum to at most {MAX_TOTAL_BYTES} bytes")
        paths.add(file.path)
    if [f.path for f in release.files] != sorted(paths):
        raise ReleaseError("files must be in the order of their paths, each once")
    for path in paths:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: i + 1]) in paths for i in range(len(parents))):
            raise ReleaseError(f"{path}: lies inside a path that is itself a file")


def _check_path(path: str) -> None:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        encoded = b""
    segments = path.split("/")
    if (
        not 1 <= len(encoded) <= MAX_PATH_BYTES
        or any(s in {"", ".", ".."} or len(s.encode()) > MAX_SEGMENT_BYTES for s in segments)
        or any(ord(c) < 32 or ord(c) == 127 or c == "\\" for c in path)
    ):
        raise ReleaseError(f"unsafe path {path[:80]!r}: use relative POSIX paths without '.', '..' or '\\'")
