"""A float model as a .tflite file, by LiteRT's own converter (litert-torch) in an environment of its own.

That converter needs 2 GB of packages that the product does without, so they are installed when it is first
asked for. Shapes in a .tflite file are fixed: for each that is wanted there is one signature, and all share
the weights.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.durable import put_in_place
from edgewright.errors import ExportError, SideEnvironmentError
from edgewright.progress import OnProgress
from edgewright.samples import as_tuple
from edgewright.side_environment import SideEnvironment, python_of, run_script

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-3
"""Of the largest output: how far LiteRT may lie from torch. Both are float32, and add up in other orders."""
RANDOM_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One shape that a .tflite file can be run with.

    Attributes:
        name: By which an interpreter is asked for it.
        inputs: By name: dtype and shape, batch first.
        outputs: The same.
        largest_error: Largest difference from torch on the examples, relative to the largest output.
    """

    name: str
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    largest_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRtModel:
    """A float .tflite file that was written.

    Attributes:
        path: Where.
        size_bytes: Of the file.
        signatures: The shapes it has.
        narrowed: Inputs that are int64 in the model and int32 in the file.
    """

    path: Path
    size_bytes: int
    signatures: tuple[Signature, ...]
    narrowed: tuple[str, ...]


def converter_environment() -> SideEnvironment:
    """What litert-torch needs: all versions are exact."""
    text = files("edgewright.litert").joinpath("converter.txt").read_text("utf-8")
    requirements = tuple(text.split())
    return SideEnvironment(
        name="litert-torch-0.10",
        requirements=requirements,
        first=tuple(r for r in requirements if r.startswith("torch==")),
        imports=("litert_torch", "ai_edge_litert.interpreter"),
        size_bytes=2_100_000_000,
        minutes=4,
    )


