"""How releases lie among the targets of a TUF repository; the repository writes it, the client reads it.

    NAME/VERSION/release.json      its custom field lists the bases of the deltas: {"bases": ["1.0.0"]}
    NAME/VERSION/full.ewpk
    NAME/VERSION/from-BASE.ewpk

On disk and on the wire each file's name carries its digest: NAME/VERSION/SHA256.full.ewpk.
"""

from __future__ import annotations

from collections.abc import Callable

from tuf.api.metadata import TargetFile

from edgewright_ota.errors import ReleaseError
from edgewright_ota.release import FULL, Package, delta_filename, version_key

RELEASE = "release.json"
MAX_METADATA_BYTES = 5_000_000
MAX_BASES = 1000


def content_path(target: str, sha256: str) -> str:
    """The path under targets/ of the target's bytes."""
    folder, _, name = target.rpartition("/")
    return f"{folder}/{sha256}.{name}"


def packages_of(
    path: str, entry: TargetFile, find: Callable[[str], TargetFile | None]
) -> tuple[Package, ...]:
    """The packages that signed metadata lists for a release, the full one first.

    Args:
        path: NAME/VERSION.
        entry: The signed entry of its release.json.
        find: Gives the signed entry of a target path.

    Raises:
        ReleaseError: The list of bases is not one, or too long.
    """
    custom = entry.custom
    bases = custom.get("bases", []) if isinstance(custom, dict) else []
    if not isinstance(bases, list) or len(bases) > MAX_BASES or not all(isinstance(b, str) for b in bases):
        raise ReleaseError(f"{path}: its list of bases is not one")
    for base in bases:
        version_key(base)
    found = []
    for base in [None, *bases]:
        filename = delta_filename(base) if base else FULL
        target = find(f"{path}/{filename}")
        if target is not None and "sha256" in target.hashes:
            sha256 = target.hashes["sha256"]
            found.append(Package(filename=filename, base=base, size_bytes=target.length, sha256=sha256))
    return tuple(found)
