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
import stat
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
_PRODUCER = re.compile(r"[ -~]{1,256}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES = frozenset({PLAN, WEIGHTS, ONNX, TFLITE, GOLDEN})
_REQUIRED = frozenset({WEIGHTS, ONNX, GOLDEN})
_CHUNK = 1 << 20
_ENCRYPTED = 1  # bit of a zip member's flags
_NPY_HEADER = re.compile(
    rb"\{'descr': '<(f4|i8)', 'fortran_order': False, 'shape': \(((?:\d{1,10},? ?){1,8})\), \} *\n"
)

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: Its name in `Runner.run`.
        shape: None is the batch, any size from 1 up; it comes first.
        dtype: "float32"; or "int64" for an input of row numbers, which has no grid: scale 0.0, zero point 0.
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
        """Inputs and the native engine's exact outputs for them, by name, of the ports' dtypes, batch first.

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
        if not os.path.lexists(file):
            return None
        data = _json(file, _read(file, MAX_REPORT_BYTES))
        if data.get("artifact") != self.digest:
            raise ArtifactError(f"{file}: is about another artifact; run `edgewright verify` again")
        return data


def encode_golden(inputs: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """golden.npz with the keys `input.NAME` and `output.NAME`; the same arrays give the same bytes.

    Args:
        inputs: By name, float32 or int64, batch first.
        outputs: The same, float32.
    """
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
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_GOLDEN_BYTES:
                raise ArtifactError(f"{where}: unpacks to more than {MAX_GOLDEN_BYTES} bytes")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                    raise ValueError(f"{member.filename} is packed or encrypted; members are stored")
                kind, _, name = member.filename.removesuffix(".npy").partition(".")
                {"input": inputs, "output": outputs}[kind][name] = _array(archive.read(member))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{where}: not readable as golden vectors ({error})") from None
    if not inputs or not outputs:
        raise ArtifactError(f"{where}: holds no inputs or no outputs")
    return inputs, outputs


def _array(data: bytes) -> npt.NDArray[Any]:
    """A `.npy` member: its own header is not trusted to say how much memory to take."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a .npy header that is not of version 1.0")
    header = _NPY_HEADER.fullmatch(stream.read(int.from_bytes(stream.read(2), "little")))
    if header is None:
        raise ValueError("a .npy header that is not of a float32 or int64 array in C order")
    dtype = np.dtype(f"<{header[1].decode()}")
    shape = tuple(int(n) for n in header[2].split(b",") if n.strip())
    if not shape or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape).copy()


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

    Args:
        path: The directory.
        name: The model's name, which releases carry.
        producer: The program and version that writes it.
        targets: Names of the targets it is made for.
        inputs: In the order of the graph.
        outputs: In the order of the graph.
        files: Contents by file name.

    Returns:
        The artifact, opened.

    Raises:
        ArtifactError: `path` holds something that is not an artifact.
        ValueError: A name, a port or a set of files that the format does not allow.
    """
    root = Path(path).absolute()
    check_place(root, name)
    if unknown := set(files) - _FILES:
        raise ValueError(f"no artifact has a file {min(unknown)!r}")
    if missing := _REQUIRED - files.keys():
        raise ValueError(f"an artifact needs {min(missing)!r}")
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
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"artifact name {name!r}: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if not os.path.lexists(root):
        return
    # Many directories hold a manifest.json that is none of ours, and files that nobody could bring back.
    ours = root.is_dir() and (root / MANIFEST).is_file()
    if not ours or {e.name for e in root.iterdir()} - {MANIFEST, REPORT, *_FILES}:
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


def _parse(root: Path, manifest: bytes) -> Artifact:
    file = root / MANIFEST
    data = _json(file, manifest)
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise ArtifactError(f"{file}: format {data.get('format')!r}; this version reads format {FORMAT}")
    try:
        files = {
            str(n): ArtifactFile(
                size_bytes=_integer(f["size_bytes"], MAX_FILE_BYTES), sha256=_digest(f["sha256"])
            )
            for n, f in data["files"].items()
        }
        artifact = Artifact(
            path=root,
            digest=hashlib.sha256(manifest).hexdigest(),
            name=_match(_NAME, data["name"]),
            producer=_match(_PRODUCER, data["producer"]),
            targets=tuple(_match(_NAME, t) for t in _list(data["targets"])),
            inputs=_ports(data["inputs"]),
            outputs=_float32_ports(data["outputs"]),
            files=files,
        )
    except KeyError as error:
        raise ArtifactError(f"{file}: the key {error} is missing; it is damaged") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{file}: {error}; it is damaged") from None
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


def _ports(data: object) -> tuple[Port, ...]:
    ports = tuple(_port(p) for p in _list(data)[: MAX_PORTS + 1])
    if not 0 < len(ports) <= MAX_PORTS:
        raise ValueError(f"1 to {MAX_PORTS} inputs and outputs are needed")
    if len({p.name for p in ports}) < len(ports):
        raise ValueError("two inputs or two outputs have the same name")
    return ports


def _float32_ports(data: object) -> tuple[Port, ...]:
    ports = _ports(data)
    if any(p.dtype != "float32" for p in ports):
        raise ValueError("outputs are float32")
    return ports


def _port(data: dict[str, Any]) -> Port:
    batch, *dims = _list(data["shape"])
    if batch is not None or not 1 <= len(dims) < MAX_RANK:
        raise ValueError(f"shape {data['shape']!r}: null for the batch, then 1 to {MAX_RANK - 1} sizes")
    dtype = data["dtype"]
    if dtype not in ("float32", "int64"):
        raise ValueError(f"dtype {dtype!r} is neither float32 nor int64")
    if not isinstance(data["name"], str) or not 0 < len(data["name"].encode()) <= 255:
        raise ValueError("a port's name has 1 to 255 bytes")
    scale, minimum, maximum = (_number(data[k]) for k in ("scale", "minimum", "maximum"))
    if dtype == "int64" and (scale != 0 or data["zero_point"] != 0):
        raise ValueError(f"port {data['name']!r}: int64 has no scale and no zero point")
    if not (math.isfinite(scale) and math.isfinite(minimum) and math.isfinite(maximum)):
        raise ValueError(f"port {data['name']!r}: scale and range must be finite, the scale positive")
    if dtype == "float32" and scale <= 0:
        raise ValueError(f"port {data['name']!r}: scale and range must be finite, the scale positive")
    if minimum > maximum:
        raise ValueError(f"port {data['name']!r}: its range {minimum} to {maximum} is the wrong way round")
    return Port(
        name=data["name"],
        shape=(None, *(_integer(d, 1 << 20, least=1) for d in dims)),
        dtype=dtype,
        scale=scale,
        zero_point=_integer(data["zero_point"], 255),
        minimum=minimum,
        maximum=maximum,
    )


def _integer(value: object, most: int, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r:.40} is not a whole number from {least} to {most}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is not a list")
    return value


def _match(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.80} is not of the form {pattern.pattern}")
    return value


def _digest(value: object) -> str:
    return _match(_SHA256, value)


def _json(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: not JSON ({error}); it is damaged") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{file}: not a JSON object; it is damaged")
    return cast(dict[str, Any], value)


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
