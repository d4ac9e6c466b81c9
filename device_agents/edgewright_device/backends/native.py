"""The exact integer engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.backends.program import Program, mapped_weights
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_kernels import Engine, KernelError


class NativeBackend:
    """Runs a program on the best kernel path of this CPU; the same bits on every path."""

    def __init__(self, artifact: Artifact, program: Program, *, threads: int = 1) -> None:
        weights = mapped_weights(artifact)
        try:
            self._engine = Engine(program.data, weights, threads=threads)
        except KernelError as error:
            raise RunnerError(f"{program.file}: {error}") from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch, a loop over its samples."""
        return self._engine.run(inputs)
