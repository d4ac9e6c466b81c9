"""The exact integer engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import PLAN, WEIGHTS, Arrays, Artifact
from edgewright_device.backends.reference import check_ports
from edgewright_device.errors import RunnerError
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import decode


class NativeBackend:
    """Runs plan.bin on the best kernel path of this CPU; the same bits on every path."""

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        plan = artifact.read(PLAN)
        try:
            check_ports(artifact, decode(plan))
            if artifact.files[WEIGHTS].size_bytes == 0:
                raise RunnerError(f"{artifact.path / WEIGHTS}: is empty")  # which cannot be mapped
            weights = np.memmap(artifact.path / WEIGHTS, dtype=np.uint8, mode="r")
            self._engine = Engine(plan, weights, threads=threads)
        except KernelError as error:
            raise RunnerError(f"{artifact.path / PLAN}: {error}") from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch, a loop over its samples."""
        return self._engine.run(inputs)
