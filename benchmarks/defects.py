"""Defects: what goes wrong between a float model and its artifact, injected into healthy artifacts.

A defect is a function that takes a subject and random numbers, and gives a change: to the QDQ graph (of
which program and golden vectors are made anew, as an exporter with that bug would), to the integer program
alone, to the engine that runs it, or to the files. Every digest is true afterwards. Where the subject has no
place for it (no mask, no padding), it raises `UnsuitableError`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from healthy import Healthy

from edgewright.errors import ExportError
from edgewright.golden import golden_of_parts
from edgewright.graph import onnx_function
from edgewright.int4 import INT4, packed
from edgewright.lower import lower
from edgewright.parts import partition
from edgewright.weights import byte_ranges, with_external_data
from edgewright.wiring import Wiring
from edgewright_device import Artifact, Part, Port, encode_golden, write_artifact
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import Plan, decode, encode

Array = npt.NDArray[Any]
Where = Literal["graph", "program", "engine", "files"]
T = TypeVar("T")


class UnsuitableError(Exception):
    """The subject has no place for this defect."""


def pick(random: np.random.Generator, items: Sequence[T]) -> T:
    """One of them.

    Raises:
        UnsuitableError: There is none.
    """
    if not items:
        raise UnsuitableError
    return items[int(random.integers(len(items)))]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A healthy artifact, opened for changes."""

    healthy: Healthy

    @property
    def artifact(self) -> Artifact:
        """It.

        Raises:
            UnsuitableError: It is a file.
        """
        if isinstance(self.healthy.artifact, Path):
            raise UnsuitableError
        return self.healthy.artifact

    def beside(self, name: str) -> Path:
        """A place for another artifact."""
        path = self.artifact.path
        return path.with_name(f"{path.name.removesuffix('.ew')}-{name}.ew")

    @cached_property
    def model(self) -> onnx.ModelProto:
        """Its QDQ graph, constants inside."""
        given = self.healthy.artifact
        return onnx.load(given if isinstance(given, Path) else given.path / "model.onnx")

    @cached_property
    def weights(self) -> dict[str, Array]:
        """What lies in weights.safetensors."""
        return safetensors.numpy.load(self.artifact.read("weights.safetensors"))

    @cached_property
    def plan(self) -> Plan:
        """Its integer program.

        Raises:
            UnsuitableError: It has none, or several.
        """
        if "plan.bin" not in self.artifact.files or self.artifact.lengths:
            raise UnsuitableError
        return decode(self.artifact.read("plan.bin"))


# Changes


@dataclass(frozen=True, kw_only=True)
class GraphChange:
    """Another QDQ graph."""

    model: onnx.ModelProto
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ProgramChange:
    """Another integer program over the same weights; model.onnx stays as it was."""

    plan: Plan
    note: str = ""


