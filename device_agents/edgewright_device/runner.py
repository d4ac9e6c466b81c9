"""Runner: a loaded artifact, on one of the engines this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import Part
from edgewright_device.provider import Choice

if TYPE_CHECKING:
    from edgewright_device.backends.negotiation import Negotiated
    from edgewright_device.backends.program import Program

BACKENDS = ("native", "onnxruntime", "litert", "reference")
EXACT_BACKENDS = frozenset({"native", "reference"})


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
            "reference" (the numpy definition of the integer program: exact and slow). The first and the last
            hand those parts of a model that have no program to ONNX Runtime.
        providers: For "onnxruntime": execution providers in order of preference, such as ("OpenVINO", "CPU")
            or ("OpenVINO:NPU",); the first runs that is installed and takes the model. Without "CPU" among
            them, it is an error if none does. Left out, the CPU's, whose integers are exact.
        cache: Where providers keep what they compile for this machine; None keeps nothing.
        threads: Threads that share one call; the reference uses one. The native engine takes at most 64, and
            gives the same bits for any number.

    Raises:
        RunnerError: The backend is not installed, or cannot run this artifact; or no provider asked for can.
        ValueError: There is no such backend or provider, or a number of threads that is not allowed.
    """

    def __init__(
        self,
        artifact: Artifact,
        backend: str = "native",
        *,
        threads: int = 1,
        providers: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if threads < 1:
            raise ValueError(f"{threads} threads: one at least is needed")
        if providers and backend != "onnxruntime":
            raise ValueError(f"providers are for backend 'onnxruntime', not {backend!r}")
        self.artifact = artifact
        self.backend = backend
        self._samples = {p.name: (p.shape[1:], np.dtype(p.dtype)) for p in artifact.inputs}
        self.provider: Negotiated | None = None
        """On ONNX Runtime: which provider runs the model, and why others do not."""
        if backend == "onnxruntime":
            choices = tuple(map(Choice.of, providers))
            self._backend, self.provider = _onnxruntime(artifact, threads, choices, cache)
        else:
            self._backend = _load(artifact, backend, threads)

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> Arrays:
        """Runs one batch; safe to call from several threads at once.

        Args:
            inputs: By name; dtype and shape as in `artifact.inputs`, the same batch size N >= 1 for all, and
                the same length of sequences, where it is free.

        Returns:
            By name; float32, batch first.

        Raises:
            ValueError: A missing or unknown name, a wrong shape or dtype, a length that cannot be run.
        """
        return self._backend.run(self._checked(inputs))

    def run_parts(self, values: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Part, Arrays]]:
        """Runs each part of a model in parts alone, on values that were recorded; none for other models.

        Args:
            values: `artifact.golden_values()`, or others like them.

        Yields:
            The part, and what it gives, by name.
        """
        for place, part in enumerate(self.artifact.parts if self.backend in EXACT_BACKENDS else ()):
            backend: Any = self._backend
            yield part, backend.run_part(place, values)

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
            if (shape[1:] != sample and not _fits(shape, sample)) or not shape or not shape[0]:
                want = ", ".join("length" if d is None else str(d) for d in ("N", *sample))
                raise ValueError(f"input {name!r}: shape {shape}, ({want}) with N >= 1 is needed")
            if batch not in (0, shape[0]):
                sizes = {n: len(np.asarray(a)) for n, a in inputs.items()}
                raise ValueError(f"the inputs differ in batch size: {sizes}")
            batch = shape[0]
            arrays[name] = np.ascontiguousarray(array)
        if self.artifact.lengths is not None:
            self._check_lengths(arrays)
        return arrays

    def _check_lengths(self, arrays: Arrays) -> None:
        lengths = {
            n: arrays[n].shape[1 + sample.index(None)]
            for n, (sample, _) in self._samples.items()
            if None in sample
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the inputs differ in length: {lengths}")


def _fits(shape: tuple[int, ...], sample: tuple[int | None, ...]) -> bool:
    """Whether the size behind the batch fit, of which one may be free."""
    return len(shape) == 1 + len(sample) and all(
        want == has or (want is None and has) for has, want in zip(shape[1:], sample, strict=True)
    )


def _load(artifact: Artifact, backend: str, threads: int) -> Backend:
    if backend == "litert":
        from edgewright_device.backends.litert import LiteRtBackend

        return LiteRtBackend(artifact, threads=threads)
    if not artifact.native:
        raise RunnerError(
            f"{artifact.path}: has no integer program (plan.bin), so the {backend} backend cannot run it; "
            "use backend 'onnxruntime'"
        )
    from edgewright_device.backends.program import read_program

    load = _loader(artifact, backend, threads)
    if artifact.parts:
        from edgewright_device.backends.parts import PartsBackend

        return PartsBackend(artifact, load, threads=threads)
    if artifact.lengths is None:
        return load(read_program(artifact))
    from edgewright_device.backends.lengths import LengthsBackend

    programs = {size: read_program(artifact, length=size) for size in artifact.lengths.sizes}
    return LengthsBackend(artifact, lambda size: load(programs[size]), artifact.lengths.sizes)


def _loader(artifact: Artifact, backend: str, threads: int) -> Callable[[Program], Backend]:
    """What makes one of the exact backends of a program."""
    if backend == "reference":
        from edgewright_device.backends.reference import ReferenceBackend

        return lambda program: ReferenceBackend(artifact, program)
    from edgewright_device.backends.native import NativeBackend

    return lambda program: NativeBackend(artifact, program, threads=threads)


def _onnxruntime(
    artifact: Artifact, threads: int, providers: Sequence[Choice], cache: Path | None
) -> tuple[Backend, Negotiated]:
    """model.onnx, which takes one length of sequences: the largest."""
    from edgewright_device.backends.onnxruntime import OnnxRuntimeBackend

    model = OnnxRuntimeBackend(artifact, threads=threads, providers=providers, cache=cache)
    if artifact.lengths is None:
        return model, model.negotiated
    from edgewright_device.backends.lengths import LengthsBackend

    return LengthsBackend(artifact, lambda _: model, artifact.lengths.sizes[-1:]), model.negotiated
