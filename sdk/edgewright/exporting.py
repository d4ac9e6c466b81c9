"""Export: a trained model becomes an artifact."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from edgewright.calibrate import Grid, Observed, observe
from edgewright.errors import ExportError
from edgewright.graph import float_graph, forward_parameters, onnx_function
from edgewright.indices import tabulate
from edgewright.lower import lower
from edgewright.normalform import normalize
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import BaseGrids, Quantized, activations_to_observe, quantize_graph
from edgewright.recipe import Quantize
from edgewright.wiring import value_shapes
from edgewright_device import Artifact, Port, Target, check_place, encode_golden, write_artifact
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import ByteRange, encode

if TYPE_CHECKING:
    from torch import nn

GOLDEN_SAMPLES = 8
GOLDEN_INPUT_BYTES = 24 << 20
MAX_CALIBRATION_SAMPLES = 1024
OPTIMIZED_TOLERANCE = 1e-4

Backend = Literal["native", "onnxruntime"]
Samples = dict[str, npt.NDArray[Any]]


def export(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    target: Target | str,
    calibration: Any,
    out: str | os.PathLike[str],
    base: Artifact | None = None,
    quantize: Quantize | None = None,
    backend: Backend = "native",
    progress: OnProgress | None = None,
) -> Artifact:
    """Quantizes a model to INT8 and writes it as an artifact.

    Args:
        model: A module, or the path of a `.pt2` program or an `.onnx` file. Batch first; inputs of float32,
            or of int64 for row numbers of tables (tokens) and masks of 0 and 1. All other sizes are fixed,
            the length of sequences among them.
        example_inputs: For a module: the arguments of one call. Left out, calibration samples serve.
        target: What will run it.
        calibration: Samples like those the model will see: an array (samples, ...); a mapping of such arrays
            by input name; or batches, each an array or (inputs, labels), such as `Data.train`. The first
            1,024 samples are used.
        out: The directory to write, `NAME.ew`; NAME becomes the model's name. An artifact there is replaced.
        base: The artifact now on the devices: its grids are kept where they still fit, so an update is small.
        quantize: How activation ranges are chosen (a recipe's `quantize`); min-max if left out.
        backend: "native" includes the integer program. "onnxruntime" leaves it out, and so takes models with
            operators that the native engine lacks.
        progress: Called as the work goes on.

    Returns:
        The artifact, opened.

    Raises:
        ExportError: The model cannot be read, traced, quantized, or run by the target; the message names the
            layer and the remedy.
        ArtifactError: `out` is something else than an artifact.
        TargetError: The target is not known.
    """
    target = target if isinstance(target, Target) else Target.load(target)
    if backend not in target.backends:
        raise ExportError(f"target {target.name!r} has no backend {backend!r}; choose from {target.backends}")
    report = progress or _ignore
    path = Path(out)
    name = path.name.removesuffix(".ew")
    try:
        check_place(path, name)
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from None
    if isinstance(calibration, Iterator):  # which can be gone through once
        calibration = list(itertools.islice(calibration, MAX_CALIBRATION_SAMPLES))

    report(Progress(step="trace", done=0, total=1))
    if isinstance(model, str | os.PathLike):
        graph = float_graph(Path(model))
    else:
        graph = float_graph(
            model, _as_tuple(_head(model, calibration) if example_inputs is None else example_inputs)
        )
    _check_ports(graph)
    graph = tabulate(graph)
    report(Progress(step="trace", done=1, total=1))
    samples = calibration_samples(calibration, graph)

    settings = quantize or Quantize()
    watched = [v.name for v in (*graph.graph.input, *graph.graph.output)] + activations_to_observe(graph)
    observed = observe(
        graph,
        watched,
        samples,
        lambda done, total: report(Progress(step="calibrate", done=done, total=total)),
        histograms=settings.calibration != "minmax",
    )
    quantized = quantize_graph(
        graph,
        observed,
        method=settings.calibration,
        percentile=settings.percentile,
        base=base_grids(base) if base else None,
        overflow_safe=settings.overflow_safe,
    )
    report(Progress(step="quantize", done=1, total=1, metrics={"kept_grids": quantized.kept_grids}))

    weights = safetensors.numpy.save(dict(sorted(quantized.weights.items())))
    ranges = byte_ranges(weights)
    files = {"weights.safetensors": weights, "model.onnx": _with_external_data(quantized.model, ranges)}
    golden_inputs = _golden_inputs(samples)
    if backend == "native":
        plan = lower(quantized.model, ranges, len(weights))
        needed = plan.arena_bytes + len(weights)
        if needed > target.memory_bytes:
            raise ExportError(
                f"the model needs {needed} bytes (weights and arena), target {target.name!r} has "
                f"{target.memory_bytes}; compress it further"
            )
        try:
            files["plan.bin"] = encode(plan)
            golden = Engine(files["plan.bin"], weights).run(golden_inputs)
        except (KernelError, ValueError) as error:
            raise ExportError(f"the native engine cannot run this model: {error}") from error
    else:
        golden = onnx_function(quantized.model)(golden_inputs)
    files["golden.npz"] = encode_golden(golden_inputs, golden)
    artifact = write_artifact(
        path,
        name=name,
        producer=f"edgewright {version('edgewright')}",
        targets=(target.name,),
        inputs=tuple(_port(v, quantized, observed, samples) for v in graph.graph.input),
        outputs=tuple(_port(v, quantized, observed, samples) for v in graph.graph.output),
        files=files,
    )
    report(Progress(step="write", done=1, total=1))
    return artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A float32 ONNX file that was written.

    Attributes:
        path: Where.
        nodes: Operators in the graph.
        size_bytes: Of the file.
        largest_error: Largest absolute difference that optimization made on random inputs, relative to the
            largest output; None when it was not asked for.
    """

    path: Path
    nodes: int
    size_bytes: int
    largest_error: float | None


def export_onnx(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    optimize: bool = False,
) -> OnnxFile:
    """Writes a model as float32 ONNX.

    Args:
        model: A module, or the path of a `.pt2` or `.onnx` file.
        out: The file to write.
        example_inputs: For a module: the arguments of one call.
        optimize: Simplify the graph (onnxslim, then one form for equal things); the result is compared with
            the graph before on random inputs, and refused when it differs.

    Raises:
        ExportError: The model cannot be read or traced, or the optimized graph is not equal.
    """
    source = Path(model) if isinstance(model, str | os.PathLike) else model
    path = Path(out)
    if isinstance(source, Path) and path.exists() and source.exists() and path.samefile(source):
        raise ExportError(f"{path}: is the model itself, which would be lost; write it to another file")
    graph = float_graph(source, None if example_inputs is None else _as_tuple(example_inputs), slim=False)
    error = None
    if optimize:
        before, graph = graph, normalize(graph)
        error = _largest_error(before, graph)
        if not error <= OPTIMIZED_TOLERANCE:
            raise ExportError(
                f"the optimized graph differs by {error:.2g} of the largest output; nothing was written"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return OnnxFile(
        path=path, nodes=len(graph.graph.node), size_bytes=path.stat().st_size, largest_error=error
    )


def _largest_error(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Largest absolute difference of two graphs on random inputs, relative to the largest output."""
    random = np.random.default_rng(0)
    shapes = value_shapes(before)
    names = [i.name for i in before.graph.input]
    _check_ports(before)
    kinds = {i.name: i.type.tensor_type.elem_type for i in before.graph.input}
    feed: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        shape = (8, *(d or 1 for d in shapes[name][1:]))
        whole = kinds[name] == onnx.TensorProto.INT64
        feed[name] = random.integers(0, 2, shape) if whole else random.random(shape, np.float32)
    a, b = onnx_function(before)(feed), onnx_function(after)(feed)
    return float(np.max([np.abs(a[n] - b[n]).max() / max(np.abs(a[n]).max(), 1e-30) for n in a]))


def calibration_samples(calibration: Any, graph: onnx.ModelProto) -> Samples:
    """Calibration data in any accepted form, as arrays by input name, shape (samples, ...), of its dtype.

    Raises:
        ExportError: Names or shapes do not fit the graph's inputs, or there is not one sample.
    """
    shapes = value_shapes(graph)
    whole = {i.name for i in graph.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    names = [i.name for i in graph.graph.input]
    samples: Samples = {}
    if isinstance(calibration, Mapping):
        samples = {
            str(k): np.atleast_1d(_array(v, k in whole))[:MAX_CALIBRATION_SAMPLES]
            for k, v in calibration.items()
        }
    elif hasattr(calibration, "shape"):
        samples = {names[0]: np.atleast_1d(_array(calibration, names[0] in whole))[:MAX_CALIBRATION_SAMPLES]}
    else:
        batches: list[tuple[npt.NDArray[Any], ...]] = []
        count = 0
        for batch in calibration:
            parts = zip(_as_tuple(batch), names, strict=False)
            batches.append(tuple(_array(part, name in whole) for part, name in parts))
            if len(batches[-1]) < len(names) or any(part.ndim == 0 for part in batches[-1]):
                raise ExportError(f"each batch of calibration data must begin with the inputs {names}")
            count += len(batches[-1][0])
            if count >= MAX_CALIBRATION_SAMPLES:
                break
        if batches:
            columns = zip(*batches, strict=True)
            samples = {
                name: _joined(name, column)[:MAX_CALIBRATION_SAMPLES]
                for name, column in zip(names, columns, strict=False)
            }
    if not samples or any(len(v) == 0 for v in samples.values()):
        raise ExportError("no calibration data: give at least one sample, better some hundred")
    if samples.keys() != set(names):
        raise ExportError(
            f"calibration data is for inputs {sorted(samples)}; the model takes {sorted(names)}"
        )
    if len({len(v) for v in samples.values()}) > 1:
        counts = {n: len(v) for n, v in samples.items()}
        raise ExportError(f"the inputs differ in their number of calibration samples: {counts}")
    for name, value in samples.items():
        if value.shape[1:] != tuple(shapes[name][1:]):
            want = ", ".join(map(str, shapes[name][1:]))
            raise ExportError(
                f"calibration data for {name!r} has shape {value.shape}; (samples, {want}) is needed"
            )
    return {name: samples[name] for name in names}


def _joined(name: str, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise ExportError(f"calibration batches for {name!r} do not fit together ({error})") from None


def byte_ranges(weights: bytes) -> dict[str, ByteRange]:
    """Where each tensor of a safetensors file lies, counted from the start of the file."""
    (length,) = struct.unpack_from("<Q", weights)
    header = json.loads(weights[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: ByteRange(offset=8 + length + begin, size=end - begin)
        for name, (begin, end) in ((n, e["data_offsets"]) for n, e in header.items())
    }


def base_grids(base: Artifact) -> BaseGrids:
    """The grids that an artifact's QDQ graph and weights use."""
    model = onnx.load_from_string(base.read("model.onnx"))
    weights = safetensors.numpy.load(base.read("weights.safetensors"))
    inline = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.data_location != onnx.TensorProto.EXTERNAL
    }
    grids = {
        node.output[0].removesuffix("_quantized"): Grid(
            scale=float(inline[node.input[1]]), zero_point=int(inline[node.input[2]])
        )
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    scales = {n.removesuffix(".scale"): w for n, w in weights.items() if n.endswith(".scale")}
    return BaseGrids(activations=grids, weights=scales)


def _with_external_data(model: onnx.ModelProto, ranges: Mapping[str, ByteRange]) -> bytes:
    """The graph's bytes, with every constant that weights.safetensors holds taken from there."""
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    for tensor in slim.graph.initializer:
        if tensor.name not in ranges:
            continue
        place = ranges[tensor.name]
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (
            ("location", "weights.safetensors"),
            ("offset", str(place.offset)),
            ("length", str(place.size)),
        ):
            tensor.external_data.add(key=key, value=value)
    data: bytes = slim.SerializeToString(deterministic=True)
    return data


def _check_ports(graph: onnx.ModelProto) -> None:
    for value in (*graph.graph.input, *graph.graph.output):
        kind = value.type.tensor_type.elem_type
        shape = value_shapes(graph)[value.name]
        is_input = any(value.name == i.name for i in graph.graph.input)
        if kind != onnx.TensorProto.FLOAT and not (is_input and kind == onnx.TensorProto.INT64):
            got = onnx.TensorProto.DataType.Name(kind).lower()
            raise ExportError(
                f"{value.name!r} is {got}; inputs must be float32, or int64 for row numbers of tables, "
                "outputs float32"
            )
        if len(shape) < 2 or shape[0] is not None or None in shape[1:]:
            raise ExportError(
                f"{value.name!r} has shape {shape}; the first dimension must be a free batch size, the "
                "others fixed: export the model to ONNX with dynamic batch only"
            )


def _port(
    value: onnx.ValueInfoProto, quantized: Quantized, observed: Mapping[str, Observed], samples: Samples
) -> Port:
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
    if value.name not in observed:
        return Port(
            name=value.name,
            shape=(None, *dims),
            dtype="int64",
            scale=0.0,
            zero_point=0,
            minimum=float(samples[value.name].min()),
            maximum=float(samples[value.name].max()),
        )
    seen = observed[value.name]
    grid = quantized.grids.get(value.name) or Grid.around(seen.minimum, seen.maximum)
    return Port(
        name=value.name,
        shape=(None, *dims),
        dtype="float32",
        scale=grid.scale,
        zero_point=grid.zero_point,
        minimum=seen.minimum,
        maximum=seen.maximum,
    )


def _golden_inputs(samples: Samples) -> Samples:
    """The first samples, as many as golden.npz has room for with their outputs."""
    one = sum(value[:1].nbytes for value in samples.values())
    return {n: v[: max(1, min(GOLDEN_SAMPLES, GOLDEN_INPUT_BYTES // one))] for n, v in samples.items()}


def _array(value: Any, whole: bool = False) -> npt.NDArray[Any]:
    """An array of float32, or of int64 where whole numbers are wanted."""
    try:
        if whole:
            given = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if given.dtype.kind not in "biu" and not np.array_equal(given, np.rint(given)):
                raise TypeError("whole numbers are needed")
            return given.astype(np.int64)
        with np.errstate(over="ignore"):  # what is too large becomes infinity, which calibration refuses
            return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float32)
    except (TypeError, ValueError) as error:
        raise ExportError(f"calibration data must be arrays of numbers ({error})") from None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _head(model: nn.Module, calibration: Any) -> Sequence[Any]:
    """Arguments of one call of a module, from calibration data."""
    parameters = forward_parameters(model)
    if isinstance(calibration, Mapping):
        if unknown := calibration.keys() - parameters.keys():
            raise ExportError(
                f"calibration data is for inputs {sorted(map(str, calibration))}; forward takes "
                f"{list(parameters)}, not {min(map(str, unknown))!r}"
            )
        return _examples(model, [calibration[n] for n in parameters if n in calibration])
    if hasattr(calibration, "shape"):
        return _examples(model, [calibration])
    first = next(iter(calibration), None) if isinstance(calibration, Iterable) else None
    if first is None:
        raise ExportError("no calibration data: give at least one sample, better some hundred")
    count = max(1, sum(parameters.values()))  # what follows the inputs in a batch are labels
    return _examples(model, _as_tuple(first)[:count])


def _examples(model: nn.Module, parts: Sequence[Any]) -> list[npt.NDArray[Any]]:
    """Two samples of each input: whole numbers as int64 where the model takes them so, else float32."""
    import torch

    whole = [np.asarray(p.detach().cpu() if hasattr(p, "detach") else p).dtype.kind in "iu" for p in parts]
    if any(whole):
        given = [_array(p, w)[:2] for p, w in zip(parts, whole, strict=True)]
        try:
            with torch.no_grad():
                model(*(torch.from_numpy(x) for x in given))
        except Exception:  # a model may raise anything; with float32 it says what it does not take
            return [_array(p)[:2] for p in parts]
        return given
    return [_array(p)[:2] for p in parts]


def _ignore(progress: Progress) -> None:
    del progress
