"""A side of a comparison: a model, and how it is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgewright.errors import ExportError, VerifyError
from edgewright_device import BACKENDS, Artifact, Runner
from edgewright_kernels import cpu_paths

Arrays = Mapping[str, npt.NDArray[Any]]
Outputs = list[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is compared: an artifact in a configuration, or an `.onnx` file in stock ONNX Runtime.

    Attributes:
        path: NAME.ew or NAME.onnx.
        backend: Of an artifact; None for the native engine, or ONNX Runtime where there is no program.
        threads: That share one call.
        kernels: Kernel path of the native engine, such as "avx2"; None for the best, or EDGEWRIGHT_CPU.
    """

    path: Path
    backend: str | None = None
    threads: int = 1
    kernels: str | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be run.

        Raises:
            ValueError: An unknown backend or kernel path, or a number of threads that is not allowed.
        """
        if self.backend is not None and self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        if self.kernels is not None and self.kernels not in cpu_paths():
            raise ValueError(f"kernels {self.kernels!r}: this CPU can run {', '.join(cpu_paths())}")
        if self.kernels is not None and self.backend not in (None, "native"):
            raise ValueError(f"kernels are a choice of the native engine; backend {self.backend!r} has none")
        if not 1 <= self.threads <= 64:
            raise ValueError(f"{self.threads} threads: 1 to 64 can be used")
        if self.is_onnx and (self.backend or self.kernels):
            raise ValueError(
                f"{self.path}: stock ONNX Runtime runs it; backend and kernels are for artifacts"
            )

    @property
    def is_onnx(self) -> bool:
        """Whether it is a file for stock ONNX Runtime."""
        return self.path.suffix == ".onnx"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads PATH, or PATH@SETTING=VALUE,… with the settings backend, threads and kernels.

        Raises:
            ValueError: It says something else.
        """
        path, _, rest = text.partition("@") if not Path(text).exists() else (text, "", "")
        settings: dict[str, Any] = {}
        for item in rest.split(",") if rest else ():
            key, equals, value = item.partition("=")
            if key not in ("backend", "threads", "kernels") or not equals or not value:
                raise ValueError(f"{text!r}: {item!r} is not backend=NAME, threads=NUMBER or kernels=NAME")
            settings[key] = value
        if "threads" in settings:
            if not settings["threads"].isdecimal():
                raise ValueError(f"{text!r}: threads must be a number")
            settings["threads"] = int(settings["threads"])
        return cls(path=Path(path), **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSide:
    """A side, ready to run.

    Attributes:
        side: What it is of.
        title: For people: the file, and how it runs.
        inputs: Names of its inputs, in order.
        scales: Steps of its outputs' grids, in order; empty where it has none.
        size_bytes: On disk.
        example: Inputs that came with it, by name; None for an `.onnx` file.
        run: From inputs by name to outputs in order.
    """

    side: Side
    title: str
    inputs: tuple[str, ...]
    scales: tuple[float, ...]
    size_bytes: int
    example: Arrays | None
    run: Callable[[Arrays], Outputs]


def load_side(side: Side) -> LoadedSide:
    """Loads it.

    Raises:
        ArtifactError: It is not an artifact.
        RunnerError: The backend is not installed, or cannot run it.
        ExportError: ONNX Runtime cannot load the file.
    """
    return _load_onnx(side) if side.is_onnx else _load_artifact(side)


def feed_for(loaded: LoadedSide, inputs: Arrays, count: int | None = None) -> Arrays:
    """Inputs under this side's names: its own where they are, else in order; at most `count` samples.

    Raises:
        VerifyError: There are more, or fewer, than it takes.
    """
    if len(inputs) != len(loaded.inputs):
        raise VerifyError(f"{loaded.side.path}: takes {len(loaded.inputs)} inputs, {len(inputs)} are given")
    if inputs.keys() == set(loaded.inputs):
        named = {name: inputs[name] for name in loaded.inputs}
    else:
        named = dict(zip(loaded.inputs, inputs.values(), strict=True))
    return {name: np.ascontiguousarray(value[:count]) for name, value in named.items()}


def _load_artifact(side: Side) -> LoadedSide:
    artifact = Artifact.open(side.path)
    backend = side.backend or ("native" if artifact.native else "onnxruntime")
    if side.kernels and backend != "native":
        raise VerifyError(f"{side.path}: has no integer program (plan.bin), so no kernels to choose")
    example, _ = artifact.golden()
    names = tuple(p.name for p in artifact.inputs)
    order = [p.name for p in artifact.outputs]
    with _kernels(side.kernels):
        runner = Runner(artifact, backend=backend, threads=side.threads)
        runner.run({n: example[n][:1] for n in names})  # an engine may be made at its first call

    def run(inputs: Arrays) -> Outputs:
        outputs = runner.run(inputs)
        return [outputs[name] for name in order]

    how = [side.kernels or os.environ.get("EDGEWRIGHT_CPU") or cpu_paths()[0]] if backend == "native" else []
    if side.threads > 1:
        how.append(f"{side.threads} threads")
    return LoadedSide(
        side=side,
        title=f"{side.path.name} ({', '.join([backend, *how])})",
        inputs=names,
        scales=tuple(p.scale or 0.0 for p in artifact.outputs),
        size_bytes=artifact.size_bytes,
        example={n: example[n] for n in names},
        run=run,
    )


def _load_onnx(side: Side) -> LoadedSide:
    import onnxruntime

    if not side.path.is_file():
        raise ExportError(f"{side.path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = side.threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(side.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise ExportError(f"{side.path}: ONNX Runtime cannot load it ({error})") from error

    def run(inputs: Arrays) -> Outputs:
        try:
            outputs: Sequence[npt.NDArray[Any]] = session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise ExportError(f"{side.path}: ONNX Runtime cannot run it on these inputs ({error})") from error
        return list(outputs)

    threads = f", {side.threads} threads" if side.threads > 1 else ""
    return LoadedSide(
        side=side,
        title=f"{side.path.name} (stock ONNX Runtime{threads})",
        inputs=tuple(i.name for i in session.get_inputs()),
        scales=(),
        size_bytes=_onnx_bytes(side.path),
        example=None,
        run=run,
    )


def _onnx_bytes(path: Path) -> int:
    """Of the file, and of those that it has its weights in."""
    import onnx

    tensors = onnx.load(path, load_external_data=False).graph.initializer
    beside = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    return sum(p.stat().st_size for p in (path, *(path.parent / name for name in beside)))


@contextmanager
def _kernels(path: str | None) -> Iterator[None]:
    """Engines made meanwhile use this kernel path."""
    if path is None:
        yield
        return
    before = os.environ.get("EDGEWRIGHT_CPU")
    os.environ["EDGEWRIGHT_CPU"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGEWRIGHT_CPU"]
        else:
            os.environ["EDGEWRIGHT_CPU"] = before
