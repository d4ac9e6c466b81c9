"""Programs made again: what a QDQ graph lowers to, against the programs that an artifact holds.

Lowering is a function of the graph and of where its constants lie, so a program of this version of the
producer must be the same in every field. Where one differs, the operator and the field are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx

from edgewright.checks import Check, at_most
from edgewright.errors import ExportError
from edgewright.lower import lower
from edgewright.parts import partition
from edgewright.weights import byte_ranges, with_external_data
from edgewright_device import Artifact
from edgewright_kernels import KernelError, reference
from edgewright_kernels.plan import Constant, Op, Plan, decode, encode

NAMED = 3
"""Differences that a sentence spells out."""

_TENSORS = frozenset({"x", "y", "a", "b", "mask", "inputs"})
_RANGES = frozenset({"weight", "bias"})
_CAUSES: Mapping[str, str] = {
    "multiplier": "scales of the graph were turned into a wrong factor, or belong to another calibration",
    "shift": "scales of the graph were turned into a wrong factor, or belong to another calibration",
    "low": "a ReLU or a clip is lost, or its bound is wrong",
    "high": "a ReLU or a clip is lost, or its bound is wrong",
    "zero_point": "the zero point of an activation is that of another calibration",
    "scale": "the scale of an activation is that of another calibration",
    "padding": "the padding of a window lies on the wrong side",
    "table": "the table of a function was made for another grid",
    "bias": "a bias is left out, or that of another layer is read",
    "weight": "the weights of another layer are read",
    "order": "the axes of a value are exchanged",
    "a": "an operand is read twice, or from elsewhere",
    "b": "an operand is read twice, or from elsewhere",
    "x": "a value is read from elsewhere",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which a program is not what its graph lowers to.

    Attributes:
        file: Of the program.
        operator: Its place in the program, or -1 for what concerns the program as a whole.
        what: Kind of the operator and the tensor that it gives.
        field: Which differs.
        found: What the file has.
        wanted: What the graph gives.
    """

    file: str
    operator: int
    what: str
    field: str
    found: str
    wanted: str

    def __str__(self) -> str:
        place = f"operator {self.operator} ({self.what})" if self.operator >= 0 else self.what
        return f"{self.file}, {place}: {self.field} is {self.found}, its graph gives {self.wanted}"


def program_check(artifact: Artifact, graph: onnx.ModelProto) -> Check | None:
    """Lowers an artifact's graph again and compares; None where it has no program.

    A program of another version of the producer may have other fields and compute the same. It is then run:
    where it gives the same bits on the golden inputs, it passes; where not, that is either version's right,
    and nobody can tell.

    Args:
        artifact: Its digests hold.
        graph: Its model.onnx, constants inside.
    """
    files = [n for n in artifact.files if n.endswith(".bin")]
    if not files:
        return None
    weights = artifact.read("weights.safetensors")
    ranges = byte_ranges(weights)
    what = "programs against what model.onnx lowers to, fields that differ"
    wanted: dict[str, Plan | bytes] = {}
    try:
        wanted = _programs(artifact, graph, ranges, len(weights))
    except (ExportError, KernelError, ValueError, KeyError, IndexError, AssertionError) as error:
        found = [
            Difference(
                file="model.onnx",
                operator=-1,
                what="lowering",
                field="the program",
                found="there",
                wanted=f"none: {error}",
            )
        ]
    else:
        found = list(_all_differences(artifact, wanted))
    if not found:
        return at_most("program", what, 0, 0, "fields")
    listed = "; ".join(str(d) for d in found[:NAMED])
    cause = _CAUSES.get(found[0].field, "")
    sentence = f"{listed}{' and more' if len(found) > NAMED else ''}"
    made_by = artifact.producer
    if made_by != f"edgewright {version('edgewright')}":
        if _same_results(artifact, wanted, weights):
            return at_most("program", f"{what} and change results", 0, 0, "fields")
        return Check(
            name="program",
            what=f"{what}: {sentence}",
            verdict="cannot tell",
            value=len(found),
            interval=None,
            bound=0,
            unit="fields",
            remedy=f"it was made by {made_by}, which may lower otherwise: verify with that version, or "
            "export again with this one",
        )
    return at_most(
        "program",
        f"{what}: {sentence}",
        len(found),
        0,
        "fields",
        remedy=f"{cause + '; ' if cause else ''}export the model again: plan.bin must be made of the "
        "model.onnx beside it",
    )


