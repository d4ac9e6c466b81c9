"""A document: what the studio knows about one opened model, as plain data.

Qt-free. Opening a file may import onnx or torch and hash gigabytes, so the window does it in a child process
(`tasks.open_document`); `identify` is cheap and answers at once.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgewright_studio.errors import DocumentError

Kind = Literal["artifact", "onnx", "pt2", "python", "example"]
Shape = tuple[int | str, ...]

KIND_TITLES: dict[Kind, str] = {
    "artifact": "Edgewright artifact",
    "onnx": "ONNX model",
    "pt2": "PyTorch exported program",
    "python": "PyTorch model in Python",
    "example": "Example",
}
SUFFIXES: dict[str, Kind] = {".ew": "artifact", ".onnx": "onnx", ".pt2": "pt2", ".py": "python"}
MAX_SOURCE_BYTES = 4 << 20
# TensorProto.DataType of the ONNX specification.
_ONNX_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    16: "bfloat16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output: its shape, with a name or "?" where a size is open, and a remark."""

    name: str
    shape: Shape
    dtype: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How often something occurs, or how many bytes it has."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a verification report: what, whether it held, and the figure found."""

    name: str
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The summary of an opened model. What a kind of file does not have is empty or None.

    Attributes:
        path: Where it is; empty for a built-in example.
        kind: What it is.
        name: For titles.
        size_bytes: Of the file or directory.
        parameters: Number of stored weights.
        inputs: What the model takes.
        outputs: What it gives.
        operators: Operators by count, most frequent first.
        files: The files of an artifact with their bytes.
        targets: What an artifact was made for.
        checks: What its verification report says; empty when it has none.
        entry_points: Names in a Python file that can give the model.
        facts: Further (label, value) pairs.
    """

    path: str
    kind: Kind
    name: str
    size_bytes: int | None = None
    parameters: int | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    operators: tuple[Count, ...] = ()
    files: tuple[Count, ...] = ()
    targets: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    entry_points: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Document:
        """Reads what `to_json` wrote."""
        tensors = {
            key: tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in data[key])
            for key in ("inputs", "outputs")
        }
        return cls(
            path=data["path"],
            kind=data["kind"],
            name=data["name"],
            size_bytes=data["size_bytes"],
            parameters=data["parameters"],
            inputs=tensors["inputs"],
            outputs=tensors["outputs"],
            operators=tuple(Count(**c) for c in data["operators"]),
            files=tuple(Count(**c) for c in data["files"]),
            targets=tuple(data["targets"]),
            checks=tuple(Check(**c) for c in data["checks"]),
            entry_points=tuple(data["entry_points"]),
            facts=tuple((str(k), str(v)) for k, v in data["facts"]),
        )


def digits_example() -> Document:
    """The built-in example; nothing has to be read for it."""
    return Document(
        path="",
        kind="example",
        name="Handwritten digits",
        inputs=(Tensor(name="x", shape=("batch", 1, 8, 8), dtype="float32", note="0 to 1"),),
        outputs=(Tensor(name="y", shape=("batch", 10), dtype="float32", note="one score per digit"),),
        facts=(
            (
                "Data",
                "1,797 real scans of handwritten digits, 8 \N{MULTIPLICATION SIGN} 8 pixels (scikit-learn)",
            ),
            ("Models", "A large teacher and a small student, both convolutional"),
            ("Trip", "Distill, prune, fine-tune, quantize to INT8, export, verify"),
        ),
    )


def identify(path: Path) -> Kind:
    """Says what a path is, by its name alone, and that it exists.

    Raises:
        DocumentError: It does not exist, or no kind of model has such a name.
    """
    what = f"Cannot open {path.name or path}"
    if not path.exists():
        raise DocumentError(
            what, why=f"{path} does not exist", next_step="Check the name, or choose the file with Ctrl+O."
        )
    if path.is_dir() and (path / "manifest.json").is_file():
        return "artifact"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None or path.is_dir() != (kind == "artifact"):
        found = (
            "a directory without manifest.json"
            if path.is_dir()
            else f"a file with the ending “{path.suffix}”"
        )
        raise DocumentError(
            what,
            why=f"{path} is {found}, which is no kind of model",
            next_step="Open an artifact directory (.ew), an ONNX model (.onnx), "
            "an exported PyTorch program (.pt2) or a Python file (.py).",
        )
    return kind


def open_document(path: Path) -> Document:
    """Reads the summary of a model.

    Raises:
        DocumentError: Missing, of no known kind, unreadable or damaged.
    """
    readers = {"artifact": _artifact, "onnx": _onnx, "pt2": _pt2, "python": _python}
    kind = identify(path)
    try:
        return readers[kind](path)
    except OSError as error:
        raise DocumentError(
            f"Cannot read {path.name}",
            why=error.strerror or str(error),
            next_step="Check the permissions of the file and that its disk is there.",
        ) from error


def _artifact(path: Path) -> Document:
    import edgewright as ew

    try:
        artifact = ew.Artifact.open(path)
        report = artifact.report()
    except ew.ArtifactError as error:
        raise DocumentError(
            f"Cannot open the artifact {path.name}",
            why=str(error),
            next_step="Export it again, or fetch a fresh copy.",
        ) from error
    ports = {
        key: tuple(
            Tensor(
                name=p.name,
                shape=("batch", *("length" if d is None else d for d in p.shape[1:])),
                dtype=p.dtype,
                note=f"scale {p.scale:.4g}, zero point {p.zero_point}",
            )
            for p in getattr(artifact, key)
        )
        for key in ("inputs", "outputs")
    }
    files = sorted(artifact.files.items(), key=lambda item: -item[1].size_bytes)
    others = sorted({o for part in artifact.parts for o in part.operators})
    native = "yes, bit for bit as verified" if artifact.native else "no: an operator has no integer kernel"
    if others:
        native = f"in part; ONNX Runtime runs {', '.join(others)}"
    facts = [
        ("Made by", artifact.producer),
        ("Native engine", native),
        ("Verified", _verdict(report)),
        ("Digest", artifact.digest),
    ]
    return Document(
        path=str(path),
        kind="artifact",
        name=artifact.name,
        size_bytes=artifact.size_bytes,
        inputs=ports["inputs"],
        outputs=ports["outputs"],
        files=tuple(Count(name=n, count=f.size_bytes) for n, f in files),
        targets=artifact.targets,
        checks=_checks(report),
        facts=tuple(facts),
    )


def _verdict(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not yet: it has no report"
    return "yes, every check held" if report.get("passed") else "no, a check did not hold"


def _checks(report: dict[str, Any] | None) -> tuple[Check, ...]:
    entries = report.get("checks", []) if report else []
    if not isinstance(entries, list):
        return ()
    return tuple(
        Check(
            name=str(e.get("what", e.get("name", "?"))),
            passed=e.get("verdict") == "passed",
            note=_found(e.get("value"), e.get("unit", "")),
        )
        for e in entries
        if isinstance(e, dict)
    )


def _found(value: object, unit: object) -> str:
    # A report writes infinity, such as the ratio to no noise at all, as null.
    figure = f"{value:.4g}" if isinstance(value, int | float) else "no limit"
    return f"{figure} {unit}".strip()


def _onnx(path: Path) -> Document:
    import math

    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    graph = model.graph
    if not graph.node:
        raise _damaged(path, "it holds no graph")
    weights = {t.name for t in graph.initializer}
    external = {
        path.parent / e.value
        for t in graph.initializer
        for e in t.external_data
        if e.key == "location" and (path.parent / e.value).is_file()
    }
    counts = Counter(n.op_type if not n.domain else f"{n.domain}.{n.op_type}" for n in graph.node)

    def tensor(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        return Tensor(
            name=value.name,
            shape=tuple(
                d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in kind.shape.dim
            ),
            dtype=_ONNX_DTYPES.get(kind.elem_type, "other"),
        )

    opset = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    return Document(
        path=str(path),
        kind="onnx",
        name=path.stem,
        size_bytes=path.stat().st_size + sum(f.stat().st_size for f in external),
        parameters=sum(math.prod(t.dims) for t in graph.initializer),
        inputs=tuple(tensor(v) for v in graph.input if v.name not in weights),
        outputs=tuple(tensor(v) for v in graph.output),
        operators=_ranked(counts),
        facts=(
            ("Made by", f"{model.producer_name} {model.producer_version}".strip() or "unknown"),
            ("Operator set", opset or "unknown"),
            ("Quantized", "yes (QDQ)" if "QuantizeLinear" in counts else "no"),
        ),
    )


def _pt2(path: Path) -> Document:
    import math
    import zipfile

    import torch

    if not zipfile.is_zipfile(path):
        raise _damaged(path, "it is not a PyTorch archive")
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises anything from KeyError to its own types on a damaged archive
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    signature = program.graph_signature
    nodes = {n.name: n for n in program.graph.nodes}
    calls = [str(n.target).removesuffix(".default") for n in program.graph.nodes if n.op == "call_function"]

    def tensor(name: str) -> Tensor:
        value = nodes[name].meta.get("val")
        shape = tuple(d if isinstance(d, int) else str(d) for d in getattr(value, "shape", ()))
        return Tensor(name=name, shape=shape, dtype=str(getattr(value, "dtype", "?")).removeprefix("torch."))

    return Document(
        path=str(path),
        kind="pt2",
        name=path.stem,
        size_bytes=path.stat().st_size,
        parameters=sum(math.prod(v.shape) for v in program.state_dict.values()),
        inputs=tuple(tensor(n) for n in signature.user_inputs if isinstance(n, str) and n in nodes),
        outputs=tuple(tensor(n) for n in signature.user_outputs if isinstance(n, str) and n in nodes),
        operators=_ranked(Counter(calls)),
        facts=(("Operators of", "PyTorch ATen"),),
    )


def _python(path: Path) -> Document:
    size = path.stat().st_size
    if size > MAX_SOURCE_BYTES:
        raise _damaged(path, f"{size:,} bytes is too long for a Python file")
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise _damaged(path, f"line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    entry_points = tuple(name for node in tree.body if (name := _entry_point(node)))
    needs = (
        "choose the one that gives the model"
        if entry_points
        else "none found: add a function that returns it"
    )
    return Document(
        path=str(path),
        kind="python",
        name=path.stem,
        size_bytes=size,
        entry_points=entry_points,
        facts=(
            ("Entry points", needs),
            ("A compress job needs", "a function or class without required arguments that gives the model"),
            ("and", "training and validation data in an .npz file"),
            ("Safety", "the file is read here, and run only when you start a job"),
        ),
    )


def _entry_point(node: ast.stmt) -> str:
    """The name of a public function or model class that can be called without arguments; else empty."""
    if isinstance(node, ast.ClassDef):
        bases = {ast.unparse(b).rsplit(".", 1)[-1] for b in node.bases}
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return node.name if "Module" in bases and all(_required(i) <= 1 for i in inits) else ""
    if isinstance(node, ast.FunctionDef):
        return "" if node.name.startswith("_") or _required(node) else node.name
    return ""


def _required(function: ast.FunctionDef) -> int:
    arguments = function.args
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional + sum(d is None for d in arguments.kw_defaults)


def _ranked(counts: Counter[str]) -> tuple[Count, ...]:
    return tuple(
        Count(name=n, count=c) for n, c in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _damaged(path: Path, why: str) -> DocumentError:
    return DocumentError(
        f"{path.name} is not a readable {KIND_TITLES[SUFFIXES[path.suffix.lower()]]}",
        why=why,
        next_step="Export it again, or fetch a fresh copy.",
    )
