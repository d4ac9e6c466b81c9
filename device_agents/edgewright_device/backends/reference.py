"""The numpy definition of the integer program: what every other path must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import PLAN, WEIGHTS, Arrays, Artifact
from edgewright_device.errors import RunnerError
from edgewright_kernels import KernelError, reference
from edgewright_kernels.plan import decode


class ReferenceBackend:
    """Runs plan.bin in plain numpy."""

    def __init__(self, artifact: Artifact) -> None:
        try:
            self._plan = decode(artifact.read(PLAN))
        except KernelError as error:
            raise RunnerError(f"{artifact.path / PLAN}: {error}") from error
        self._weights = artifact.read(WEIGHTS)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        return reference.run(self._plan, self._weights, inputs)