def _programs(
    artifact: Artifact, graph: onnx.ModelProto, ranges: Mapping[str, Any], size: int
) -> dict[str, Plan | bytes]:
    """What each file of a program should be: a plan, or the bytes of an ONNX part."""
    if not artifact.parts:
        return {"plan.bin": lower(graph, ranges, size)}
    return {
        f"part-{i}.{'onnx' if p.plan is None else 'bin'}": p.plan or with_external_data(p.model, ranges)
        for i, p in enumerate(partition(graph, ranges, size))
    }


def _all_differences(artifact: Artifact, wanted: Mapping[str, Plan | bytes]) -> Iterator[Difference]:
    given = {p.file for p in artifact.parts} or {"plan.bin"}
    for file in sorted(given ^ wanted.keys()):
        yield Difference(
            file=file,
            operator=-1,
            what="file",
            field="the file",
            found="there" if file in given else "absent",
            wanted="absent" if file in given else "one",
        )
    largest = None
    for file in sorted(given & wanted.keys()):
        plan = wanted[file]
        data = artifact.read(file)
        if isinstance(plan, Plan):
            largest = plan
            if data != encode(plan):
                yield from differences(file, decode(data), plan)
        elif data != plan:
            yield from _graph_differences(file, onnx.load_from_string(data), onnx.load_from_string(plan))
    if artifact.lengths and largest is not None:
        for size in artifact.lengths.sizes[:-1]:
            file = f"plan-{size}.bin"
            yield from _of_shorter(file, decode(artifact.read(file)), largest)


def differences(file: str, found: Plan, wanted: Plan) -> Iterator[Difference]:
    """Every field that decides what a program computes; where tensors lie in the arena does not.

    Args:
        file: For people.
        found: One program.
        wanted: What it should be.
    """
    if len(found.ops) != len(wanted.ops):
        yield Difference(
            file=file,
            operator=-1,
            what="program",
            field="number of operators",
            found=str(len(found.ops)),
            wanted=str(len(wanted.ops)),
        )
    for i, (one, other) in enumerate(zip(found.ops, wanted.ops, strict=False)):
        what = f"{type(other).__name__} giving {wanted.tensors[other.y].name!r}"
        if type(one) is not type(other):
            yield Difference(
                file=file,
                operator=i,
                what=what,
                field="kind",
                found=type(one).__name__,
                wanted=type(other).__name__,
            )
            return
        here, there = _facts(one, found), _facts(other, wanted)
        for name in dict.fromkeys((*here, *there)):
            a, b = here.get(name), there.get(name)
            if not _equal(a, b):
                field = name.rpartition(".")[2]
                yield Difference(
                    file=file, operator=i, what=what, field=field, found=_short(a, b), wanted=_short(b, a)
                )
    for side in ("inputs", "outputs"):
        ports = [[plan.tensors[n].name for n in getattr(plan, side)] for plan in (found, wanted)]
        if ports[0] != ports[1]:
            yield Difference(
                file=file, operator=-1, what="program", field=side, found=str(ports[0]), wanted=str(ports[1])
            )