Run = Callable[[Any, Any, Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True, kw_only=True)
class EngineChange:
    """Another engine: what it gives for a plan, weights and inputs; the files stay as they were."""

    run: Run
    note: str = ""
    equivalent: str = ""


@dataclass(frozen=True, kw_only=True)
class InputChange:
    """Inputs as every engine gets to see them, golden vectors made with the defect in place."""

    change: Callable[[Mapping[str, Array]], dict[str, Array]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """Other files, ports, or a report beside them."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None
    report: str | None = None
    note: str = ""


Change = GraphChange | ProgramChange | EngineChange | InputChange | FileChange


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One kind of defect.

    Attributes:
        kind: Short, stable.
        where: It is born.
        what: For people.
        inject: Makes it.
    """

    kind: str
    where: Where
    what: str
    inject: Callable[[Subject, np.random.Generator], Change]


DEFECTS: list[Defect] = []
Inject = Callable[[Subject, np.random.Generator], Change]


def defect(kind: str, where: Where, what: str) -> Callable[[Inject], Inject]:
    """Lists a function among the defects."""

    def listed(inject: Inject) -> Inject:
        DEFECTS.append(Defect(kind=kind, where=where, what=what, inject=inject))
        return inject

    return listed


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A subject with one defect.

    Attributes:
        name: Subject, kind and number.
        defect: Its kind.
        healthy: What it was.
        artifact: What it is.
        broken: A context in which its engine is the broken one.
        equivalent: Why it is no mutant at all; empty if it is one.
        note: Where exactly.
    """

    name: str
    defect: Defect
    healthy: Healthy
    artifact: Artifact | Path
    broken: Callable[[], contextlib.AbstractContextManager[None]]
    equivalent: str
    note: str


def mutant(subject: Subject, kind: Defect, number: int, folder: Path) -> Mutant:
    """Injects a defect; the number seeds where.

    Raises:
        UnsuitableError: No place for it.
    """
    name = f"{subject.healthy.name}/{kind.kind}/{number}"
    seed = [number, *name.encode()]
    change = kind.inject(subject, np.random.default_rng(seed))
    out = folder / (name.replace("/", "_") + ".ew")
    broken: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    equivalent = ""
    artifact: Artifact | Path
    match change:
        case GraphChange(model=model) if isinstance(subject.healthy.artifact, Path):
            artifact = saved(subject, model, out.with_suffix(".onnx"))
        case GraphChange(model=model):
            artifact = remade(subject, model, out)
        case ProgramChange(plan=plan):
            artifact = reprogrammed(subject, plan, out)
            broken = partial(broken_lowering, subject.model, plan)
        case EngineChange(run=run, equivalent=equivalent):
            artifact = copied(subject, out)
            broken = partial(broken_engine, run)
        case InputChange(change=changed):
            broken = partial(changed_inputs, changed)
            with broken():
                artifact = regilded(copied(subject, out), out)
        case FileChange():
            artifact = copied(subject, out, change.files, change.inputs, change.outputs)
            if change.report is not None:
                (artifact.path / "report.json").write_text(change.report, "utf-8")
    if isinstance(change, GraphChange | ProgramChange) and isinstance(artifact, Artifact):
        equivalent = _equivalent(subject.artifact, artifact, change)
    return Mutant(
        name=name,
        defect=kind,
        healthy=subject.healthy,
        artifact=artifact,
        broken=broken,
        equivalent=equivalent,
        note=change.note,
    )


def _equivalent(before: Artifact, after: Artifact, change: Change) -> str:
    """Why nothing that runs has changed, or nothing."""
    if "plan.bin" not in after.files or "plan.bin" not in before.files:
        return ""
    same = all(before.read(n) == after.read(n) for n in ("plan.bin", "weights.safetensors"))
    if not same:
        return ""
    if isinstance(change, ProgramChange):
        return "the program is the same, byte for byte"
    inputs, _ = before.golden()
    first, second = (onnx_function(onnx.load(a.path / "model.onnx"))(inputs) for a in (before, after))
    if all(np.array_equal(first[n], second[n]) for n in first):
        return "program and weights are the same, byte for byte, and model.onnx computes the same integers"
    return ""


# Making artifacts anew, with true digests


def saved(subject: Subject, model: onnx.ModelProto, out: Path) -> Path:
    """Another QDQ graph as a file."""
    _by_onnxruntime(model, {n: v[:1] for n, v in subject.healthy.data.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out)
    return out


def remade(subject: Subject, model: onnx.ModelProto, out: Path) -> Artifact:
    """An artifact of another QDQ graph, as `export` would write it; ONNX alone, if only that runs."""
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    kept = {n: constants[n] for n in subject.weights if n in constants}
    kept = {n: packed(v) if v.dtype == INT4 else np.ascontiguousarray(v) for n, v in kept.items()}
    weights = safetensors.numpy.save(dict(sorted(kept.items())))
    ranges = byte_ranges(weights)
    files = {"weights.safetensors": weights, "model.onnx": with_external_data(model, ranges)}
    inputs, _ = subject.artifact.golden()
    parts: list[Part] = []
    try:
        files["plan.bin"] = encode(lower(model, ranges, len(weights)))
        files["golden.npz"] = encode_golden(inputs, Engine(files["plan.bin"], weights).run(inputs))
    except (ExportError, KernelError, ValueError, AssertionError, KeyError, IndexError):
        files.pop("plan.bin", None)
        files["golden.npz"] = encode_golden(inputs, _by_onnxruntime(model, inputs))
        if subject.artifact.parts:
            with contextlib.suppress(ExportError, KernelError, ValueError):
                parts = _in_parts(model, ranges, weights, inputs, files)
    return write_artifact(
        out,
        name=subject.artifact.name,
        producer=subject.artifact.producer,
        targets=subject.artifact.targets,
        inputs=_regridded(subject.artifact, subject.artifact.inputs, model, constants),
        outputs=_regridded(subject.artifact, subject.artifact.outputs, model, constants),
        files=files,
        parts=tuple(parts),
    )


def _by_onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return onnx_function(model)(inputs)
    except Exception:  # its exceptions share no base of their own
        raise UnsuitableError from None  # nothing runs this graph, so it is no mutant


def _in_parts(
    model: onnx.ModelProto, ranges: Any, weights: bytes, inputs: Any, files: dict[str, bytes]
) -> list[Part]:
    made = partition(model, ranges, len(weights))
    taken, values, tolerances = golden_of_parts(made, weights, inputs)
    names = [o.name for o in model.graph.output]
    golden = encode_golden(
        taken,
        {n: values[n] for n in names},
        values={n: v for n, v in values.items() if n not in names},
    )
    listed: list[Part] = []
    for place, (part, tolerance) in enumerate(zip(made, tolerances, strict=True)):
        file = f"part-{place}.{'onnx' if part.plan is None else 'bin'}"
        operators = sorted({f.operator for f in part.fallbacks})
        listed.append(
            Part(
                file=file,
                inputs=part.inputs,
                outputs=part.outputs,
                operators=tuple(operators),
                tolerance=tolerance,
            )
        )
        files[file] = with_external_data(part.model, ranges) if part.plan is None else encode(part.plan)
    files["golden.npz"] = golden
    return listed


def _regridded(
    artifact: Artifact, ports: tuple[Port, ...], model: onnx.ModelProto, constants: Mapping[str, Array]
) -> tuple[Port, ...]:
    """Ports with the grids that the graph gives them; of several lengths, the largest."""
    grids = {n.input[0]: n.input[1:3] for n in model.graph.node if n.op_type == "QuantizeLinear"} | {
        n.output[0]: n.input[1:3] for n in model.graph.node if n.op_type == "DequantizeLinear"
    }
    made: list[Port] = []
    length = artifact.lengths.sizes[-1] if artifact.lengths else None
    for given in ports:
        shape = (None, *(length if d is None else d for d in given.shape[1:]))
        port = replace(given, shape=shape)
        if port.name in grids and port.dtype == "float32":
            scale, zero = (constants[n] for n in grids[port.name])
            zero_point = int(np.clip(zero.reshape(-1)[0], 0, 255))
            made.append(replace(port, scale=float(scale.reshape(-1)[0]), zero_point=zero_point))
        else:
            made.append(port)
    return tuple(made)


def reprogrammed(subject: Subject, plan: Plan, out: Path) -> Artifact:
    """An artifact with another program, its golden vectors made by that."""
    weights = subject.artifact.read("weights.safetensors")
    inputs, _ = subject.artifact.golden()
    try:
        data = encode(plan)
        golden = Engine(data, weights).run(inputs)
    except KernelError:
        raise UnsuitableError from None  # no reader takes it, so no exporter can write it
    return copied(subject, out, {"plan.bin": data, "golden.npz": encode_golden(inputs, golden)})


def copied(
    subject: Subject,
    out: Path,
    files: Mapping[str, bytes] | None = None,
    inputs: tuple[Port, ...] | None = None,
    outputs: tuple[Port, ...] | None = None,
) -> Artifact:
    """A copy, with other files or ports."""
    artifact = subject.artifact
    return write_artifact(
        out,
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=inputs or artifact.inputs,
        outputs=outputs or artifact.outputs,
        files={n: artifact.read(n) for n in artifact.files} | dict(files or {}),
        parts=artifact.parts,
        lengths=artifact.lengths,
    )


def regilded(artifact: Artifact, out: Path) -> Artifact:
    """A copy whose golden outputs are what it gives here; of one without lengths or parts.

    Raises:
        UnsuitableError: Of another.
    """
    from edgewright_device import Runner

    if artifact.lengths or artifact.parts:
        raise UnsuitableError
    inputs, _ = artifact.golden()
    golden = encode_golden(inputs, Runner(artifact).run(inputs))
    return write_artifact(
        out,
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files={n: artifact.read(n) for n in artifact.files} | {"golden.npz": golden},
    )


# Broken engines


@contextlib.contextmanager
def broken_engine(run: Run) -> Iterator[None]:
    """While it lasts, the native engine is another one; the numpy reference stays what it is."""
    start, good = Engine.__init__, Engine.run

    def loaded(self: Any, plan: bytes, weights: Any, **how: Any) -> None:
        start(self, plan, weights, **how)
        self.plan_, self.weights_ = decode(plan), bytes(memoryview(weights))

    Engine.__init__ = loaded  # type: ignore[method-assign]
    Engine.run = lambda self, inputs: run(self.plan_, self.weights_, inputs)  # type: ignore[attr-defined,method-assign]
    try:
        yield
    finally:
        Engine.__init__, Engine.run = start, good  # type: ignore[method-assign]


@contextlib.contextmanager
def broken_lowering(graph: onnx.ModelProto, wrong: Plan) -> Iterator[None]:
    """While it lasts, that graph lowers to the wrong program: exporter and verifier share that code."""
    right = lower
    nodes = [n.SerializeToString(deterministic=True) for n in graph.graph.node]

    def lowered(model: onnx.ModelProto, *given: Any) -> Plan:
        same = [n.SerializeToString(deterministic=True) for n in model.graph.node] == nodes
        return wrong if same else right(model, *given)

    holders = [m for m in list(sys.modules.values()) if getattr(m, "lower", None) is right]
    for module in holders:
        module.lower = lowered  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in holders:
            module.lower = right  # type: ignore[attr-defined]


@contextlib.contextmanager
def changed_inputs(change: Callable[[Mapping[str, Array]], dict[str, Array]]) -> Iterator[None]:
    """While it lasts, every engine sees other inputs than it is given."""
    from edgewright_device import Runner

    run = Runner.run
    Runner.run = lambda self, inputs: run(self, change(dict(inputs)))  # type: ignore[arg-type,method-assign]
    try:
        yield
    finally:
        Runner.run = run  # type: ignore[method-assign]


__all__ = [
    "DEFECTS",
    "Change",
    "Defect",
    "EngineChange",
    "FileChange",
    "GraphChange",
    "InputChange",
    "Mutant",
    "ProgramChange",
    "Subject",
    "UnsuitableError",
    "Wiring",
    "defect",
    "mutant",
    "pick",
]
