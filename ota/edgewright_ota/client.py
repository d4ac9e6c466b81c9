"""A device's trusted view of a repository: what is released, as the repository's keys signed it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
)
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from edgewright_ota import durable
from edgewright_ota.clock import utc_now
from edgewright_ota.errors import PackageError, ReleaseError, ServerError, TrustError
from edgewright_ota.package import Progress
from edgewright_ota.release import (
    MAX_RELEASE_BYTES,
    MAX_TOTAL_BYTES,
    Package,
    Release,
    check_name,
    parse_release,
    version_key,
)
from edgewright_ota.targets import MAX_METADATA_BYTES, RELEASE, content_path, packages_of
from edgewright_ota.transport import Fetcher, new_pool


class Client:
    """A device's trusted view of a repository. One process at a time may use its directory.

    Args:
        directory: Where trusted metadata and downloads are kept.
        metadata_url: Where the server has the repository's metadata.
        targets_url: Where it has the targets.
        root: The root.json to trust; None when an earlier Client kept one here. None is ever taken on trust
            from the network.
        now: The clock, for expiry.
        http: The connections; None for a pool of its own.

    Raises:
        TrustError: No root was given and none is kept, or it is not a root.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        metadata_url: str,
        targets_url: str,
        root: bytes | None = None,
        now: Callable[[], datetime] = utc_now,
        http: urllib3.PoolManager | None = None,
    ) -> None:
        self._metadata = Path(directory) / "metadata"
        self._downloads = Path(directory) / "downloads"
        self._metadata_url = metadata_url
        self._targets_url = targets_url.rstrip("/")
        self._now = now
        self._fetcher = Fetcher(http or new_pool())
        with self._translated(Path(directory)):
            durable.make_folders(self._metadata)
            durable.make_folders(self._downloads)
            # python-tuf keeps a root.json too; this one it never touches, so no power cut can lose it.
            kept = Path(directory) / "trusted-root.json"
            old = kept.read_bytes() if kept.exists() else None
            trusted = old if root is None else root
            if trusted is None:
                raise TrustError(
                    f"{directory}: no trusted root; give the root.json that the publisher handed out"
                )
            self._root = trusted
            self._updater()
            if trusted != old:
                durable.write_file(kept, trusted)

    def release(self, name: str, version: str) -> Release:
        """The verified release, with its packages.

        Raises:
            TrustError: Metadata or release.json fails a check, is expired or older than seen before, or the
                release was never signed.
            ServerError: The server is out of reach.
        """
        try:
            check_name(name)
            version_key(version)
        except ReleaseError as error:
            raise TrustError(f"the server offers an impossible release: {error}") from None
        path = f"{name}/{version}"
        with self._translated(self._metadata):
            updater = self._updater()
            updater.refresh()
            durable.sync_files(self._metadata)
            entry = updater.get_targetinfo(f"{path}/{RELEASE}")
            if entry is None:
                raise TrustError(f"{name} {version}: is not signed by this repository's keys")
            if entry.length > MAX_RELEASE_BYTES or "sha256" not in entry.hashes:
                raise TrustError(f"{name} {version}: its release.json is too large, or has no SHA-256")
            data = self._fetcher.download_bytes(self._url(entry), entry.length)
            entry.verify_length_and_hashes(data)
            release = parse_release(data)
            release = release.with_packages(packages_of(path, entry, updater.get_targetinfo))
        if (release.name, release.version) != (name, version):
            raise TrustError(
                f"{name} {version}: its release.json is that of {release.name} {release.version}"
            )
        return release

    def download(self, release: Release, package: Package, progress: Progress | None = None) -> Path:
        """Fetches a package, resuming where an earlier try was cut off; keeps one package at a time.

        Args:
            release: From `release`.
            package: One of its packages.
            progress: Told of bytes received.

        Returns:
            The verified file; it is replaced by the next download.

        Raises:
            TrustError: It is not what was signed; what was received is removed.
            ServerError: The server is out of reach or cut the transfer; what came is kept for the next try.
            PackageError: The disk does not take it.
        """
        if package.size_bytes > MAX_TOTAL_BYTES:
            raise TrustError(
                f"{package.filename}: {package.size_bytes} bytes are more than any package may have"
            )
        path = f"{release.name}/{release.version}/{package.filename}"
        entry = TargetFile(package.size_bytes, {"sha256": package.sha256}, path)
        final = self._downloads / f"{package.sha256}.ewpk"
        part = self._downloads / f"{package.sha256}.part"
        with self._translated(self._downloads):
            self._remove_others(final, part)
            if final.exists() and _fits(entry, final):
                return final
            final.unlink(missing_ok=True)
            resumed = part.exists()
            self._receive(entry, part, progress)
            if resumed and not _fits(entry, part):
                # What lay here may have been damaged by a power cut: once more, from the beginning.
                part.unlink()
                self._receive(entry, part, progress)
            if not _fits(entry, part):
                part.unlink()
                raise TrustError(f"{path}: the server sent other bytes than were signed; they were removed")
            durable.move_file(part, final)
        return final

    def _receive(self, entry: TargetFile, part: Path, progress: Progress | None) -> None:
        free = shutil.disk_usage(self._downloads).free
        if free < entry.length:
            raise PackageError(
                f"{self._downloads}: {entry.length} bytes are needed, {free} are free; free some"
            )
        try:
            self._fetcher.resume(self._url(entry), part, entry.length, progress)
        except DownloadLengthMismatchError:
            part.unlink()
            raise

    def _updater(self) -> Updater:
        """A fresh updater: each refreshes once."""
        updater = Updater(
            str(self._metadata),
            self._metadata_url,
            fetcher=self._fetcher,
            config=UpdaterConfig(targets_max_length=MAX_METADATA_BYTES),
            bootstrap=self._root,
        )
        # python-tuf has no parameter for the clock.
        updater._trusted_set.reference_time = self._now()  # noqa: SLF001
        return updater

    def _url(self, entry: TargetFile) -> str:
        return f"{self._targets_url}/{quote(content_path(entry.path, entry.hashes['sha256']))}"

    def _remove_others(self, *keep: Path) -> None:
        for path in self._downloads.iterdir():
            if path not in keep:
                path.unlink()

    @contextmanager
    def _translated(self, folder: Path) -> Iterator[None]:
        """Errors of python-tuf, and of the disk that `folder` is on, as ours."""
        try:
            yield
        except ReleaseError as error:
            raise TrustError(f"{self._metadata_url}: {error}") from error
        except ExpiredMetadataError as error:
            raise TrustError(
                f"{self._metadata_url}: {error}; the server is frozen, or this device's clock is wrong"
            ) from error
        except LengthOrHashMismatchError as error:
            raise TrustError(f"{self._metadata_url}: was tampered with: {error}") from error
        except TufError as error:
            raise TrustError(
                f"{self._metadata_url}: cannot be trusted: {str(error) or type(error).__name__}"
            ) from error
        except DownloadLengthMismatchError as error:
            raise TrustError(f"{self._metadata_url}: sends more than was signed: {error}") from error
        except DownloadHTTPError as error:
            raise ServerError(str(error), status=error.status_code) from error
        except DownloadError as error:
            raise ServerError(f"{error}") from error
        except OSError as error:
            raise PackageError(f"{folder}: cannot be written: {error}") from error


def _fits(entry: TargetFile, path: Path) -> bool:
    try:
        with path.open("rb") as file:
            entry.verify_length_and_hashes(file)
    except LengthOrHashMismatchError:
        return False
    return True