def export_litert(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] = (),
    axes: Mapping[str, int] | None = None,
    environments: str | os.PathLike[str] | None = None,
    progress: OnProgress | None = None,
) -> LiteRtModel:
    """Writes a float model as a .tflite file, and compares it with torch.

    For INT8 with the integers of an artifact, there is `export(..., litert=True)`, which needs no converter.

    Args:
        model: A module, or the path of a `.pt2` program.
        out: The file to write.
        example_inputs: The arguments of one call, arrays or tensors, batch first; each shape is compared with
            torch on them, repeated or cut. A module needs them. Of a program, those it was made with serve,
            else random ones.
        batches: Batch sizes; one signature for each.
        lengths: Lengths of sequences; one signature for each with each batch size.
        axes: Of a module with `lengths`: the axis of the sequence, by input name; 1 of each if left out.
        environments: The folder of side environments; ~/.cache/edgewright/envs if left out. The converter is
            installed there when it is first needed (2.1 GB, some minutes).
        progress: Called as the work goes on.

    Raises:
        ExportError: The model cannot be traced, has other free sizes than those asked for, or operators that
            the converter lacks; or the file does not compute what torch does.
        SideEnvironmentError: The converter cannot be installed.
    """
    if min([*batches, *lengths], default=0) < 1 or not batches:
        raise ExportError(
            f"batches {tuple(batches)} and lengths {tuple(lengths)} must be numbers of 1 or more"
        )
    path = Path(out)
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; name a file, such as model.tflite")
    program = _program(model, example_inputs, axes or {} if lengths else None)
    values = _inputs(program)
    wanted = _signatures(values, batches, lengths)
    examples = _examples(program, values, example_inputs)
    python = python_of(
        converter_environment(), Path(environments) if environments else None, progress=progress
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        signatures = _converted(python, program, examples, wanted, temporary, progress)
        worst = max(signatures, key=lambda s: s.largest_error)
        if not worst.largest_error <= TOLERANCE:
            raise ExportError(
                f"signature {worst.name!r} differs from torch by {worst.largest_error:.2g} of the largest "
                "output; nothing was written"
            )
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return LiteRtModel(
        path=path,
        size_bytes=path.stat().st_size,
        signatures=signatures,
        narrowed=tuple(n for n, v in values.items() if v.whole),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """An input of a program: its sizes, None for the batch, text for another free one; and if it is int64."""

    sizes: tuple[int | str | None, ...]
    whole: bool


def _program(
    model: nn.Module | str | os.PathLike[str], example_inputs: Any, axes: Mapping[str, int] | None
) -> torch.export.ExportedProgram:
    from edgewright.graph import forward_parameters, read_pt2
    from edgewright.models import trace

    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix != ".pt2":
            raise ExportError(
                f"{path}: LiteRT's converter reads torch programs (.pt2) and modules alone; the integers "
                "of any model go into its artifact: export with --litert (litert=True)"
            )
        return read_pt2(path)
    if example_inputs is None:
        raise ExportError("an nn.Module needs example_inputs, the arguments of one call, to be exported")
    example = as_tuple(example_inputs)
    names = list(forward_parameters(model))[: len(example)]
    if unknown := (axes or {}).keys() - set(names):
        raise ExportError(f"axes are for {sorted(unknown)}; the model takes {names}")
    return trace(model, example, None if axes is None else [axes.get(n) if axes else 1 for n in names])


def _inputs(program: torch.export.ExportedProgram) -> dict[str, _Input]:
    """The inputs of a program, by name, in order."""
    found: dict[str, _Input] = {}
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    for name in map(str, program.graph_signature.user_inputs):
        value = values[name]
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in {"float32", "int64", "int32"}:
            raise ExportError(
                f"input {name!r} is {kind}; LiteRT's converter takes float32, int64 and int32 here"
            )
        sizes = [s if isinstance(s, int) else str(s) for s in value.shape]
        if not sizes:
            raise ExportError(f"input {name!r} is a single number; the first dimension must be the batch")
        free = not isinstance(sizes[0], int)
        found[name] = _Input(sizes=(None if free else sizes[0], *sizes[1:]), whole=kind == "int64")
    return found


def _signatures(
    inputs: Mapping[str, _Input], batches: Sequence[int], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """A name and the shape of each input, for each shape that is wanted."""
    for name, value in inputs.items():
        if value.sizes[0] is not None and any(b != value.sizes[0] for b in batches):
            raise ExportError(
                f"input {name!r} has the batch size {value.sizes[0]}, not {', '.join(map(str, batches))}; "
                "ask for that one, or export the program with a free batch size"
            )
    free = {s for v in inputs.values() for s in v.sizes[1:] if isinstance(s, str)}
    if len(free) > 1:
        raise ExportError(
            f"the inputs have {len(free)} free sizes beside the batch, and LiteRT's are fixed: fix all but "
            "the length of sequences when the program is exported"
        )
    if bool(free) != bool(lengths):
        where = next((n for n, v in inputs.items() if free & set(v.sizes)), "")
        raise ExportError(
            f"input {where!r} has a free size, and LiteRT's are fixed: say which ones are needed (lengths)"
            if free
            else "the model has no free size beside the batch, so that lengths have no meaning"
        )
    wanted = []
    each: Sequence[int | None] = lengths or [None]
    for batch, length in itertools.product(batches, each):
        parts = [f"batch_{batch}"] if len(batches) > 1 else []
        parts += [f"length_{length}"] if len(lengths) > 1 else []
        shapes = {
            n: [batch, *(length if isinstance(s, str) else s for s in v.sizes[1:])] for n, v in inputs.items()
        }
        wanted.append({"name": "_".join(parts) or "serving_default", "shapes": shapes})
    return wanted


def _examples(
    program: torch.export.ExportedProgram, inputs: Mapping[str, _Input], given: Any
) -> dict[str, npt.NDArray[Any]]:
    """Samples by name, of any sizes: what was given, what the program was made with, or random ones."""
    known = program.example_inputs[0] if program.example_inputs else ()
    arrays = [np.asarray(v) for v in (as_tuple(given) if given is not None else known)]
    random = np.random.default_rng(0)
    if len(arrays) != len(inputs):
        sizes = [[s if isinstance(s, int) else RANDOM_SAMPLES for s in v.sizes] for v in inputs.values()]
        arrays = [random.standard_normal(s) for s in sizes]
    return {
        n: random.integers(0, 2, a.shape) if v.whole and a.dtype.kind == "f" else a
        for (n, v), a in zip(inputs.items(), arrays, strict=True)
    }


def _converted(
    python: Path,
    program: torch.export.ExportedProgram,
    examples: Mapping[str, npt.NDArray[Any]],
    wanted: Sequence[Mapping[str, Any]],
    out: Path,
    progress: OnProgress | None,
) -> tuple[Signature, ...]:
    """Runs the converter; `out` is what it writes."""
    import torch

    from edgewright.graph import quiet

    count = len(program.graph_signature.user_outputs)
    with tempfile.TemporaryDirectory(prefix="edgewright-") as folder:
        source, samples = Path(folder) / "model.pt2", Path(folder) / "examples.npz"
        with quiet():
            torch.export.save(program, source)
        np.savez(samples, allow_pickle=False, **examples)
        request = {
            "program": str(source),
            "out": str(out.absolute()),
            "inputs": list(examples),
            "outputs": ["y"] if count == 1 else [f"y{i}" for i in range(count)],
            "signatures": list(wanted),
            "examples": str(samples),
        }
        script = Path(str(files("edgewright.litert").joinpath("converter.py")))
        try:
            answer = run_script(python, script, request, progress=progress)
        except SideEnvironmentError as error:
            raise ExportError(str(error)) from error
    return tuple(
        Signature(
            name=s["name"],
            inputs={n: (d, tuple(z)) for n, (d, z) in s["inputs"].items()},
            outputs={n: (d, tuple(z)) for n, (d, z) in s["outputs"].items()},
            largest_error=s["largest_error"],
        )
        for s in answer["signatures"]
    )
