"""One integer program of an artifact, read and held to what the manifest says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.errors import RunnerError
from edgewright_device.manifest import PLAN, WEIGHTS, Part, Port
from edgewright_kernels import KernelError
from edgewright_kernels.plan import Plan, decode

Shape = tuple[int, ...]
Ports = dict[str, tuple[str, Shape]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program whose inputs and outputs are those that the manifest lists.

    Attributes:
        file: Where it lies.
        data: The file's bytes.
        plan: What they say.
        inputs: dtype and shape of one sample, by name.
        outputs: The same.
    """

    file: Path
    data: bytes
    plan: Plan
    inputs: Ports
    outputs: Ports


def read_program(artifact: Artifact, *, part: Part | None = None, length: int | None = None) -> Program:
    """Reads plan.bin, the program of a part, or that of a length.

    Raises:
        RunnerError: Damaged, or its inputs and outputs differ from the manifest in name, shape or dtype.
    """
    name = PLAN
    if part is not None:
        name = part.file
    elif artifact.lengths is not None and length not in (None, artifact.lengths.sizes[-1]):
        name = f"plan-{length}.bin"
    if artifact.lengths is not None and length is None:
        length = artifact.lengths.sizes[-1]
    file = artifact.path / name
    data = artifact.read(name)
    try:
        plan = decode(data)
    except KernelError as error:
        raise RunnerError(f"{file}: {error}") from error
    found = []
    for what, ports, names, numbers in (
        ("inputs", artifact.inputs, part.inputs if part else None, plan.inputs),
        ("outputs", artifact.outputs, part.outputs if part else None, plan.outputs),
    ):
        has: Ports = {(t := plan.tensors[n]).name: (t.dtype, t.shape) for n in numbers}
        wants = _listed(artifact, ports, names, length)
        fits = has.keys() == wants.keys() and all(has[n] == w for n, w in wants.items() if w)
        if not fits:
            raise RunnerError(f"{file}: its {what} are {has}, the manifest lists {wants}")
        found.append(has)
    return Program(file=file, data=data, plan=plan, inputs=found[0], outputs=found[1])


def _listed(
    artifact: Artifact, ports: Iterable[Port], names: Iterable[str] | None, length: int | None
) -> Mapping[str, tuple[str, Shape] | None]:
    """What the manifest says of a program's ports; None where it says the name alone."""
    if names is None:
        return {p.name: (p.dtype, _sizes(p, length)) for p in ports}
    known = {p.name: (p.dtype, _sizes(p, None)) for p in (*artifact.inputs, *artifact.outputs)}
    return {n: known.get(n) for n in names}


def _sizes(port: Port, length: int | None) -> Shape:
    return tuple(length or 0 if d is None else d for d in port.shape[1:])


def mapped_weights(artifact: Artifact) -> npt.NDArray[np.uint8]:
    """weights.safetensors, mapped into memory.

    Raises:
        RunnerError: It is empty.
    """
    file = artifact.path / WEIGHTS
    if artifact.files[WEIGHTS].size_bytes == 0:
        raise RunnerError(f"{file}: is empty")  # which cannot be mapped
    return np.memmap(file, dtype=np.uint8, mode="r")
