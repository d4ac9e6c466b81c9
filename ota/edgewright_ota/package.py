"""The package, `.ewpk`: what travels. From nothing or from a base's files it makes a release's files.

    head      magic, its own size, which release, which base, one method and length per file, a hash per chunk
    payload   the files' coded bytes, one after the other, cut into chunks of 64 KiB

The files' names, sizes and digests are not in it: they are in the signed release. docs/release-format.md has
the bytes. Reading trusts nothing: a chunk is hashed before it is decoded, decoding stops at the length the
release states, and every rebuilt file must have the release's digest. The result appears in one step or not
at all.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from edgewright_ota import coding, delta, durable
from edgewright_ota.errors import PackageError
from edgewright_ota.release import Release, ReleaseFile, hash_file

MAGIC = b"EWPKG\r\n\x01"
CHUNK_BYTES = 1 << 16
MAX_HEAD_BYTES = 8 << 20

UNCHANGED, STORED, ZSTD, ZSTD_FROM_BASE, PATCH, TENSORS = range(6)
_FROM_BASE = frozenset({UNCHANGED, ZSTD_FROM_BASE, PATCH, TENSORS})

_FIXED = struct.Struct("<8sI16s16s")  # magic, bytes of the head, release, base
_HASH_BYTES = 16
_NO_BASE = bytes(_HASH_BYTES)
_UNFINISHED = ".unpacking"

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """How one file is coded: the method, and the bytes it takes in the payload."""

    method: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The head of a package, parsed."""

    base: bytes
    entries: tuple[_Entry, ...]
    chunks: tuple[bytes, ...]

    @property
    def payload_bytes(self) -> int:
        return sum(e.size_bytes for e in self.entries)


