"""Models as commands name them: `.pt2`, `.onnx`, or a class or function in a Python file."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.durable import put_in_place, write_whole
from edgewright.errors import CompressError, ExportError
from edgewright_device import Artifact, Runner

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_model(source: str, weights: str | os.PathLike[str] | None = None, *, seed: int = 0) -> nn.Module:
    """Makes an nn.Module from code, or from a `.pt2` program.

    Args:
        source: `FILE.py:NAME` or `package.module:NAME`; NAME is called without arguments and gives the
            module. The code is run, so name only code you trust. Or a program, `FILE.pt2`, which comes back
            as layers that can be trained and pruned.
        weights: A safetensors file with its state dict; the module's own initial weights if left out.
        seed: Of torch's random numbers while NAME is called, so that initial weights are the same each time.

    Raises:
        CompressError: No such file, module or name; or the weights do not fit.
    """
    import torch

    if source.endswith(".pt2"):
        from edgewright.layers import load_program

        model: Any = load_program(Path(source))
    else:
        model = called(source, "model", seed)
    if not isinstance(model, torch.nn.Module):
        name = source.rpartition(":")[2]
        raise CompressError(f"{source}: calling {name!r} gave a {type(model).__name__}, not an nn.Module")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.eval()


def called(source: str, what: str, seed: int) -> Any:
    """What a name in code gives when it is called without arguments.

    Args:
        source: `FILE.py:NAME` or `package.module:NAME`.
        what: What it shall be, for the error's words.
        seed: Of torch's random numbers during the call; their state comes back afterwards.

    Raises:
        CompressError: No such file, module or name; or the call fails.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise CompressError(
            f"{source}: not a {what} in code; write FILE.py:NAME or package.module:NAME, NAME being what "
            f"makes the {what}"
        )
    factory = getattr(_import(place), name, None)
    if factory is None:
        raise CompressError(f"{source}: {place} has no {name!r}")
    import torch

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return factory()
    except (Exception, SystemExit) as error:  # other people's code may raise anything
        raise CompressError(f"{source}: calling {name!r} failed ({_said(error)})") from error


def onnx_model(path: Path) -> nn.Module:
    """A float `.onnx` file as a module that can be run, and not trained.

    Raises:
        ExportError: The file cannot be read.
    """
    from edgewright.graph import float_graph, onnx_function

    graph = float_graph(path, slim=False)
    constants = {each.name for each in graph.graph.initializer}
    names = [each.name for each in graph.graph.input if each.name not in constants]
    return as_module(onnx_function(graph), names, graph.graph.output[0].name)


def runner_model(artifact: Artifact) -> nn.Module:
    """An artifact as a module that runs it here: on the native engine, if it has a program for that."""
    runner = Runner(artifact, backend="native" if artifact.native else "onnxruntime")
    return as_module(runner.run, [port.name for port in artifact.inputs], artifact.outputs[0].name)


def as_module(
    run: Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]],
    inputs: Sequence[str],
    output: str,
) -> nn.Module:
    """A function of arrays by name, as a module that takes its inputs in order or by name, on the CPU."""
    import torch

    class Function(torch.nn.Module):
        def forward(self, *given: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
            values = dict(zip(inputs, given, strict=False)) | named
            if len(given) + len(named) != len(inputs) or values.keys() != set(inputs):
                raise TypeError(f"takes {', '.join(inputs)}; got {len(given)} by place and {sorted(named)}")
            try:
                found = run({name: np.ascontiguousarray(value.numpy()) for name, value in values.items()})
            except Exception as error:  # ONNX Runtime raises kinds of its own
                raise RuntimeError(_said(error)) from error
            return torch.from_numpy(np.array(found[output]))

    return Function()


def save_model(model: nn.Module, example_inputs: tuple[Any, ...], path: str | os.PathLike[str]) -> None:
    """Writes a module as a `.pt2` program with a free batch size, whole or not at all.

    A module that was trained with fake quantization is written as QDQ `.onnx`, which has its integers.

    Args:
        model: Is left as it is.
        example_inputs: Arguments of one call, tensors or arrays, the batch first.
        path: Ends in `.pt2`, or `.onnx`.

    Raises:
        ExportError: torch cannot trace the module, or the ending is not that of its kind.
    """
    import torch

    from edgewright.fake_quantized import FakeQuantized

    out = Path(path)
    check_ending(out, quantized=isinstance(model, FakeQuantized))
    if isinstance(model, FakeQuantized):
        write_whole(out, model.trained_graph().SerializeToString())
        return
    program = trace(model, example_inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp.pt2")
    try:
        torch.export.save(program, temporary)
        put_in_place(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def check_ending(path: Path, *, quantized: bool) -> None:
    """Holds the name of a model's file to what will be in it.

    Raises:
        ExportError: It ends otherwise.
    """
    if path.suffix != (".onnx" if quantized else ".pt2"):
        raise ExportError(
            f"{path}: the compressed model is a QDQ graph, as it was trained with fake quantization; name it "
            "NAME.onnx"
            if quantized
            else f"{path}: the compressed model is a torch.export program; name it NAME.pt2"
        )


def trace(
    model: nn.Module, example_inputs: tuple[Any, ...], sequence: Sequence[int | None] | None = None
) -> torch.export.ExportedProgram:
    """The program of a copy of a module, in eval mode and with a free batch size.

    Args:
        model: Is left as it is.
        example_inputs: Arguments of one call, tensors or arrays, the batch first.
        sequence: The axis of each input that has the length of a sequence, and stays free; None for one that
            has none.

    Raises:
        ExportError: torch cannot trace the module.
    """
    import torch

    from edgewright.graph import quiet, repeated

    batch = torch.export.Dim("N", min=1, max=1 << 20)
    length = torch.export.Dim("length", min=2, max=1 << 20)
    tensors = tuple(repeated(torch.as_tensor(x)) for x in example_inputs)
    try:
        # torch prints the graph it gave up on to stderr
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            return torch.export.export(
                copy.deepcopy(model).eval(),
                tensors,
                dynamic_shapes=tuple(
                    {0: batch} if axis is None else {0: batch, axis: length}
                    for axis in sequence or [None] * len(tensors)
                ),
            )
    except Exception as error:  # torch raises many kinds for code it cannot trace
        raise ExportError(f"torch cannot trace this model: {_said(error)}") from error


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # the current folder, as with `python -m`
        try:
            return importlib.import_module(place)
        except (Exception, SystemExit) as error:  # it runs other people's code
            raise CompressError(f"{place}: cannot be imported ({_said(error)})") from error
    path = Path(place)
    if not path.is_file():
        raise CompressError(f"{place}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it runs other people's code
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise CompressError(f"{place}: cannot be run ({_said(error)})") from error
    return module


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _load_weights(model: nn.Module, path: Path) -> None:
    import safetensors
    import safetensors.torch

    if not path.is_file():
        raise CompressError(f"{path}: there is no such file")
    try:
        safetensors.torch.load_model(model, str(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CompressError(f"{path}: does not fit the model ({error})") from None
