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

    With `threads` above 1 the engine starts threads of its own, which sleep between calls and end with it. Of
    several calls at once, one at a time has them to help and the others work alone; none waits. The bits are
    the same either way. A forked process starts new ones at its first call.

    The plan and the weights are untrusted: both are checked whole before anything runs. The engine packs its
    own copy of the weights and keeps no hold on `weights`.

    Args:
        plan: The bytes of `plan.bin`.
        weights: The whole weights file, as any contiguous buffer, such as an mmap.
        cpu: The kernel path, one of `cpu_paths()`. By default what the environment variable EDGEWRIGHT_CPU
            names, and without it the best.
        threads: How many threads share one call, the calling one included: 1 to 64. Operators too small to be
            worth it stay on one.

    Raises:
        PlanError: The plan or the weights are damaged, or do not belong together.
        UnsupportedError: An operator, plan version or CPU path that is not here, or more threads than
            the system gives.
        ValueError: A number of threads that is not allowed.
    """

    def __init__(self, plan: bytes, weights: Buffer, *, cpu: str | None = None, threads: int = 1) -> None:
        self._native = _native.Engine(plan, memoryview(weights), cpu or "", threads)  # type: ignore[arg-type]

    @property
    def cpu(self) -> str:
        """Name of the kernel path in use."""
        return self._native.cpu

    @property
    def threads(self) -> int:
        """How many threads share one call."""
        return self._native.threads

    @property
    def arena_bytes(self) -> int:
        """Working memory of one call, in bytes: the plan's arena and a scratch for each thread."""
        return self._native.arena_bytes

    @property
    def packed_bytes(self) -> int:
        """Memory that the packed weights take, in bytes, for as long as the engine lives.

        With `arena_bytes` for each call at once (up to 16 are kept for later calls) and the program itself,
        up to some twenty times the size of `plan.bin`, that is all the engine takes.
        """
        return self._native.packed_bytes

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
