"""A TUF repository on disk: what is published, and the keys that sign it.

    metadata/   1.root.json, N.targets.json, N.snapshot.json, timestamp.json     public
    targets/    NAME/VERSION/SHA256.release.json, …full.ewpk, …from-BASE.ewpk    public
    keys/       root.pem, targets.pem, snapshot.pem, timestamp.pem               private

timestamp.json is written last and alone decides what is in force: a publish that is cut off leaves the view
before it. No other public file changes once it is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from edgewright_ota import durable, keys
from edgewright_ota.clock import utc_now
from edgewright_ota.errors import PackageError, ReleaseError, RepositoryError
from edgewright_ota.package import Progress, pack, unpack
from edgewright_ota.release import (
    FULL,
    MAX_RELEASE_BYTES,
    Package,
    Release,
    check_name,
    delta_filename,
    parse_release,
    scan,
    version_key,
)
from edgewright_ota.targets import MAX_METADATA_BYTES, RELEASE, content_path, packages_of

ROOT_LIFETIME = timedelta(days=365)
TARGETS_LIFETIME = timedelta(days=90)
SNAPSHOT_LIFETIME = timedelta(days=7)
TIMESTAMP_LIFETIME = timedelta(days=1)

_WORK = ".work-"

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)


class Repository:
    """A repository on disk. Open it with `Repository.open`; several processes may use it at once.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self.path = path
        self._now = now
        self._cache: tuple[int, tuple[Release, ...]] = (0, ())

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, create: bool = False, now: Callable[[], datetime] = utc_now
    ) -> Repository:
        """Opens a repository.

        Args:
            path: Its folder.
            create: Make it, with new keys, when it is not there; a creation that was cut off is finished.
            now: The clock.

        Raises:
            RepositoryError: There is none and `create` is False, or it is damaged.
        """
        repository = cls(Path(path), now)
        if not repository._timestamp_path.exists():
            if not create:
                raise RepositoryError(
                    f"{path}: is not a repository; make one with `edgewright-ota init {path}`"
                )
            try:
                durable.make_folders(repository.path)
                with repository._locked():
                    if not repository._timestamp_path.exists():  # another process may have been first
                        repository._create()
            except OSError as error:
                raise RepositoryError(f"{path}: cannot be made: {error}") from error
        repository._load_targets()
        return repository

    @property
    def metadata_path(self) -> Path:
        """The folder to serve as /metadata/."""
        return self.path / "metadata"

    @property
    def targets_path(self) -> Path:
        """The folder to serve as /targets/."""
        return self.path / "targets"

    @property
    def keys_path(self) -> Path:
        """The folder of private keys; never serve it."""
        return self.path / "keys"

    @property
    def root_bytes(self) -> bytes:
        """The newest root.json: hand it to a device once, over a channel you trust."""
        return self._root_path().read_bytes()

    def releases(self, name: str | None = None) -> tuple[Release, ...]:
        """All releases in force, by name and then from the oldest version to the newest.

        Args:
            name: Only those of this name; None for all.

        Raises:
            RepositoryError: The repository is damaged.
        """
        targets = self._load_targets()
        if self._cache[0] != targets.version:
            paths = [p.removesuffix(f"/{RELEASE}") for p in targets.targets if p.endswith(f"/{RELEASE}")]
            found = [self._read_release(path, targets) for path in paths]
            found.sort(key=lambda r: (r.name, version_key(r.version), r.version))
            self._cache = (targets.version, tuple(found))
        return tuple(r for r in self._cache[1] if name in {None, r.name})

    def release(self, name: str, version: str) -> Release:
        """One release.

        Raises:
            RepositoryError: It was never published.
        """
        for release in self.releases(name):
            if release.version == version:
                return release
        raise RepositoryError(f"{self.path}: has no {name} {version}; publish it first")

    def package_path(self, release: Release, package: Package) -> Path:
        """Where a package lies on disk."""
        return self._content_path(f"{release.name}/{release.version}/{package.filename}", package.sha256)

    def publish(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str,
        version: str,
        rollback_index: int = 0,
        delta_from: str | None = "latest",
        progress: Progress | None = None,
    ) -> Release:
        """Makes a release of a folder's files, with a full package and a delta, and puts it in force.

        Args:
            directory: The folder; every file in it belongs to the release.
            name: The release's name.
            version: A semantic version that was not published before.
            rollback_index: Devices that confirmed a higher one refuse this release.
            delta_from: The version a delta package starts from; "latest" for the highest one below `version`,
                if any; None for no delta.
            progress: Told of bytes packed and checked.

        Raises:
            ReleaseError: The folder, name or version breaks a rule.
            RepositoryError: The version was published before, the base was not, a key is missing, the disk
                is full.
        """
        folder = Path(directory)
        check_name(name)
        version_key(version)
        with self._writing():
            files = scan(folder)
            release = Release(name=name, version=version, rollback_index=rollback_index, files=files)
            earlier = self.releases(name)
            if any(version_key(r.version) == version_key(version) for r in earlier):
                raise RepositoryError(f"{name} {version}: was published before; give a new version")
            base = _pick_base(earlier, version, delta_from)
            self._signers(self._load_root())  # a missing key shows itself before the work begins
            parts = 2 if base else 1
            full = self._add_package(folder, release, None, _part(progress, 0, parts))
            packages = [full]
            if base is not None:
                with self._unpacked(base) as base_files:
                    step = _part(progress, 1, parts)
                    packages.append(self._add_package(folder, release, (base, base_files), step))
            release = release.with_packages(tuple(packages))
            self._put_in_force(release)
        return release

    def add_delta(self, name: str, version: str, base: str, *, progress: Progress | None = None) -> Package:
        """Adds a delta package to a release, for devices that have another version.

        Args:
            name: The release's name.
            version: The version to go to.
            base: The version to start from.
            progress: Told of bytes packed and checked.

        Raises:
            RepositoryError: Either version was never published, or they are the same.
        """
        with self._writing():
            release, start = self.release(name, version), self.release(name, base)
            if release.version == start.version:
                raise RepositoryError(f"{name} {version}: a delta needs two versions")
            there = release.package(base)
            if there is not None:
                return there
            self._signers(self._load_root())
            with self._unpacked(release) as files, self._unpacked(start) as base_files:
                package = self._add_package(files, release, (start, base_files), progress)
            self._put_in_force(release.with_packages((*release.packages, package)))
        return package

    def refresh(self) -> bool:
        """Signs anew what has spent half of its life, timestamp and snapshot first of all.

        Root and targets are left alone where their keys are not here.

        Returns:
            Whether anything was signed.

        Raises:
            RepositoryError: A key is missing or unsafe, or the disk is full.
        """
        with self._writing():
            timestamp = self._load_timestamp()
            snapshot = self._load_snapshot(timestamp)
            root = self._load_root()
            new_root = self._nears_end(root, ROOT_LIFETIME) and keys.has_key(self.keys_path, "root")
            if new_root:
                root.version += 1
                self._write_signed(root, ROOT_LIFETIME, self._signer("root", root))
            targets = self._load_targets()
            if self._nears_end(targets, TARGETS_LIFETIME) and keys.has_key(self.keys_path, "targets"):
                self._write_targets(targets, snapshot, self._signer("targets", root))
            elif not self._nears_end(snapshot, SNAPSHOT_LIFETIME):
                if not self._nears_end(timestamp, TIMESTAMP_LIFETIME):
                    return new_root
                self._write_timestamp(timestamp, snapshot, self._signer("timestamp", root))
                return True
            self._write_snapshot(snapshot, self._signer("snapshot", root))
            self._write_timestamp(timestamp, snapshot, self._signer("timestamp", root))
            return True

    def _create(self) -> None:
        signers = keys.make_keys(self.keys_path)
        if not list(self.metadata_path.glob("*.root.json")):
            root = Root(version=1, consistent_snapshot=True)
            for role in keys.ROLES:
                root.add_key(signers[role].public_key, role)
            self._write_signed(root, ROOT_LIFETIME, signers["root"])
        signers = self._signers(self._load_root())
        self.targets_path.mkdir(exist_ok=True)
        snapshot = Snapshot()
        self._write_targets(Targets(), snapshot, signers["targets"])
        self._write_snapshot(snapshot, signers["snapshot"])
        self._write_timestamp(Timestamp(), snapshot, signers["timestamp"])

    def _put_in_force(self, release: Release) -> None:
        """Signs a release with its packages: its own files first, timestamp.json last."""
        root = self._load_root()
        signers = self._signers(root)
        if self._nears_end(root, ROOT_LIFETIME):
            root.version += 1
            self._write_signed(root, ROOT_LIFETIME, signers["root"])
        timestamp = self._load_timestamp()
        snapshot = self._load_snapshot(timestamp)
        targets = self._load_targets()
        prefix = f"{release.name}/{release.version}"
        data = release.to_json()
        entry = TargetFile.from_data(f"{prefix}/{RELEASE}", data, ["sha256"])
        entry.unrecognized_fields["custom"] = {"bases": [p.base for p in release.packages if p.base]}
        durable.write_file(self._content_path(entry.path, entry.hashes["sha256"]), data)
        targets.targets[entry.path] = entry
        for package in release.packages:
            path = f"{prefix}/{package.filename}"
            targets.targets[path] = TargetFile(package.size_bytes, {"sha256": package.sha256}, path)
        self._write_targets(targets, snapshot, signers["targets"])
        self._write_snapshot(snapshot, signers["snapshot"])
        self._write_timestamp(timestamp, snapshot, signers["timestamp"])

    def _add_package(
        self, files: Path, release: Release, base: tuple[Release, Path] | None, progress: Progress | None
    ) -> Package:
        """Packs, proves that it unpacks to the same bits, and moves it to its place."""
        base_version, base_files = (base[0].version, base[1]) if base else (None, None)
        with self._workspace() as work:
            made = work / "package"
            pack(files, release, made, base=base_files, progress=_part(progress, 0, 2))
            unpack(made, release, work / "proof", base=base_files, progress=_part(progress, 1, 2))
            filename = delta_filename(base_version) if base_version else FULL
            target = TargetFile.from_file(
                f"{release.name}/{release.version}/{filename}", str(made), ["sha256"]
            )
            digest = target.hashes["sha256"]
            durable.move_file(made, self._content_path(target.path, digest))
        return Package(filename=filename, base=base_version, size_bytes=target.length, sha256=digest)

    @contextmanager
    def _unpacked(self, release: Release) -> Iterator[Path]:
        """A folder with the files of an earlier release."""
        full = release.package(None)
        if full is None:
            raise RepositoryError(f"{release.name} {release.version}: has no full package")
        with self._workspace() as work:
            unpack(self.package_path(release, full), release, work / "files")
            yield work / "files"

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.path, prefix=_WORK) as name:
            yield Path(name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; a full disk and the like become our own error."""
        try:
            with self._locked():
                for stale in self.path.glob(f"{_WORK}*"):
                    shutil.rmtree(stale)  # a publish that was killed
                yield
        except (OSError, PackageError) as error:
            raise RepositoryError(f"{self.path}: nothing was published: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_release(self, path: str, targets: Targets) -> Release:
        entry = targets.targets[f"{path}/{RELEASE}"]
        file = self._content_path(entry.path, entry.hashes["sha256"])
        try:
            if entry.length > MAX_RELEASE_BYTES:
                raise ReleaseError("too large")
            data = file.read_bytes()
            entry.verify_length_and_hashes(data)
            release = parse_release(data)
            return release.with_packages(packages_of(path, entry, targets.targets.get))
        except (OSError, TufError, ReleaseError) as error:
            raise RepositoryError(f"{file}: is damaged ({error}); restore it from a backup") from error

    def _content_path(self, target: str, digest: str) -> Path:
        return self.targets_path / content_path(target, digest)

    def _signers(self, root: Root) -> dict[str, CryptoSigner]:
        return {role: self._signer(role, root) for role in keys.ROLES}

    def _signer(self, role: str, root: Root) -> CryptoSigner:
        return keys.load_key(self.keys_path, role, root.keys[root.roles[role].keyids[0]])

    def _write_targets(self, targets: Targets, snapshot: Snapshot, signer: CryptoSigner) -> None:
        targets.version = self._next_version("targets")
        self._write_signed(targets, TARGETS_LIFETIME, signer)
        name = f"{targets.version}.targets.json"
        snapshot.meta["targets.json"] = self._describe(name, targets.version)

    def _write_snapshot(self, snapshot: Snapshot, signer: CryptoSigner) -> None:
        snapshot.version = self._next_version("snapshot")
        self._write_signed(snapshot, SNAPSHOT_LIFETIME, signer)

    def _write_timestamp(self, timestamp: Timestamp, snapshot: Snapshot, signer: CryptoSigner) -> None:
        timestamp.version += 1
        timestamp.snapshot_meta = self._describe(f"{snapshot.version}.snapshot.json", snapshot.version)
        self._write_signed(timestamp, TIMESTAMP_LIFETIME, signer)

    def _write_signed(self, signed: _T, lifetime: timedelta, signer: CryptoSigner) -> None:
        signed.expires = (self._now() + lifetime).replace(microsecond=0)
        metadata = Metadata[_T](signed)
        metadata.sign(signer)
        name = f"{signed.type}.json" if signed.type == "timestamp" else f"{signed.version}.{signed.type}.json"
        data = metadata.to_bytes(JSONSerializer(compact=True, validate=True))
        if len(data) > MAX_METADATA_BYTES:
            raise RepositoryError(
                f"{self.path}: {name} would be too large for clients; start another repository"
            )
        durable.write_file(self.metadata_path / name, data)

    def _describe(self, name: str, version: int) -> MetaFile:
        return MetaFile.from_data(version, (self.metadata_path / name).read_bytes(), ["sha256"])

    def _nears_end(self, signed: _T, lifetime: timedelta) -> bool:
        return signed.expires - self._now() < lifetime / 2

    @property
    def _timestamp_path(self) -> Path:
        return self.metadata_path / "timestamp.json"

    def _next_version(self, role: str) -> int:
        """One above every version on disk: a publish that was cut off may have left one not in force."""
        found = self.metadata_path.glob(f"[0-9]*.{role}.json")
        return 1 + max((int(p.name.split(".")[0]) for p in found), default=0)

    def _root_path(self) -> Path:
        version = self._next_version("root") - 1
        if not version:
            raise RepositoryError(f"{self.metadata_path}: has no root.json; restore it from a backup")
        return self.metadata_path / f"{version}.root.json"

    def _load_root(self) -> Root:
        return self._load(self._root_path(), Root)

    def _load_timestamp(self) -> Timestamp:
        return self._load(self._timestamp_path, Timestamp)

    def _load_snapshot(self, timestamp: Timestamp) -> Snapshot:
        return self._load(self.metadata_path / f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot)

    def _load_targets(self) -> Targets:
        version = self._load_snapshot(self._load_timestamp()).meta["targets.json"].version
        return self._load(self.metadata_path / f"{version}.targets.json", Targets)

    def _load(self, path: Path, kind: type[_T]) -> _T:
        try:
            signed = Metadata[_T].from_bytes(path.read_bytes()).signed
        except (OSError, TufError) as error:
            raise RepositoryError(f"{path}: cannot be read ({error}); restore it from a backup") from error
        if not isinstance(signed, kind):
            raise RepositoryError(f"{path}: is not {kind.type} metadata; restore it from a backup")
        return signed


def _pick_base(earlier: tuple[Release, ...], version: str, wanted: str | None) -> Release | None:
    if wanted is None:
        return None
    if wanted == "latest":
        below = [r for r in earlier if version_key(r.version) < version_key(version)]
        return below[-1] if below else None
    for release in earlier:
        if release.version == wanted:
            return release
    raise RepositoryError(f"base version {wanted}: was never published; name one of the earlier versions")


def _part(progress: Progress | None, index: int, parts: int) -> Progress | None:
    """Progress of one of several equal parts, as progress of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, parts * total)
