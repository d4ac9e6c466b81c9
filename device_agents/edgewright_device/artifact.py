"""The artifact: a directory that holds one compressed model, ready for targets.

docs/artifact-format.md specifies the format. Every byte is untrusted: size, then digest, then parse.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from edgewright_device.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
PLAN = "plan.bin"
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
TFLITE = "model.tflite"
GOLDEN = "golden.npz"
REPORT = "report.json"

MAX_MANIFEST_BYTES = 1 << 20
MAX_REPORT_BYTES = 16 << 20
MAX_FILE_BYTES = 8 << 30
MAX_GOLDEN_BYTES = 64 << 20
MAX_PORTS = 64
MAX_RANK = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILES = frozenset({PLAN, WEIGHTS, ONNX, TFLITE, GOLDEN})
_REQUIRED = frozenset({WEIGHTS, ONNX, GOLDEN})
_CHUNK = 1 << 20

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: Its name in `Runner.run`.
        shape: None is the batch, any size from 1 up; it comes first.
        dtype: "float32".
        scale: Step between two neighbouring integers inside the integer program, in the port's unit.
        zero_point: The integer, 0..255, that stands for 0.0.
        minimum: Smallest value seen in calibration.
        maximum: Largest value seen in calibration.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float
    zero_point: int
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """Size and SHA-256 (hex) of one file of an artifact."""

    size_bytes: int
    sha256: str


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
    """

    path: Path
    digest: str
    name: str
    producer: str
    targets: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: Mapping[str, ArtifactFile]

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
        for entry in root.iterdir():
            if entry.name not in {MANIFEST, REPORT, *artifact.files}:
                raise ArtifactError(
                    f"{entry}: does not belong to the artifact; its manifest does not list it"
                )
        for name, listed in artifact.files.items():
            file = root / name
            if file.is_symlink() or not file.is_file():
                raise ArtifactError(f"{file}: listed in {MANIFEST} but missing; export or download it again")
            size = file.stat().st_size
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

    def golden(self) -> tuple[Arrays, Arrays]:
        """Inputs and the exact outputs of the native engine for them, by name, float32, batch first.

        Raises:
            ArtifactError: golden.npz is damaged.
        """
        return decode_golden(self.read(GOLDEN, MAX_GOLDEN_BYTES), where=str(self.path / GOLDEN))

    def report(self) -> dict[str, Any] | None:
        """The verification report as JSON data, or None if there is none.

        Raises:
            ArtifactError: It is not JSON, or it is about another artifact.
        """
        file = self.path / REPORT
        if not file.exists():
            return None
        data = _json(file, _read(file, MAX_REPORT_BYTES))
        if data.get("artifact") != self.digest:
            raise ArtifactError(f"{file}: is about another artifact; run `edgewright verify` again")
        return data


def encode_golden(inputs: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """golden.npz with the keys `input.NAME` and `output.NAME`; the same arrays give the same bytes."""
    arrays = {f"input.{k}": v for k, v in inputs.items()} | {f"output.{k}": v for k, v in outputs.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for key, value in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0)), member.getvalue()
            )
    return out.getvalue()