def _facts(op: Op, plan: Plan) -> dict[str, Any]:
    """What an operator says, with tensors and ranges in the place of their numbers."""
    facts: dict[str, Any] = {}
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name in _TENSORS and value is not None:
            for place, number in enumerate(value if isinstance(value, tuple) else (value,)):
                prefix = field.name if not isinstance(value, tuple) else f"{field.name}[{place}]"
                tensor = plan.tensors[number]
                facts[prefix] = tensor.name
                for part in ("dtype", "shape", "scale", "zero_point"):
                    facts[f"{prefix}.{part}"] = getattr(tensor, part)
        elif field.name in _RANGES and isinstance(value, int):
            place_ = plan.ranges[value]
            facts[field.name] = f"bytes {place_.offset}..{place_.offset + place_.size}"
        elif hasattr(value, "__dataclass_fields__"):
            facts |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in fields(value)}
        else:
            facts[field.name] = value
    return facts


def _equal(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _short(value: Any, other: Any) -> str:
    """A value for people; of two long ones, the first place in which they differ."""
    if value is None:
        return "none"
    array, against = np.asarray(value).reshape(-1), np.asarray(other).reshape(-1)
    if array.size <= 8 or array.shape != against.shape:
        return str(value) if array.size <= 8 else f"{array.size} values"
    at = int(np.flatnonzero(array != against)[0])
    count = int(np.count_nonzero(array != against))
    return f"{array[at]} at {at} (of {array.size} values, {count} differ)"


def _graph_differences(file: str, found: onnx.ModelProto, wanted: onnx.ModelProto) -> Iterator[Difference]:
    """Of a part that ONNX Runtime runs: nodes and constants."""
    for kind in ("node", "initializer", "input", "output"):
        here = [x.SerializeToString(deterministic=True) for x in getattr(found.graph, kind)]
        there = [x.SerializeToString(deterministic=True) for x in getattr(wanted.graph, kind)]
        if sorted(here) != sorted(there):
            odd = next((x for x in getattr(found.graph, kind) if x.SerializeToString() not in there), None)
            yield Difference(
                file=file,
                operator=-1,
                what=f"{kind} {odd.name if odd is not None else ''}".strip(),
                field="content",
                found="another",
                wanted="that of model.onnx",
            )


def _of_shorter(file: str, found: Plan, largest: Plan) -> Iterator[Difference]:
    """Of the program of a shorter length: the grids that it shares with the largest, and the constants."""
    grids = {t.name: (t.dtype, t.scale, t.zero_point) for t in largest.tensors}
    for tensor in found.tensors:
        grid = (tensor.dtype, tensor.scale, tensor.zero_point)
        if grids.get(tensor.name, grid) != grid:
            yield Difference(
                file=file,
                operator=-1,
                what=f"tensor {tensor.name!r}",
                field="scale" if grids[tensor.name][1] != tensor.scale else "zero_point",
                found=str(grid),
                wanted=str(grids[tensor.name]),
            )
    layers = {largest.tensors[op.y].name: op for op in largest.ops}
    for i, op in enumerate(found.ops):
        name = found.tensors[op.y].name
        other = layers.get(name)
        if other is None or type(other) is not type(op) or isinstance(op, Constant):
            continue
        here, there = _facts(op, found), _facts(other, largest)
        for field in ("weight", "bias"):
            if field in here and not _equal(here[field], there.get(field)):
                yield Difference(
                    file=file,
                    operator=i,
                    what=f"{type(op).__name__} giving {name!r}",
                    field=field,
                    found=_short(here[field], there.get(field)),
                    wanted=_short(there.get(field), here[field]),
                )


def _same_results(artifact: Artifact, wanted: Mapping[str, Plan | bytes], weights: bytes) -> bool:
    """Whether programs give the same bits on some golden inputs; of a program for the whole model alone."""
    plan = wanted.get("plan.bin")
    if not isinstance(plan, Plan):
        return False
    inputs = {n: v[:4] for n, v in artifact.golden()[0].items()}
    try:
        here = reference.run(decode(artifact.read("plan.bin")), weights, inputs)
        there = reference.run(plan, weights, inputs)
    except (KernelError, ValueError):
        return False
    return all(np.array_equal(here[n], there[n]) for n in here)
