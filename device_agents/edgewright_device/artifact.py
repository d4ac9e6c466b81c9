"""The artifact: a directory that holds one compressed model, ready for targets.

docs/artifact-format.md specifies the format. Every byte is untrusted: size, then digest, then parse.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright_device.errors import ArtifactError
from edgewright_device.golden import MAX_GOLDEN_BYTES, Arrays, decode_golden
from edgewright_device.manifest import (
    FILE,
    GOLDEN,
    MANIFEST,
    MAX_FILE_BYTES,
    NAME,
    PLAN,
    REQUIRED,
    ArtifactFile,
    Lengths,
    Manifest,
    Part,
    Port,
    parse_json,
)

REPORT = "report.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_REPORT_BYTES = 16 << 20

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An opened artifact: its manifest, with every file it lists checked against its digest.

    Attributes:
        path: The directory.
        digest: SHA-256 (hex) of manifest.json, which lists the digest of every other file but report.json.
        name: The model's name; releases carry it.
        producer: The program and version that wrote it.
        targets: Names of the targets it was made for.
        inputs: What `Runner.run` takes.
        outputs: What it gives.
        files: By file name.
        parts: In the order they run, where the native engine and ONNX Runtime share the work; else empty.
        lengths: Of sequences, where the model takes several.
    """

    path: Path
    digest: str
    name: str
    producer: str
    targets: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: Mapping[str, ArtifactFile]
    parts: tuple[Part, ...] = ()
    lengths: Lengths | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Opens a directory and checks all of it.

        Raises:
            ArtifactError: Missing, damaged, incomplete, or with a file that does not belong.
        """
        root = Path(path)
        if not root.is_dir():
            what = "is a file, not a directory" if root.exists() else "does not exist"
            raise ArtifactError(
                f"{root}: {what}; an artifact is the directory that `edgewright export` writes"
            )
        manifest = _read(root / MANIFEST, MAX_MANIFEST_BYTES)
        artifact = _parse(root, manifest)
        for entry in sorted(root.iterdir()):
            if entry.name not in {MANIFEST, REPORT, *artifact.files}:
                raise ArtifactError(
                    f"{entry}: does not belong to the artifact; its manifest does not list it"
                )
        for name, listed in artifact.files.items():
            file = root / name
            size = _regular(file).st_size
            if size != listed.size_bytes:
                raise ArtifactError(
                    f"{file}: {size} bytes, {MANIFEST} says {listed.size_bytes}; it is damaged"
                )
            if _sha256(file) != listed.sha256:
                raise ArtifactError(
                    f"{file}: its SHA-256 is not the one in {MANIFEST}; it is damaged or was changed"
                )
        return artifact

    @property
    def size_bytes(self) -> int:
        """Bytes of all files the manifest lists, and the manifest."""
        return sum(f.size_bytes for f in self.files.values()) + (self.path / MANIFEST).stat().st_size

    @property
    def native(self) -> bool:
        """Whether the native engine can run it, or a part of it."""
        return PLAN in self.files or bool(self.parts)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of one listed file.

        Raises:
            ArtifactError: Not in this artifact, larger than `limit` bytes, or changed since it was opened.
        """
        if name not in self.files:
            raise ArtifactError(f"{self.path}: has no {name}")
        data = _read(self.path / name, limit)
        if hashlib.sha256(data).hexdigest() != self.files[name].sha256:
            raise ArtifactError(f"{self.path / name}: changed since the artifact was opened")
        return data

    def golden(self, length: int | None = None) -> tuple[Arrays, Arrays]:
        """Inputs and the exact outputs for them, by name, of the ports' dtypes, batch first.

        Args:
            length: One of `lengths.sizes`; the largest if left out.

        Raises:
            ArtifactError: golden.npz is damaged.
        """
        largest = self.lengths is None or length in (None, self.lengths.sizes[-1])
        suffix = "" if largest else f"-{length}"
        kinds = self._golden()
        if not kinds.keys() >= {f"input{suffix}", f"output{suffix}"}:
            raise ArtifactError(f"{self.path / GOLDEN}: holds nothing of length {length}")
        return kinds[f"input{suffix}"], kinds[f"output{suffix}"]

    def golden_values(self) -> Arrays:
        """Every value that passes between parts, for the golden inputs, by name; those and the outputs too.

        Raises:
            ArtifactError: golden.npz is damaged, or one is missing.
        """
        kinds = self._golden()
        values = {**kinds.get("value", {}), **kinds["input"], **kinds["output"]}
        for part in self.parts:
            if missing := {*part.inputs, *part.outputs} - values.keys():
                raise ArtifactError(f"{self.path / GOLDEN}: holds nothing of {min(missing)!r}")
        return values

    def _golden(self) -> dict[str, Arrays]:
        return decode_golden(self.read(GOLDEN, MAX_GOLDEN_BYTES), where=str(self.path / GOLDEN))

    def report(self) -> dict[str, Any] | None:
        """The verification report as JSON data, or None if there is none.

        Raises:
            ArtifactError: It is not JSON, or it is about another artifact.
        """
        file = self.path / REPORT
        if not os.path.lexists(file):
            return None
        try:
            data = parse_json(_read(file, MAX_REPORT_BYTES))
        except ValueError as error:
            raise ArtifactError(f"{file}: {error}") from None
        if data.get("artifact") != self.digest:
            raise ArtifactError(f"{file}: is about another artifact; run `edgewright verify` again")
        return data