def pack(
    files: Path,
    release: Release,
    out: Path,
    *,
    base: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a package, each file in the form that is smallest.

    Args:
        files: The folder that holds the release's files.
        release: What they are.
        out: The package to write; replaced if it is there.
        base: The folder of the release a device starts from; None for a full package.
        progress: Told of the release's bytes packed.

    Raises:
        PackageError: The folder does not hold the release's files, or `out` cannot be written.
    """
    durable.make_folders(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pack-") as name:
        payload_path, whole = Path(name) / "payload", Path(name) / "package"
        entries = []
        done = 0
        try:
            with payload_path.open("wb") as payload:
                for file in release.files:
                    source = files / file.path
                    _expect(source, file, "changed while it was packed")
                    entries.append(_encode(source, base / file.path if base else None, payload))
                    done += file.size_bytes
                    if progress:
                        progress(done, release.size_bytes)
            head = _write_head(release, entries, payload_path, base)
            with whole.open("wb") as package, payload_path.open("rb") as payload:
                package.write(head)
                shutil.copyfileobj(payload, package, 1 << 20)
            durable.move_file(whole, out)
        except OSError as error:
            raise PackageError(f"{out}: cannot be written: {error}") from error


def unpack(
    package: Path,
    release: Release,
    out: Path,
    *,
    base: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Rebuilds a release's files from a package.

    Args:
        package: The package; untrusted.
        release: What the files must be; verified.
        out: The folder to make; it must not exist. It appears whole or not at all.
        base: The folder of the release that the package was made from; None for a full package.
        progress: Told of the release's bytes rebuilt.

    Raises:
        PackageError: Damaged, hostile, for another release or base, or the disk is full; `out` is not there
            then.
        ValueError: `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out}: exists already; give a path that does not")
    durable.make_folders(out.parent)
    try:
        free = shutil.disk_usage(out.parent).free
        if free < release.size_bytes:
            raise PackageError(
                f"{out.parent}: {release.size_bytes} bytes are needed, {free} are free; free some"
            )
        for stale in out.parent.glob(f".{glob.escape(out.name)}.*{_UNFINISHED}"):
            shutil.rmtree(stale)  # an unpack that was killed
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=_UNFINISHED) as name:
            work = Path(name) / "files"
            work.mkdir()
            _rebuild(package, release, work, base, progress)
            work.rename(out)
        durable.sync_folder(out.parent)
    except OSError as error:
        raise PackageError(f"{package} cannot be unpacked to {out}: {error}") from error


def _rebuild(
    package: Path, release: Release, work: Path, base: Path | None, progress: Progress | None
) -> None:
    with package.open("rb") as file:
        try:
            head = _read_head(file, release)
            if head.base != _NO_BASE:
                _check_base(head, release, base)
            payload = _Payload(file, head)
            done = 0
            for entry, wanted in zip(head.entries, release.files, strict=True):
                target = work / wanted.path
                target.parent.mkdir(parents=True, exist_ok=True)
                old = base / wanted.path if base else None
                payload.open(entry.size_bytes)
                with target.open("xb") as made:
                    digest = hashlib.sha256()
                    for block in _decode(entry, wanted, payload, old):
                        digest.update(block)
                        made.write(block)
                    if made.tell() != wanted.size_bytes or digest.hexdigest() != wanted.sha256:
                        raise PackageError(f"{wanted.path} does not come out as the release says")
                    made.flush()
                    os.fsync(made.fileno())
                payload.close()
                done += wanted.size_bytes
                if progress:
                    progress(done, release.size_bytes)
        except PackageError as error:
            raise PackageError(
                f"{package.name} for {release.name} {release.version}: {error}; nothing was installed"
            ) from None
    for folder in [p for p in work.rglob("*") if p.is_dir()]:
        durable.sync_folder(folder)
    durable.sync_folder(work)


def _encode(source: Path, base: Path | None, payload: IO[bytes]) -> _Entry:
    """Appends one file to the payload in its smallest form."""
    size = source.stat().st_size
    usable = base if base is not None and base.is_file() else None
    if usable is not None and usable.stat().st_size == size and hash_file(usable) == hash_file(source):
        return _Entry(method=UNCHANGED, size_bytes=0)
    if size > delta.MAX_TENSOR_FILE_BYTES:
        return _encode_streaming(source, payload)
    data = source.read_bytes()
    forms = {STORED: data, ZSTD: coding.compress(data)}
    old = usable.read_bytes() if usable and usable.stat().st_size <= delta.MAX_TENSOR_FILE_BYTES else b""
    if old:
        if len(old) <= coding.MAX_DICTIONARY_BYTES:
            forms[ZSTD_FROM_BASE] = coding.compress(data, dictionary=old)
        if max(len(old), size) <= delta.MAX_PATCH_FILE_BYTES:
            forms[PATCH] = delta.encode_patch(data, old)
        if source.suffix == ".safetensors":
            coded = delta.encode_tensors(data, old)
            if coded is not None:
                forms[TENSORS] = coded
    method = min(forms, key=lambda m: len(forms[m]))
    payload.write(forms[method])
    return _Entry(method=method, size_bytes=len(forms[method]))


def _encode_streaming(source: Path, payload: IO[bytes]) -> _Entry:
    """A file too large to hold in memory: zstd, block by block."""
    first = payload.tell()
    with source.open("rb") as file:
        coding.compressor(source.stat().st_size).copy_stream(file, payload)
    return _Entry(method=ZSTD, size_bytes=payload.tell() - first)


def _decode(entry: _Entry, wanted: ReleaseFile, payload: _Payload, base: Path | None) -> Iterator[bytes]:
    size = wanted.size_bytes
    if entry.method == STORED:
        if entry.size_bytes != size:
            raise PackageError(f"{wanted.path} is stored with {entry.size_bytes} bytes instead of {size}")
        yield from payload.rest()
    elif entry.method == ZSTD:
        yield from coding.stream(payload, size)
    elif base is None:
        raise PackageError(f"{wanted.path} needs a base, and none was given")
    elif entry.method == UNCHANGED:
        if base.stat().st_size != size:
            raise PackageError(f"{base} has another length than the release says")
        with base.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                yield block
    elif entry.method == ZSTD_FROM_BASE:
        yield from coding.stream(payload, size, dictionary=_small(base, coding.MAX_DICTIONARY_BYTES))
    elif size > delta.MAX_TENSOR_FILE_BYTES:
        raise PackageError(f"{wanted.path} is too large for a delta")
    elif entry.method == PATCH:
        old = _small(base, delta.MAX_PATCH_FILE_BYTES)
        yield delta.decode_patch(b"".join(payload.rest()), old, size)
    else:
        old = _small(base, delta.MAX_TENSOR_FILE_BYTES)
        yield delta.decode_tensors(b"".join(payload.rest()), old, size)


class _Payload:
    """The payload as a stream of verified bytes, handed out one file's part at a time."""

    def __init__(self, file: IO[bytes], head: _Head) -> None:
        self._file = file
        self._hashes = iter(head.chunks)
        self._unread = head.payload_bytes
        self._ready = io.BytesIO()
        self._left = 0

    def open(self, size_bytes: int) -> None:
        """Begins the part of the next file."""
        self._left = size_bytes

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes of the current part; fewer at the end of a chunk."""
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        data = self._ready.read(wanted)
        if not data:
            self._next_chunk()
            data = self._ready.read(wanted)
        self._left -= len(data)
        return data

    def rest(self) -> Iterator[bytes]:
        """What is left of the current part."""
        while block := self.read(CHUNK_BYTES):
            yield block

    def close(self) -> None:
        """Ends the part of the current file, all of which must have been used."""
        if self._left:
            raise PackageError("a file's part is longer than it needs")

    def _next_chunk(self) -> None:
        size = min(CHUNK_BYTES, self._unread)
        data = self._file.read(size)
        if len(data) != size or _short_hash(data) != next(self._hashes):
            raise PackageError("a chunk is damaged")
        self._unread -= size
        self._ready = io.BytesIO(data)


def _write_head(release: Release, entries: list[_Entry], payload: Path, base: Path | None) -> bytes:
    table = bytearray()
    for entry in entries:
        table.append(entry.method)
        if entry.method != UNCHANGED:
            table += coding.put_varint(entry.size_bytes)
    with payload.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            table += _short_hash(chunk)
    base_hash = _NO_BASE
    if base is not None and any(e.method in _FROM_BASE for e in entries):
        base_hash = _hash_base(entries, release, base)
    size = _FIXED.size + len(table)
    return _FIXED.pack(MAGIC, size, bytes.fromhex(release.digest)[:_HASH_BYTES], base_hash) + table


def _read_head(file: IO[bytes], release: Release) -> _Head:
    total = os.fstat(file.fileno()).st_size
    fixed = file.read(_FIXED.size)
    if len(fixed) != _FIXED.size or not fixed.startswith(MAGIC[:-1]):
        raise PackageError("not an Edgewright package")
    magic, size, digest, base = _FIXED.unpack(fixed)
    if magic != MAGIC:
        raise PackageError(f"format {magic[-1]}; this version reads format {MAGIC[-1]}: update Edgewright")
    if not _FIXED.size <= size <= min(MAX_HEAD_BYTES, total):
        raise PackageError("its head has an impossible size")
    if digest != bytes.fromhex(release.digest)[:_HASH_BYTES]:
        raise PackageError("it is for another release")
    table = file.read(size - _FIXED.size)
    at = 0
    entries = []
    for _ in release.files:
        method = table[at] if at < len(table) else -1
        at += 1
        if method not in range(TENSORS + 1) or (base == _NO_BASE and method in _FROM_BASE):
            raise PackageError("its table is damaged")
        length = 0
        if method != UNCHANGED:
            length, at = coding.get_varint(table, at)
        entries.append(_Entry(method=method, size_bytes=length))
    payload = sum(e.size_bytes for e in entries)
    hashes = table[at:]
    if size + payload != total or len(hashes) != -(-payload // CHUNK_BYTES) * _HASH_BYTES:
        raise PackageError("it is truncated, or its table is damaged")
    chunks = tuple(hashes[i : i + _HASH_BYTES] for i in range(0, len(hashes), _HASH_BYTES))
    return _Head(base=base, entries=tuple(entries), chunks=chunks)


def _check_base(head: _Head, release: Release, base: Path | None) -> None:
    if base is None:
        raise PackageError("it is a delta, and no base was given; take the full package")
    missing = [
        f.path
        for e, f in zip(head.entries, release.files, strict=True)
        if e.method in _FROM_BASE and not (base / f.path).is_file()
    ]
    if missing or _hash_base(list(head.entries), release, base) != head.base:
        raise PackageError(f"{base} is not the base it was made from; take the full package")


def _hash_base(entries: list[_Entry], release: Release, base: Path) -> bytes:
    """One short hash over the digests of all base files that are used."""
    digests = (
        hash_file(base / f.path)[1]
        for e, f in zip(entries, release.files, strict=True)
        if e.method in _FROM_BASE
    )
    return _short_hash("".join(digests).encode())


def _short_hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_HASH_BYTES]


def _small(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit:
        raise PackageError(f"{path}: too large to be a base")
    return path.read_bytes()


def _expect(path: Path, file: ReleaseFile, what: str) -> None:
    if not path.is_file() or hash_file(path) != (file.size_bytes, file.sha256):
        raise PackageError(f"{path}: {what}; publish again")