def decode_golden(data: bytes, *, where: str = GOLDEN) -> tuple[Arrays, Arrays]:
    """Inputs and outputs in golden.npz.

    Raises:
        ArtifactError: Damaged, or it would unpack to more than 64 MiB.
    """
    inputs: Arrays = {}
    outputs: Arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(m.file_size for m in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ArtifactError(f"{where}: unpacks to more than {MAX_GOLDEN_BYTES} bytes")
            for member in archive.namelist():
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                kind, _, name = member.removesuffix(".npy").partition(".")
                {"input": inputs, "output": outputs}[kind][name] = array
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{where}: not readable as golden vectors ({error})") from None
    if not inputs or not outputs:
        raise ArtifactError(f"{where}: holds no inputs or no outputs")
    return inputs, outputs


def write_artifact(
    path: str | os.PathLike[str],
    *,
    name: str,
    producer: str,
    targets: tuple[str, ...],
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    files: Mapping[str, bytes],
) -> Artifact:
    """Writes an artifact directory whole or not at all, and opens it.

    An artifact that is there already is replaced; anything else at `path` is left alone.

    Raises:
        ArtifactError: `path` holds something that is not an artifact.
        ValueError: A name or a set of files that the format does not allow.
    """
    root = Path(path).absolute()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"artifact name {name!r}: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if root.exists() and not (root / MANIFEST).is_file():
        raise ArtifactError(f"{root}: exists and is not an artifact; choose another place or remove it")
    if unknown := set(files) - _FILES:
        raise ValueError(f"no artifact has a file {min(unknown)!r}")
    manifest = {
        "format": FORMAT,
        "name": name,
        "producer": producer,
        "targets": list(targets),
        "inputs": [_port_json(p) for p in inputs],
        "outputs": [_port_json(p) for p in outputs],
        "files": {
            n: {"size_bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
            for n, d in sorted(files.items())
        },
    }
    text = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
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


def write_report(artifact: Artifact, report: bytes) -> None:
    """Puts report.json beside the manifest, whole or not at all."""
    temporary = artifact.path / f".{REPORT}.tmp"
    try:
        _write(temporary, report)
        temporary.replace(artifact.path / REPORT)
        _fsync(artifact.path)
    finally:
        temporary.unlink(missing_ok=True)


def _swap_in(staging: Path, root: Path) -> None:
    old = root.with_name(f".{root.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        root.rename(old)
    staging.rename(root)
    _fsync(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def _parse(root: Path, manifest: bytes) -> Artifact:
    file = root / MANIFEST
    data = _json(file, manifest)
    if data.get("format") != FORMAT:
        raise ArtifactError(f"{file}: format {data.get('format')!r}; this version reads format {FORMAT}")
    try:
        files = {
            str(n): ArtifactFile(
                size_bytes=_integer(f["size_bytes"], MAX_FILE_BYTES), sha256=_digest(f["sha256"])
            )
            for n, f in dict(data["files"]).items()
        }
        artifact = Artifact(
            path=root,
            digest=hashlib.sha256(manifest).hexdigest(),
            name=_match(_NAME, data["name"]),
            producer=str(data["producer"])[:256],
            targets=tuple(_match(_NAME, t) for t in data["targets"]),
            inputs=tuple(_port(p) for p in data["inputs"][: MAX_PORTS + 1]),
            outputs=tuple(_port(p) for p in data["outputs"][: MAX_PORTS + 1]),
            files=files,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file}: {type(error).__name__}: {error}; it is damaged") from None
    if not (0 < len(artifact.inputs) <= MAX_PORTS and 0 < len(artifact.outputs) <= MAX_PORTS):
        raise ArtifactError(f"{file}: needs 1 to {MAX_PORTS} inputs and outputs")
    if missing := _REQUIRED - files.keys():
        raise ArtifactError(f"{file}: does not list {min(missing)}; the artifact is incomplete")
    if unknown := files.keys() - _FILES:
        raise ArtifactError(f"{file}: lists {min(unknown)!r}, which no artifact has")
    return artifact


def _port_json(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": port.dtype,
        "scale": port.scale,
        "zero_point": port.zero_point,
        "minimum": port.minimum,
        "maximum": port.maximum,
    }


def _port(data: dict[str, Any]) -> Port:
    batch, *dims = data["shape"]
    if batch is not None or not 1 <= len(dims) < MAX_RANK:
        raise ValueError(f"shape {data['shape']!r}: null for the batch, then 1 to {MAX_RANK - 1} sizes")
    if data["dtype"] != "float32":
        raise ValueError(f"dtype {data['dtype']!r} is not float32")
    if not isinstance(data["name"], str) or not 0 < len(data["name"]) <= 255:
        raise ValueError("a port's name has 1 to 255 characters")
    scale, minimum, maximum = (float(data[k]) for k in ("scale", "minimum", "maximum"))
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(minimum) and math.isfinite(maximum)):
        raise ValueError(f"port {data['name']!r}: scale and range must be finite, the scale positive")
    return Port(
        name=data["name"],
        shape=(None, *(_integer(d, 1 << 20) for d in dims)),
        dtype="float32",
        scale=scale,
        zero_point=_integer(data["zero_point"], 255),
        minimum=minimum,
        maximum=maximum,
    )


def _integer(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from 0 to {most}")
    return value


def _match(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not a name")
    return value


def _digest(value: object) -> str:
    return _match(re.compile(r"[0-9a-f]{64}"), value)


def _json(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: not JSON ({error}); it is damaged") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{file}: not a JSON object; it is damaged")
    return cast(dict[str, Any], value)


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise ArtifactError(f"{file}: missing; this is no artifact, or an incomplete one") from None
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise ArtifactError(f"{file}: larger than {limit} bytes")
    return data


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
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
