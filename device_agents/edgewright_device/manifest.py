"""manifest.json: what an artifact is made of. Untrusted: every name, number and count is checked.

docs/artifact-format.md specifies it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

FORMATS = (1, 2)  # 2: parts, or lengths
MANIFEST = "manifest.json"
PLAN = "plan.bin"
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
TFLITE = "model.tflite"
SYMMETRIC = "symmetric.onnx"
GOLDEN = "golden.npz"

MAX_FILE_BYTES = 8 << 30
MAX_PORTS = 64
MAX_RANK = 8
MAX_PARTS = 64
MAX_LENGTHS = 16
MAX_OPERATORS = 64
MAX_SIZE = 1 << 20
MOST_TOLERANCE = 0.05

FILE = re.compile(
    r"plan\.bin|weights\.safetensors|model\.onnx|model\.tflite|symmetric\.onnx|golden\.npz"
    r"|part-(?:0|[1-9][0-9]?)\.(?:bin|onnx)|plan-[1-9][0-9]{0,6}\.bin"
)
REQUIRED = frozenset({WEIGHTS, ONNX, GOLDEN})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_PRODUCER = re.compile(r"[ -~]{1,256}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPERATOR = re.compile(r"[A-Za-z0-9_.]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: Its name in `Runner.run`.
        shape: None is the batch, any size from 1 up; it comes first. A later None is the length of a
            sequence, in artifacts that take several.
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
class Part:
    """A part of a model that needs more than one engine; float32 arrays, batch first, go from part to part.

    Attributes:
        file: "part-0.bin", an integer program; or "part-1.onnx", for ONNX Runtime. The number is its place.
        inputs: Names of what it reads: inputs of the model, or outputs of parts before it.
        outputs: Names of what it gives.
        operators: For ONNX Runtime: the kinds of operators that the native engine lacks.
        tolerance: For ONNX Runtime: how far a result may lie from its golden one, as a share of the largest
            magnitude in that; 0.0 for a program, which is exact.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[str, ...] = ()
    tolerance: float = 0.0

    @property
    def native(self) -> bool:
        """Whether it is an integer program."""
        return self.file.endswith(".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of sequences that a model has programs for.

    Attributes:
        sizes: Ascending; plan.bin is the program of the last, plan-N.bin that of N.
        mask: The input whose zeros hide what a shorter sequence is padded with; None where only these lengths
            are taken.
    """

    sizes: tuple[int, ...]
    mask: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What manifest.json says; the attributes are those of `Artifact`."""

    name: str
    producer: str
    targets: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: Mapping[str, ArtifactFile]
    parts: tuple[Part, ...] = ()
    lengths: Lengths | None = None

    def to_bytes(self) -> bytes:
        """The file's bytes; format 1 where that is enough."""
        data: dict[str, Any] = {
            "format": 2 if self.parts or self.lengths else 1,
            "name": self.name,
            "producer": self.producer,
            "targets": list(self.targets),
            "inputs": [asdict(p) for p in self.inputs],
            "outputs": [asdict(p) for p in self.outputs],
            "files": {n: asdict(f) for n, f in sorted(self.files.items())},
        }
        if self.parts:
            data["parts"] = [_part_json(p) for p in self.parts]
        if self.lengths:
            data["lengths"] = asdict(self.lengths)
        return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Reads the file.

        Raises:
            ValueError: What is wrong, in a sentence.
        """
        found = parse_json(data)
        number = found.get("format")
        if type(number) is not int or number not in FORMATS:
            raise ValueError(f"format {number!r:.40}; this version reads formats 1 and 2")
        try:
            made = _manifest(found, number)
        except KeyError as error:
            raise ValueError(f"the key {error} is missing; it is damaged") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{error}; it is damaged") from None
        if missing := REQUIRED - made.files.keys():
            raise ValueError(f"does not list {min(missing)}; the artifact is incomplete")
        if unknown := {n for n in made.files if not FILE.fullmatch(n)}:
            raise ValueError(f"lists {min(unknown)!r:.80}, which no artifact has")
        if wrong := made.files.keys() ^ _expected(made):
            raise ValueError(f"{min(wrong)} is listed without being needed, or needed without being listed")
        return made


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: It is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); it is damaged") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object; it is damaged")
    return cast(dict[str, Any], value)


def _manifest(data: Mapping[str, Any], number: int) -> Manifest:
    files = {
        str(n): ArtifactFile(
            size_bytes=_integer(f["size_bytes"], MAX_FILE_BYTES), sha256=_match(_SHA256, f["sha256"])
        )
        for n, f in data["files"].items()
    }
    lengths = _lengths(data["lengths"]) if number > 1 and "lengths" in data else None
    inputs, outputs = (_ports(data[key], free=lengths is not None) for key in ("inputs", "outputs"))
    if any(p.dtype != "float32" for p in outputs):
        raise ValueError("outputs are float32")
    parts = _parts(data["parts"], inputs, outputs) if number > 1 and "parts" in data else ()
    if number > 1 and bool(parts) == bool(lengths):
        raise ValueError("format 2 has either parts or lengths")
    if lengths:
        _check_lengths(lengths, inputs)
    return Manifest(
        name=_match(NAME, data["name"]),
        producer=_match(_PRODUCER, data["producer"]),
        targets=tuple(_match(NAME, t) for t in _list(data["targets"])),
        inputs=inputs,
        outputs=outputs,
        files=files,
        parts=parts,
        lengths=lengths,
    )


def _expected(made: Manifest) -> set[str]:
    """The files that this manifest must list, as far as it is free to list others."""
    if made.parts:
        programs = {p.file for p in made.parts}
    elif made.lengths:
        programs = {PLAN, *(f"plan-{n}.bin" for n in made.lengths.sizes[:-1])}
    else:
        programs = {PLAN} & made.files.keys()
    return {*REQUIRED, *programs, *({TFLITE, SYMMETRIC} & made.files.keys())}


# Parts


def _part_json(part: Part) -> dict[str, Any]:
    data: dict[str, Any] = {"inputs": list(part.inputs), "outputs": list(part.outputs)}
    if part.native:
        return {"plan": part.file, **data}
    return {"onnx": part.file, "operators": list(part.operators), "tolerance": part.tolerance, **data}


def _parts(data: object, inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[Part, ...]:
    parts = tuple(_part(p, i) for i, p in enumerate(_list(data)[: MAX_PARTS + 1]))
    if not 2 <= len(parts) <= MAX_PARTS:
        raise ValueError(f"2 to {MAX_PARTS} parts are needed")
    if not any(p.native for p in parts):
        raise ValueError("no part is an integer program")
    given = {p.name for p in inputs}
    whole = {p.name for p in inputs if p.dtype != "float32"}
    for part in parts:
        for name in part.inputs:
            if name not in given:
                raise ValueError(f"{part.file} reads {name!r:.80}, which nothing before it gives")
        for name in part.outputs:
            if name in given:
                raise ValueError(f"{part.file} gives {name!r:.80}, which is given before")
        given.update(part.outputs)
    if missing := {p.name for p in outputs} - (given - whole):
        raise ValueError(f"no part gives the output {min(missing)!r:.80}")
    return parts


def _part(data: dict[str, Any], place: int) -> Part:
    kind = "plan" if "plan" in data else "onnx"
    file = f"part-{place}.{'bin' if kind == 'plan' else 'onnx'}"
    if data[kind] != file or ("plan" in data and "onnx" in data):
        raise ValueError(f"part {place} must be in {file!r}, and in that alone")
    operators: tuple[str, ...] = ()
    tolerance = 0.0
    if kind == "onnx":
        operators = tuple(_match(_OPERATOR, o) for o in _list(data["operators"])[: MAX_OPERATORS + 1])
        tolerance = _number(data["tolerance"])
        if not 0 < len(operators) <= MAX_OPERATORS:
            raise ValueError(f"{file}: 1 to {MAX_OPERATORS} operators are needed")
        if not 0 < tolerance <= MOST_TOLERANCE:
            raise ValueError(
                f"{file}: its tolerance {tolerance!r} is not above 0 and at most {MOST_TOLERANCE}"
            )
    return Part(
        file=file,
        inputs=_names(data["inputs"]),
        outputs=_names(data["outputs"]),
        operators=operators,
        tolerance=tolerance,
    )


def _names(data: object) -> tuple[str, ...]:
    names = tuple(_text(n) for n in _list(data)[: MAX_PORTS + 1])
    if not 0 < len(names) <= MAX_PORTS or len(set(names)) < len(names):
        raise ValueError(f"a part has 1 to {MAX_PORTS} inputs and as many outputs, none twice")
    return names


# Lengths


def _lengths(data: dict[str, Any]) -> Lengths:
    sizes = tuple(_integer(n, MAX_SIZE, least=1) for n in _list(data["sizes"])[: MAX_LENGTHS + 1])
    if not 0 < len(sizes) <= MAX_LENGTHS or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"lengths: 1 to {MAX_LENGTHS} sizes are needed, ascending")
    return Lengths(sizes=sizes, mask=None if data["mask"] is None else _text(data["mask"]))


def _check_lengths(lengths: Lengths, inputs: Sequence[Port]) -> None:
    free = {p.name for p in inputs if None in p.shape[1:]}
    if not free:
        raise ValueError("lengths, but no input has one")
    if lengths.mask is not None and lengths.mask not in free:
        raise ValueError(f"the mask {lengths.mask!r:.80} is no input with a length")


# Ports


def _ports(data: object, *, free: bool) -> tuple[Port, ...]:
    ports = tuple(_port(p, free) for p in _list(data)[: MAX_PORTS + 1])
    if not 0 < len(ports) <= MAX_PORTS:
        raise ValueError(f"1 to {MAX_PORTS} inputs and outputs are needed")
    if len({p.name for p in ports}) < len(ports):
        raise ValueError("two inputs or two outputs have the same name")
    return ports


def _port(data: dict[str, Any], free: bool) -> Port:
    batch, *dims = _list(data["shape"])
    if batch is not None or not 1 <= len(dims) < MAX_RANK or dims.count(None) > free:
        raise ValueError(
            f"shape {data['shape']!r:.80}: null for the batch, then 1 to {MAX_RANK - 1} sizes"
            + (", of which one may be null" if free else "")
        )
    dtype = data["dtype"]
    if dtype not in ("float32", "int64"):
        raise ValueError(f"dtype {dtype!r:.40} is neither float32 nor int64")
    name = data["name"]
    if not isinstance(name, str) or not 0 < len(name.encode()) <= 255:
        raise ValueError("a port's name has 1 to 255 bytes")
    scale, minimum, maximum = (_number(data[k]) for k in ("scale", "minimum", "maximum"))
    if dtype == "int64" and (scale != 0 or data["zero_point"] != 0):
        raise ValueError(f"port {name!r}: int64 has no scale and no zero point")
    finite = all(map(math.isfinite, (scale, minimum, maximum)))
    if not finite or (dtype == "float32" and scale <= 0):
        raise ValueError(f"port {name!r}: scale and range must be finite, the scale positive")
    if minimum > maximum:
        raise ValueError(f"port {name!r}: its range {minimum} to {maximum} is the wrong way round")
    return Port(
        name=name,
        shape=(None, *(None if d is None else _integer(d, MAX_SIZE, least=1) for d in dims)),
        dtype=dtype,
        scale=scale,
        zero_point=_integer(data["zero_point"], 255),
        minimum=minimum,
        maximum=maximum,
    )


# Values


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


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode()) <= 255:
        raise ValueError(f"{value!r:.80} is not a name of 1 to 255 bytes")
    return value


def _match(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.80} is not of the form {pattern.pattern}")
    return value
