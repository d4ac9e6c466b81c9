"""The numpy definition of the integer program: what every other path must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import PLAN, WEIGHTS, Arrays, Artifact
from edgewright_device.errors import RunnerError
from edgewright_kernels import KernelError, reference
from edgewright_kernels.plan import Plan, decode


class ReferenceBackend:
    """Runs plan.bin in plain numpy."""

    def __init__(self, artifact: Artifact) -> None:
        try:
            self._plan = decode(artifact.read(PLAN))
            self._weights = artifact.read(WEIGHTS)
            reference.check_weights(self._plan, self._weights)
        except KernelError as error:
            raise RunnerError(f"{artifact.path / PLAN}: {error}") from error
        check_ports(artifact, self._plan)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        return reference.run(self._plan, self._weights, inputs)


def check_ports(artifact: Artifact, plan: Plan) -> None:
    """Holds a program to the inputs and outputs of the manifest.

    Raises:
        RunnerError: They differ in name, shape or dtype.
    """
    for what, ports, numbers in (
        ("inputs", artifact.inputs, plan.inputs),
        ("outputs", artifact.outputs, plan.outputs),
    ):
        listed = {p.name: (p.dtype, p.shape[1:]) for p in ports}
        found = {(t := plan.tensors[n]).name: (t.dtype, t.shape) for n in numbers}
        if listed != found:
            raise RunnerError(f"{artifact.path / PLAN}: its {what} are {found}, the manifest lists {listed}")