def write_artifact(
    path: str | os.PathLike[str],
    *,
    name: str,
    producer: str,
    targets: tuple[str, ...],
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    files: Mapping[str, bytes],
    parts: tuple[Part, ...] = (),
    lengths: Lengths | None = None,
) -> Artifact:
    """Writes an artifact directory whole or not at all, and opens it.

    An artifact that is there already is replaced; anything else at `path` is left alone.

    Args:
        path: The directory.
        name: The model's name, which releases carry.
        producer: The program and version that writes it.
        targets: Names of the targets it is made for.
        inputs: In the order of the graph.
        outputs: In the order of the graph.
        files: Contents by file name.
        parts: As in `Artifact`.
        lengths: As in `Artifact`.

    Returns:
        The artifact, opened.

    Raises:
        ArtifactError: `path` holds something that is not an artifact.
        ValueError: A name, a port or a set of files that the format does not allow.
    """
    root = Path(path).absolute()
    check_place(root, name)
    if unknown := {n for n in files if not FILE.fullmatch(n)}:
        raise ValueError(f"no artifact has a file {min(unknown)!r}")
    if missing := REQUIRED - files.keys():
        raise ValueError(f"an artifact needs {min(missing)!r}")
    text = Manifest(
        name=name,
        producer=producer,
        targets=targets,
        inputs=inputs,
        outputs=outputs,
        files={
            n: ArtifactFile(size_bytes=len(d), sha256=hashlib.sha256(d).hexdigest()) for n, d in files.items()
        },
        parts=parts,
        lengths=lengths,
    ).to_bytes()
    try:
        _parse(root, text)
    except ArtifactError as error:
        raise ValueError(f"not an artifact that could be opened again: {error}") from None
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for file_name, data in {**files, MANIFEST: text}.items():
            _write(staging / file_name, data)
        staging.chmod(0o755)
        _fsync(staging)
        Artifact.open(staging)
        _swap_in(staging, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Artifact.open(root)


def check_place(path: str | os.PathLike[str], name: str) -> None:
    """Whether an artifact of this name may be written there.

    Raises:
        ArtifactError: `path` holds something that is not an artifact.
        ValueError: The format does not allow the name.
    """
    root = Path(path)
    if not NAME.fullmatch(name):
        raise ValueError(
            f"artifact name {name!r}: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if not os.path.lexists(root):
        return
    # Many directories hold a manifest.json that is none of ours, and files that nobody could bring back.
    ours = root.is_dir() and (root / MANIFEST).is_file()
    if not ours or any(
        e.name not in {MANIFEST, REPORT} and not FILE.fullmatch(e.name) for e in root.iterdir()
    ):
        raise ArtifactError(f"{root}: exists and is not an artifact; choose another place or remove it")


def write_report(artifact: Artifact, report: bytes) -> None:
    """Puts report.json beside the manifest, whole or not at all."""
    # Beside the directory: left inside by a power cut, it would make the artifact one that no reader opens.
    root = artifact.path.absolute()
    temporary = root.with_name(f".{root.name}.{REPORT}.tmp")
    try:
        _write(temporary, report)
        temporary.replace(artifact.path / REPORT)
        _fsync(artifact.path)
    finally:
        temporary.unlink(missing_ok=True)


def _swap_in(staging: Path, root: Path) -> None:
    old = root.with_name(f".{root.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaces = root.exists()
    if replaces:
        root.rename(old)
    try:
        staging.rename(root)
    except BaseException:
        if replaces:
            old.rename(root)
        raise
    _fsync(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def _parse(root: Path, data: bytes) -> Artifact:
    try:
        found = Manifest.parse(data)
    except ValueError as error:
        raise ArtifactError(f"{root / MANIFEST}: {error}") from None
    return Artifact(
        path=root,
        digest=hashlib.sha256(data).hexdigest(),
        name=found.name,
        producer=found.producer,
        targets=found.targets,
        inputs=found.inputs,
        outputs=found.outputs,
        files=found.files,
        parts=found.parts,
        lengths=found.lengths,
    )


def _read(file: Path, limit: int) -> bytes:
    _regular(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise ArtifactError(f"{file}: larger than {limit} bytes")
    return data


def _regular(file: Path) -> os.stat_result:
    """Refuses what is not a plain file: a link may lead anywhere, and a pipe is never read to its end."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        raise ArtifactError(f"{file}: missing; this is no artifact, or an incomplete one") from None
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{file}: not a plain file, such as artifacts are made of")
    return status


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _fsync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
