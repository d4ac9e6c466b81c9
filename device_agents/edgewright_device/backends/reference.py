"""The numpy definition of the integer program: what every other path must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.backends.program import Program
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import WEIGHTS
from edgewright_kernels import KernelError, reference


class ReferenceBackend:
    """Runs a program in plain numpy."""

    def __init__(self, artifact: Artifact, program: Program) -> None:
        self._plan = program.plan
        self._weights = artifact.read(WEIGHTS)
        try:
            reference.check_weights(self._plan, self._weights)
        except KernelError as error:
            raise RunnerError(f"{program.file}: {error}") from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        return reference.run(self._plan, self._weights, inputs)
