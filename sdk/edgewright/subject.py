"""What is verified: an artifact as its engine runs it, or an ONNX file as ONNX Runtime runs it.

Either way there are three things to tell apart: the float model (not here), what the integers are *defined*
to give (`exact`), and what the engine gives that will run them (`run`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError, VerifyError
from edgewright.graph import in_pieces, onnx_function, quantizes, read_onnx
from edgewright.wiring import initializers
from edgewright_device import Artifact, Port, Runner

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Arrays]
Runtime = Literal["native", "onnxruntime"]

_DTYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


@dataclass(frozen=True, kw_only=True)  # no slots: the graph is read once, when first asked for
class Subject:
    """A model to verify, with the ways to run it.

    Attributes:
        path: The artifact, or the ONNX file.
        name: For people.
        digest: SHA-256: an artifact's digest, or that of the file with its external data.
        inputs: Name, shape and dtype of each input, with the range that cases may take.
        outputs: The same of each output, with its grid; of a float output its scale is 0.
        runtime: The engine that `run` is.
        run: Inputs by name, batch first, to outputs by name, as the engine computes them.
        exact: The same as the integers define it, slowly: the numpy reference of the integer program; for an
            ONNX file the graph operator by operator, without ONNX Runtime's integer kernels.
        artifact: None of an ONNX file.
    """

    path: Path
    name: str
    digest: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    runtime: Runtime
    run: Run
    exact: Run
    artifact: Artifact | None

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The QDQ graph, or a float one, with its constants inside."""
        file = self.path if self.artifact is None else self.path / "model.onnx"
        try:
            return read_onnx(file)
        except ExportError as error:
            raise VerifyError(str(error)) from error

    def sizes(self, port: Port, length: int | None = None) -> tuple[int, ...]:
        """A port's shape behind the batch; where it is free, with this length, or the largest."""
        if length is None:
            lengths = self.artifact.lengths if self.artifact else None
            length = lengths.sizes[-1] if lengths else 0
        return tuple(length if d is None else d for d in port.shape[1:])


def of_artifact(artifact: Artifact) -> Subject:
    """An artifact: on the native engine where it has a program, else on ONNX Runtime, exactly.

    Raises:
        RunnerError: It cannot be loaded.
    """
    native = artifact.native
    runtime: Runtime = "native" if native else "onnxruntime"
    engine = Runner(artifact, backend=runtime)
    return Subject(
        path=artifact.path,
        name=artifact.name,
        digest=artifact.digest,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        runtime=runtime,
        run=engine.run,
        exact=Runner(artifact, backend="reference").run if native else _by_operator(artifact),
        artifact=artifact,
    )


def _by_operator(artifact: Artifact) -> Run:
    """model.onnx without ONNX Runtime's integer kernels."""
    try:
        return onnx_function(read_onnx(artifact.path / "model.onnx"))
    except ExportError as error:
        raise VerifyError(str(error)) from error


def of_onnx(path: Path, data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None) -> Subject:
    """An ONNX file, float or QDQ, in ONNX Runtime as it comes: on the CPU, with all its rewrites and kernels.

    Args:
        path: The file. Inputs are float32 or int64, outputs float32, the batch first.
        data: Real samples; an ONNX file says nothing of the range of its inputs, so these do.

    Raises:
        VerifyError: It cannot be read or run, there is no data, or its ports are of other kinds.
    """
    try:
        graph = read_onnx(path)
        exact = onnx_function(graph)
    except ExportError as error:
        raise VerifyError(str(error)) from error
    constants = initializers(graph)
    inputs = [v for v in graph.graph.input if v.name not in constants]
    if data is None:
        raise VerifyError(
            f"{path}: an ONNX file does not say what its inputs look like; give real samples (data)"
        )
    given = data if isinstance(data, Mapping) else {inputs[0].name: data}
    if given.keys() != {v.name for v in inputs}:
        raise VerifyError(
            f"data is for inputs {sorted(given)}; {path} takes {sorted(v.name for v in inputs)}"
        )
    samples = {name: np.asarray(values) for name, values in given.items()}
    outputs = {v.name: v for v in graph.graph.output}
    one = {v.name: _cast(path, v, samples[v.name][:1]) for v in inputs}
    run, exact = _stock(path, graph), in_pieces(graph, exact)
    try:
        shapes = {name: value.shape for name, value in run(one).items()}
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise VerifyError(f"{path}: ONNX Runtime cannot run it on these samples ({error})") from error
    return Subject(
        path=path,
        name=path.stem,
        digest=hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
        inputs=tuple(_port(path, graph, v, samples[v.name].shape, samples[v.name]) for v in inputs),
        outputs=tuple(_port(path, graph, v, shapes[name], None) for name, v in outputs.items()),
        runtime="onnxruntime",
        run=run,
        exact=exact if quantizes(graph) else run,
        artifact=None,
    )


def _cast(path: Path, value: onnx.ValueInfoProto, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(value.type.tensor_type.elem_type)
    if dtype is None:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise VerifyError(f"{path}: input {value.name!r} is {kind}; float32 and int64 can be verified")
    try:
        return samples.astype(dtype)
    except (TypeError, ValueError) as error:
        raise VerifyError(f"data for {value.name!r} must be numbers ({error})") from None


def _port(
    path: Path,
    graph: onnx.ModelProto,
    value: onnx.ValueInfoProto,
    shape: tuple[int, ...],
    samples: npt.NDArray[Any] | None,
) -> Port:
    kind = value.type.tensor_type.elem_type
    if samples is None and kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise VerifyError(f"{path}: output {value.name!r} is {name}; float32 can be verified")
    finite = samples is not None and samples.size > 0 and bool(np.isfinite(samples).all())
    scale, zero_point = _grid(graph, value.name)
    return Port(
        name=value.name,
        shape=(None, *shape[1:]),
        dtype=_DTYPES[kind],
        scale=scale,
        zero_point=zero_point,
        minimum=float(samples.min()) if samples is not None and finite else 0.0,
        maximum=float(samples.max()) if samples is not None and finite else 0.0,
    )


def _grid(graph: onnx.ModelProto, name: str) -> tuple[float, int]:
    """The grid of the DequantizeLinear that gives a value; (0, 0) where none does."""
    constants = initializers(graph)
    for node in graph.graph.node:
        if name in node.output and node.op_type == "DequantizeLinear" and node.input[1] in constants:
            scale = constants[node.input[1]]
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if scale.size == 1:
                return float(scale.reshape(())), 0 if zero is None else int(zero.reshape(()))
    return 0.0, 0


def _stock(path: Path, graph: onnx.ModelProto) -> Run:
    """ONNX Runtime as it comes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise VerifyError(f"{path}: ONNX Runtime cannot load it ({error})") from error
    names = [o.name for o in session.get_outputs()]
    return in_pieces(graph, lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True)))
