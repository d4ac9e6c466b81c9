"""The float graph: any model, as one ONNX graph in the few forms that quantization and lowering read.

torch modules and `.pt2` programs go through `torch.onnx.export(dynamo=True)`, which folds batch norm into the
convolutions; onnxslim simplifies; `normalize` then writes equal things in one way.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.normalform import OPSET, normalize
from edgewright.wiring import initializers, value_shapes

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAINED = "edgewright.trained"
"""The key under which a graph whose grids were trained says so (trained_graph.py)."""

_T = TypeVar("_T")
Run = Callable[[Mapping[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]


def float_graph(
    model: nn.Module | Path,
    example_inputs: Sequence[Any] | None = None,
    *,
    slim: bool = True,
    sequence: Sequence[int | None] | None = None,
) -> onnx.ModelProto:
    """The model as a float32 ONNX graph with a free batch size, its weights in memory.

    Args:
        model: A module, or the path of a `.pt2` program or a float `.onnx` file.
        example_inputs: For a module: tensors or arrays as `forward` takes them, the batch first.
        slim: Normalize the graph.
        sequence: For a module: the axis of each input that has the length of a sequence, and stays free; None
            for an input that has none.

    Raises:
        ExportError: The file is missing, damaged or incomplete; or the module cannot be traced.
    """
    if isinstance(model, Path):
        if model.suffix == ".onnx":
            graph = read_onnx(model)
        elif model.suffix == ".pt2":
            graph = _from_torch(read_pt2(model), None)
        else:
            raise ExportError(f"{model}: not a model; give a .pt2 or .onnx file, or an nn.Module in Python")
    elif example_inputs is None:
        raise ExportError("an nn.Module needs example_inputs, the arguments of one call, to be exported")
    else:
        graph = _from_torch(copy.deepcopy(model).eval(), example_inputs, sequence)
    _forget_sources(graph)
    return normalize(graph) if slim else graph


def onnx_function(
    model: onnx.ModelProto, outputs: Sequence[str] | None = None, *, rewrites: bool = False
) -> Callable[[Mapping[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]:
    """The graph as a function of its inputs by name, run by ONNX Runtime without its riskier rewrites.

    Above the basic level it turns some float operators into ones that quantize activations on the fly, and
    its 8-bit kernels on x86 saturate at 16 bits; both are kept out, so this may serve as an oracle.

    Args:
        model: A graph with its constants inside.
        outputs: Values to return, any of the graph's; the graph's outputs if left out.
        rewrites: Let ONNX Runtime rewrite the graph all the same: sooner done, and right where nothing is
            quantized, up to the order of float32 sums.
    """
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {o.name for o in watched.graph.output}
    names = list(outputs) if outputs is not None else [o.name for o in watched.graph.output]
    for name in names:
        if name not in known:
            watched.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    options = onnxruntime.SessionOptions()
    if not rewrites:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = len(os.sched_getaffinity(0))  # not more than this process may use
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions share no base of their own
        raise ExportError(_not_loaded(model, error)) from error

    def run(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run


def _not_loaded(model: onnx.ModelProto, error: Exception) -> str:
    """Why ONNX Runtime does not load a graph: an operator that it does not know, or in its own words."""
    said = str(error)
    for node in model.graph.node:
        unknown = f"{node.domain}:{node.op_type}(" in said and "is not a registered function/op" in said
        if unknown or f"No Op registered for {node.op_type} " in said:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return (
                f"ONNX Runtime has no operator {operator} (node {node.name or node.output[0]!r}); "
                "write the model with operators of ONNX"
            )
    return f"ONNX Runtime cannot load this graph: {error}"


def in_pieces(graph: onnx.ModelProto, run: Run) -> Run:
    """The same for batches of any size, where the graph has a fixed one."""
    batch = next((s[0] for n, s in value_shapes(graph).items() if n == graph.graph.input[0].name), None)
    if not batch:
        return run
    size = int(batch)

    def pieces(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        count = len(next(iter(feed.values())))
        found = []
        for start in range(0, count, size):
            # The last piece is filled up with its own samples.
            rows = np.resize(np.arange(start, min(start + size, count)), size)
            found.append(run({n: v[rows] for n, v in feed.items()}))
        return {n: np.concatenate([f[n] for f in found])[:count] for n in found[0]}

    return pieces


def float_function(
    model: nn.Module | Path,
) -> Callable[[Sequence[npt.NDArray[Any]]], list[npt.NDArray[Any]]]:
    """A float model as a function of its inputs, in order, to its outputs, in order; not changed by export.

    Raises:
        ExportError: The file is missing, damaged, or of another kind.
    """
    if isinstance(model, Path) and model.suffix == ".onnx":
        graph = read_onnx(model)
        names = [i.name for i in graph.graph.input if i.name not in initializers(graph)]
        run = in_pieces(graph, onnx_function(graph, rewrites=not quantizes(graph)))
        return lambda inputs: list(run(dict(zip(names, inputs, strict=True))).values())
    import torch

    if isinstance(model, Path):
        if model.suffix != ".pt2":
            raise ExportError(f"{model}: not a model; give a .pt2 or .onnx file, or an nn.Module in Python")
        module: nn.Module = read_pt2(model).module()
    else:
        module = copy.deepcopy(model).eval()

    def call(inputs: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs))
        results = result if isinstance(result, tuple | list) else [result]
        return [r.numpy() for r in results]

    return call


def quantizes(model: onnx.ModelProto) -> bool:
    """Whether a graph has operators on integers, in any format."""
    names = (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantize",
        "QLinear",
        "ConvInteger",
        "MatMulInteger",
    )
    return any(n.op_type.startswith(names) for n in model.graph.node)


def _existing(path: Path, read: Callable[[Path], _T]) -> _T:
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    return read(path)


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file, with its external data in memory.

    Raises:
        ExportError: Missing, damaged, or without its external data.
    """
    return _existing(path, _read_onnx)


