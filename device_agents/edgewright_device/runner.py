"""Runner: a loaded artifact, on one of the engines this machine has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Arrays, Artifact
from edgewright_device.errors import RunnerError

BACKENDS = ("native", "onnxruntime", "litert", "reference")


class Backend(Protocol):
    """An engine with one artifact loaded; inputs were checked before they reach it."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        ...


class Runner:
    """Runs an artifact.

    Args:
        artifact: What to run.
        backend: "native" (the exact integer engine), "onnxruntime" (model.onnx), "litert" (model.tflite), or
            "reference" (the numpy definition of the integer program: exact and slow).
        threads: Threads that share one call; the reference uses one. The native engine takes at most 64, and
            gives the same bits for any number.

    Raises:
        RunnerError: The backend is not installed, or cannot run this artifact.
        ValueError: There is no such backend, or a number of threads that is not allowed.
    """

    def __init__(self, artifact: Artifact, backend: str = "native", *, threads: int = 1) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if threads < 1:
            raise ValueError(f"{threads} threads: one at least is needed")
        self.artifact = artifact
        self.backend = backend
        self._samples = {p.name: (p.shape[1:], np.dtype(p.dtype)) for p in artifact.inputs}
        self._backend = _load(artifact, backend, threads)

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> Arrays:
        """Runs one batch; safe to call from several threads at once.

        Args:
            inputs: By name; dtype and shape as in `artifact.inputs`, the same batch size N >= 1 for all.

        Returns:
            By name; float32, batch first.

        Raises:
            ValueError: A missing or unknown name, a wrong shape or dtype.
        """
        return self._backend.run(self._checked(inputs))

    def _checked(self, inputs: Mapping[str, npt.ArrayLike]) -> Arrays:
        # Every call pays for this: no work that is done already, no text before it is needed.
        if inputs.keys() != self._samples.keys():
            raise ValueError(f"inputs {sorted(inputs)}: this model takes {sorted(self._samples)}")
        arrays: Arrays = {}
        batch = 0
        for name, (sample, dtype) in self._samples.items():
            array = np.asarray(inputs[name])
            if array.dtype != dtype:
                raise ValueError(f"input {name!r}: dtype {array.dtype}, {dtype} is needed")
            shape = array.shape
            if shape[1:] != sample or not shape or not shape[0]:
                want = ", ".join(map(str, ("N", *sample)))
                raise ValueError(f"input {name!r}: shape {shape}, ({want}) with N >= 1 is needed")
            if batch not in (0, shape[0]):
                sizes = {n: len(np.asarray(a)) for n, a in inputs.items()}
                raise ValueError(f"the inputs differ in batch size: {sizes}")
            batch = shape[0]
            arrays[name] = np.ascontiguousarray(array)
        return arrays


def _load(artifact: Artifact, backend: str, threads: int) -> Backend:
    if backend == "onnxruntime":
        from edgewright_device.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(artifact, threads=threads)
    if backend == "litert":
        from edgewright_device.backends.litert import LiteRtBackend

        return LiteRtBackend(artifact, threads=threads)
    if "plan.bin" not in artifact.files:
        raise RunnerError(
            f"{artifact.path}: has no integer program (plan.bin), so the {backend} backend cannot run it; "
            "use backend 'onnxruntime'"
        )
    if backend == "reference":
        from edgewright_device.backends.reference import ReferenceBackend

        return ReferenceBackend(artifact)
    from edgewright_device.backends.native import NativeBackend

    return NativeBackend(artifact, threads=threads)
