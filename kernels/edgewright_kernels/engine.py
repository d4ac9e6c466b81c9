"""The native engine: a plan packed for this CPU, giving the bits that reference.py gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_kernels import _native
from edgewright_kernels.reference import Buffer


def cpu_paths() -> tuple[str, ...]:
    """Names of the kernel paths this machine can run, best first, such as `("avx2", "scalar")`."""
    return _native.cpu_paths()


class Engine:
    """A loaded plan. Safe from several threads at once; each call works in a memory of its own.

    The plan and the weights are untrusted: both are checked whole before anything runs. The engine packs its
    own copy of the weights and keeps no hold on `weights`.

    Args:
        plan: The bytes of `plan.bin`.
        weights: The whole weights file, as any contiguous buffer, such as an mmap.
        cpu: The kernel path, one of `cpu_paths()`. By default what the environment variable EDGEWRIGHT_CPU
            names, and without it the best.

    Raises:
        PlanError: The plan or the weights are damaged, or do not belong together.
        UnsupportedError: An operator, plan version or CPU path that is not here.
    """

    def __init__(self, plan: bytes, weights: Buffer, *, cpu: str | None = None) -> None:
        self._native = _native.Engine(plan, memoryview(weights), cpu or "")  # type: ignore[arg-type]

    @property
    def cpu(self) -> str:
        """Name of the kernel path in use."""
        return self._native.cpu

    @property
    def arena_bytes(self) -> int:
        """Working memory of one call, in bytes: the plan's arena and the kernels' scratch."""
        return self._native.arena_bytes

    def run(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
        """Runs a batch, without the GIL.

        Args:
            inputs: float32 arrays of shape (N, *shape), by name, one N >= 1 for all. C-contiguous ones are
                read in place.

        Returns:
            The plan's outputs by name: float32, C-contiguous, of shape (N, *shape).

        Raises:
            ValueError: An input is missing, unknown, or of the wrong shape or dtype; the message names it.
        """
        return self._native.run(inputs if isinstance(inputs, dict) else dict(inputs))

    def profile(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[int]:
        """Runs one sample and times each operator.

        Args:
            inputs: As for `run`, with N = 1.

        Returns:
            Nanoseconds, one for each operator of the plan, in its order. Some 30 ns of each are the clock's.

        Raises:
            ValueError: As for `run`; or there is more than one sample.
        """
        return self._native.profile(inputs if isinstance(inputs, dict) else dict(inputs))
