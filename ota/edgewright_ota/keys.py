"""The private keys of a repository: one ed25519 key for each TUF role, readable by their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgewright_ota import durable
from edgewright_ota.errors import RepositoryError

ROLES = ("root", "targets", "snapshot", "timestamp")

MAX_KEY_BYTES = 1 << 16


def make_keys(folder: Path) -> dict[str, CryptoSigner]:
    """Makes the keys that are missing and loads them all.

    Raises:
        RepositoryError: A key that is there is unsafe or damaged.
    """
    durable.make_folders(folder, mode=0o700)
    signers = {}
    for role in ROLES:
        path = _path(folder, role)
        if not path.exists():
            durable.write_file(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
        signers[role] = load_key(folder, role)
    return signers


def has_key(folder: Path, role: str) -> bool:
    """Whether the private key of a role is here; it may live on another machine."""
    return _path(folder, role).exists()


def load_key(folder: Path, role: str, public: Key | None = None) -> CryptoSigner:
    """The signer of a role.

    Args:
        folder: Where the keys lie.
        role: One of `ROLES`.
        public: What root.json says its public half is; None to trust the file.

    Raises:
        RepositoryError: The key is missing, readable by others, damaged, or not the one in root.json.
    """
    path = _path(folder, role)
    _refuse_shared(folder)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            _refuse_open_mode(path, os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_KEY_BYTES)
    except FileNotFoundError:
        raise RepositoryError(
            f"{path}: the {role} key is not here; publish where the keys are, or restore them from a backup"
        ) from None
    except OSError as error:
        raise RepositoryError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        private = load_pem_private_key(data, password=None)
        known = public if isinstance(public, SSlibKey) else None
        return CryptoSigner(private, known)
    except (ValueError, TypeError, UnsupportedAlgorithm, SecuresystemslibError) as error:
        raise RepositoryError(
            f"{path}: is not the {role} key that root.json names; restore it ({error})"
        ) from None


def _path(folder: Path, role: str) -> Path:
    return folder / f"{role}.pem"


def _refuse_shared(folder: Path) -> None:
    if folder.is_dir():
        _refuse_open_mode(folder, folder.stat().st_mode)


def _refuse_open_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        wanted = "700" if stat.S_ISDIR(mode) else "600"
        raise RepositoryError(
            f"{path}: private keys must not be open to others (mode {stat.S_IMODE(mode):o}); "
            f"run chmod {wanted} on it, and make new keys if others could have read it"
        )
