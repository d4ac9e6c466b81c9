"""A model in parts: integer programs, and ONNX Runtime for what they lack, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.backends.onnxruntime import OnnxRuntimeBackend
from edgewright_device.backends.program import Program, Shape, read_program
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import Part


class Loaded(Protocol):
    """A part, loaded."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        ...


class PartsBackend:
    """Hands float32 arrays, batch first, from part to part.

    Args:
        artifact: With parts.
        load: Makes a backend of a program.
        threads: Threads that share a call of ONNX Runtime.
    """

    def __init__(self, artifact: Artifact, load: Callable[[Program], Loaded], *, threads: int = 1) -> None:
        self._path = artifact.path
        self._outputs = [p.name for p in artifact.outputs]
        # Of one sample, by the name of the value, as far as a port or a program says it.
        self._shapes: dict[str, Shape] = {
            p.name: tuple(d or 0 for d in p.shape[1:]) for p in (*artifact.inputs, *artifact.outputs)
        }
        self._parts: list[tuple[Part, Loaded]] = []
        for part in artifact.parts:
            if part.native:
                program = read_program(artifact, part=part)
                self._agree(program)
                self._parts.append((part, load(program)))
            else:
                self._parts.append((part, OnnxRuntimeBackend(artifact, threads=threads, part=part)))
        last = {name: part for part in artifact.parts for name in part.inputs}
        self._done = [
            [n for n in p.inputs if last[n] is p and n not in self._outputs] for p in artifact.parts
        ]

    def _agree(self, program: Program) -> None:
        for name, (dtype, shape) in {**program.inputs, **program.outputs}.items():
            if self._shapes.setdefault(name, shape) != shape or (
                name in program.outputs and dtype != "float32"
            ):
                raise RunnerError(
                    f"{program.file}: {name!r} has shape {shape}, elsewhere {self._shapes[name]}"
                )

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        values = dict(inputs)
        for place, done in enumerate(self._done):
            values.update(self.run_part(place, values))
            for name in done:  # nobody reads it any more
                del values[name]
        return {n: values[n] for n in self._outputs}

    def run_part(self, place: int, values: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one part alone.

        Args:
            place: Which, counted from 0.
            values: What it reads, by name, and perhaps more.
        """
        part, backend = self._parts[place]
        given = backend.run({n: values[n] for n in part.inputs})
        if part.native:
            return given
        batch = len(values[part.inputs[0]])
        for name, value in given.items():
            want = self._shapes.get(name)
            if want is not None and value.shape != (batch, *want):
                raise RunnerError(
                    f"{self._path / part.file}: gives {name!r} of shape {value.shape}, not {(batch, *want)}"
                )
        return {n: np.ascontiguousarray(v) for n, v in given.items()}
