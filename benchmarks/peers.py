"""The peers of the INT8 benchmark: the files each one reads, and how it is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from ncnn_file import ncnn_files
from onnx import numpy_helper
from race import Entry, entry
from settings import Setting
from tflite_file import tflite_bytes
from torch import nn

import edgewright as ew
from edgewright.errors import SideEnvironmentError
from edgewright.side_environment import SideEnvironment, python_of
from edgewright_device import Artifact

ROOT = Path(__file__).resolve().parent.parent
OURS = "Edgewright"
# Engines that the product does not need, in an environment of their own.
SIDE = {"ncnn": "1.0.20261020", "numpy": "2.4.6", "openvino": "2026.4.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """One network in every form that a peer reads.

    Attributes:
        folder: Where they lie.
        artifact: What Edgewright runs.
        inputs: Arrays by input name, .npz.
        fp32, u8s8, u8u8: .onnx files; the latter two QDQ, with int8 and with uint8 weights.
        dynamic: The .onnx file that ONNX Runtime's own dynamic quantization makes, which finds the ranges of
            activations in each call; or None where there is no matrix product for it.
        tflite_fp32, tflite_int8, ncnn: .tflite files and a .param file with its .bin file beside it; None
            where the network has no translation.
    """

    folder: Path
    artifact: Artifact
    inputs: Path
    fp32: Path
    u8s8: Path
    u8u8: Path
    dynamic: Path | None
    tflite_fp32: Path | None
    tflite_int8: Path | None
    ncnn: Path | None


def write_float(
    module: nn.Module, samples: Mapping[str, npt.NDArray[Any]], path: Path
) -> dict[str, npt.NDArray[Any]]:
    """Writes a module as a float .onnx file, simplified.

    Args:
        module: Its weights drawn.
        samples: Some input, by the names of forward's arguments.
        path: To write.

    Returns:
        The samples by the names of the graph's inputs.
    """
    example = tuple(torch.from_numpy(v[:2]) for v in samples.values())
    ew.export_onnx(module, path, example_inputs=example, optimize=True, opset=20)  # as peers run it soonest
    inputs = onnx.load(path, load_external_data=False).graph.input
    return dict(zip((i.name for i in inputs), samples.values(), strict=True))


def write_files(
    fp32: Path,
    samples: Mapping[str, npt.NDArray[Any]],
    folder: Path,
    *,
    name: str,
    quantize: ew.Quantize,
) -> Files:
    """Exports a network once and writes every form of it.

    Args:
        fp32: The float network, .onnx.
        samples: Calibration data, by the names of its inputs; the first sample is what is raced on.
        folder: Where to write; made.
        name: Of the network.
        quantize: How it becomes integers.

    Raises:
        edgewright.ExportError: The native engine cannot run it.
    """
    folder.mkdir()
    float_graph = onnx.load(fp32)
    artifact = ew.export(
        fp32, target="x86-avx2", calibration=samples, out=folder / f"{name}.ew", quantize=quantize
    )
    np.savez(folder / "inputs.npz", allow_pickle=False, **{n: v[:1] for n, v in samples.items()})
    qdq = onnx.load(artifact.path / "model.onnx")  # with its weights inside
    onnx.save(qdq, folder / "u8s8.onnx")
    onnx.save(unsigned_weights(qdq), folder / "u8u8.onnx")

    def translated(path: Path, write: Callable[[Path], object]) -> Path | None:
        try:
            write(path)
        except ValueError as error:
            print(f"{name}: no {path.name}: {error}", file=sys.stderr)
            return None
        return path

    def write_ncnn(path: Path) -> None:
        text, data = ncnn_files(qdq)
        path.write_text(text, "utf-8")
        path.with_suffix(".bin").write_bytes(data)

    return Files(
        folder=folder,
        artifact=artifact,
        inputs=folder / "inputs.npz",
        fp32=fp32,
        u8s8=folder / "u8s8.onnx",
        u8u8=folder / "u8u8.onnx",
        dynamic=dynamic(fp32, folder / "dynamic.onnx") if _has_products(float_graph) else None,
        tflite_fp32=translated(folder / "fp32.tflite", lambda p: p.write_bytes(tflite_bytes(float_graph))),
        tflite_int8=translated(folder / "int8.tflite", lambda p: p.write_bytes(tflite_bytes(qdq))),
        ncnn=translated(folder / "ncnn.param", write_ncnn),
    )


def _has_products(graph: onnx.ModelProto) -> bool:
    """Whether matrix products are most of the network; its convolutions dynamic quantization slows down."""
    kinds = [node.op_type for node in graph.graph.node]
    return "Conv" not in kinds and bool({"MatMul", "Gemm"} & set(kinds))


def dynamic(fp32: Path, path: Path) -> Path:
    """Writes the .onnx file of ONNX Runtime's own dynamic quantization, int8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(fp32, path, per_channel=True, weight_type=QuantType.QInt8)
    return path


def unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A QDQ graph with each int8 weight `w` written as the uint8 `w + 128` with zero point 128.

    The numbers stay the same. On CPUs without VNNI, ONNX Runtime multiplies uint8 by int8 in a way that
    saturates at 16 bits, and uint8 by uint8 exactly.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {t.name: t for t in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        for name in (node.input[0], node.input[2]) if len(node.input) > 2 else ():
            value = numpy_helper.to_array(tensors[name])
            if value.dtype == np.int8:
                moved = (value.astype(np.int16) + 128).astype(np.uint8)
                tensors[name].CopyFrom(numpy_helper.from_array(moved, name))
    return changed


def entries(files: Files, setting: Setting, side: str | None, *, threads: int = 1) -> list[Entry]:
    """All that can run these files: Edgewright on each of its paths, then the peers.

    Args:
        files: Of one network.
        setting: What they may use.
        side: The Python of the side environment, if it is there.
        threads: Of each.
    """

    def one(name: str, engine: str, path: Path, python: str = sys.executable, **environment: str) -> Entry:
        return entry(
            name,
            engine,
            path,
            files.inputs,
            threads=threads,
            python=python,
            environment=dict(setting.environment) | environment,
        )

    found = [one(f"{OURS} {p}", "edgewright", files.artifact.path, EDGEWRIGHT_CPU=p) for p in setting.paths]
    found += [
        one("ONNX Runtime FP32", "onnxruntime", files.fp32),
        one("ONNX Runtime u8s8", "onnxruntime", files.u8s8),
        one("ONNX Runtime u8u8", "onnxruntime", files.u8u8),
    ]
    if files.dynamic is not None:
        found.append(one("ONNX Runtime dynamic", "onnxruntime", files.dynamic))
    for name, path in (("LiteRT FP32", files.tflite_fp32), ("LiteRT INT8", files.tflite_int8)):
        if path is not None:
            found.append(one(name, "litert", path))
    if side is not None:
        found.append(one("OpenVINO INT8", "openvino", files.u8s8, side))
        if files.ncnn is not None:
            found.append(one("ncnn INT8", "ncnn", files.ncnn, side))
    return found


def side_python() -> str | None:
    """The Python of the side environment, made on first use; None where it cannot be made."""
    environment = SideEnvironment(
        name="peers",
        requirements=tuple(f"{name}=={version}" for name, version in SIDE.items()),
        imports=tuple(SIDE),
        size_bytes=400_000_000,
    )
    try:
        return str(python_of(environment, ROOT / "build" / "envs"))
    except SideEnvironmentError as error:
        print(f"OpenVINO and ncnn cannot be installed here, and are left out: {error}", file=sys.stderr)
        return None