def _read_onnx(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ExportError(
            f"{path}: its external data is missing ({error.filename}); keep the files side by side"
        ) from None
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path}: its external data cannot be read ({error}); keep the files side by side"
        ) from None
    except Exception as error:  # protobuf's DecodeError lives in a private module
        raise ExportError(f"{path}: not an ONNX file, or damaged ({type(error).__name__})") from None
    if not model.graph.node:
        raise ExportError(f"{path}: an ONNX file without a single node")
    return model


def read_pt2(path: Path) -> torch.export.ExportedProgram:
    """A torch.export program.

    Raises:
        ExportError: Missing or damaged.
    """
    return _existing(path, _read_pt2)


def _read_pt2(path: Path) -> torch.export.ExportedProgram:
    import torch

    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ExportError(f"{path}: not a torch.export program, or damaged ({error})") from None


def _from_torch(
    model: nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Any] | None,
    sequence: Sequence[int | None] | None = None,
) -> onnx.ModelProto:
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        arguments: dict[str, Any] = {"args": ()}
        inputs = list(model.graph_signature.user_inputs)
        outputs = len(model.graph_signature.user_outputs)
        names = [str(n) for n in inputs]
    else:
        assert example_inputs is not None
        tensors = tuple(repeated(torch.as_tensor(x)) for x in example_inputs)
        try:
            with torch.no_grad():
                result = model(*tensors)
        except Exception as error:  # a model may raise anything
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ExportError(
                f"the model does not take inputs of shape {shapes}: {error}; the samples (example_inputs, or "
                "the calibration data) must be what forward takes, the batch first"
            ) from error
        outputs = len(result) if isinstance(result, tuple | list) else 1
        names = list(forward_parameters(model))[: len(tensors)]
        batch = torch.export.Dim("N", min=1, max=1 << 20)
        length = torch.export.Dim("length", min=2, max=1 << 20)
        free: list[Any] = [
            {0: batch} if axis is None else {0: batch, axis: length}
            for axis, _ in itertools.zip_longest(sequence or (), tensors)
        ]
        if len(names) < len(tensors):  # forward(*xs): torch wants the rest as one tuple
            free = [*free[: len(names)], tuple(free[len(names) :])]
            names = [f"x{i}" for i in range(len(tensors))]
        arguments = {"args": tensors, "dynamic_shapes": tuple(free)}
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                **arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=_output_names(outputs, names),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the model raised
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(
            f"torch cannot export this model: {reason[0] if reason else type(error).__name__}. The first "
            "dimension of each input must be a batch of any size, and forward must not branch on values"
        ) from error
    assert program is not None
    return program.model_proto


def forward_parameters(model: nn.Module) -> dict[str, bool]:
    """The parameters of a module's forward that can be given by place, and whether each must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind in kinds}


def _output_names(count: int, taken: Sequence[str]) -> list[str]:
    names = ["y"] if count == 1 else [f"y{i}" for i in range(count)]
    return [f"{n}_out" for n in names] if set(names) & set(taken) else names


def repeated(x: torch.Tensor) -> torch.Tensor:
    """An example to trace with.

    A batch of one makes torch.export freeze the batch size at 1; a batch of two does not. An axis of size 1
    may have any stride, and images may lie channels last: torch would trace the model for that layout.
    """
    import torch

    x = x.clone(memory_format=torch.contiguous_format)
    return x.repeat(2, *[1] * (x.ndim - 1)) if x.ndim and x.shape[0] == 1 else x


def _forget_sources(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes for debugging: stack traces, with the paths of the machine."""
    own = [p for p in model.metadata_props if p.key == TRAINED]
    del model.metadata_props[:]
    model.metadata_props.extend(own)
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's own deprecations and its logs: of absent packages, of what it cannot trace."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
