"""The exact integer engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import PLAN, WEIGHTS, Arrays, Artifact
from edgewright_device.errors import RunnerError
from edgewright_kernels import Engine, KernelError


class NativeBackend:
    """Runs plan.bin on the best kernel path of this CPU; the same bits on every path."""

    def __init__(self, artifact: Artifact) -> None:
        weights = np.memmap(artifact.path / WEIGHTS, dtype=np.uint8, mode="r")
        try:
            self._engine = Engine(artifact.read(PLAN), weights)
        except KernelError as error:
            raise RunnerError(f"{artifact.path / PLAN}: {error}") from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch, a loop over its samples."""
        return self._engine.run(inputs)
