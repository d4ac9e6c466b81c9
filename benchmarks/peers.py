"""The peers of the INT8 benchmark: the files each one reads, and whether its integers are exact."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from ncnn_file import ncnn_files
from onnx import numpy_helper
from race import Entry, entry, started
from tflite_file import tflite_bytes
from torch import nn

import edgewright as ew
from edgewright_device import Artifact, Runner
from edgewright_kernels import cpu_paths

ROOT = Path(__file__).resolve().parent.parent
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


def write_files(
    module: nn.Module, samples: Mapping[str, npt.NDArray[np.float32]], folder: Path, name: str
) -> Files:
    """Exports a module once and writes every form of it.

    Args:
        module: Its weights drawn.
        samples: Calibration data, by the names of forward's arguments; the first sample is what is raced on.
        folder: An empty directory.
        name: Of the network.

    Raises:
        edgewright.ExportError: The native engine cannot run it.
    """
    fp32 = folder / "fp32.onnx"
    example = tuple(torch.from_numpy(v[:2]) for v in samples.values())
    ew.export_onnx(module, fp32, example_inputs=example, optimize=True)
    float_graph = onnx.load(fp32)
    inputs = dict(zip((i.name for i in float_graph.graph.input), samples.values(), strict=True))
    artifact = ew.export(fp32, target="x86-avx2", calibration=inputs, out=folder / f"{name}.ew")
    np.savez(folder / "inputs.npz", allow_pickle=False, **{n: v[:1] for n, v in inputs.items()})
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
        dynamic=_dynamic(fp32, folder / "dynamic.onnx") if _has_products(float_graph) else None,
        tflite_fp32=translated(folder / "fp32.tflite", lambda p: p.write_bytes(tflite_bytes(float_graph))),
        tflite_int8=translated(folder / "int8.tflite", lambda p: p.write_bytes(tflite_bytes(qdq))),
        ncnn=translated(folder / "ncnn.param", write_ncnn),
    )


def _has_products(graph: onnx.ModelProto) -> bool:
    """Whether matrix products are most of the network; its convolutions dynamic quantization slows down."""
    kinds = [node.op_type for node in graph.graph.node]
    return "Conv" not in kinds and bool({"MatMul", "Gemm"} & set(kinds))


def _dynamic(fp32: Path, path: Path) -> Path:
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


def entries(files: Files, side: str | None) -> list[Entry]:
    """All that can run these files: Edgewright on every SIMD path of this CPU, then the peers.

    Args:
        files: Of one network.
        side: The Python of the side environment, if it is there.
    """
    paths = [p for p in cpu_paths() if p != "scalar"]
    found = [
        entry(f"Edgewright {p}", "edgewright", files.artifact.path, files.inputs, EDGEWRIGHT_CPU=p)
        for p in paths
    ]
    found += [
        entry("ONNX Runtime FP32", "onnxruntime", files.fp32, files.inputs),
        entry("ONNX Runtime u8s8", "onnxruntime", files.u8s8, files.inputs),
        entry("ONNX Runtime u8u8", "onnxruntime", files.u8u8, files.inputs),
    ]
    if files.dynamic is not None:
        found.append(entry("ONNX Runtime dynamic", "onnxruntime", files.dynamic, files.inputs))
    for name, path in (("LiteRT FP32", files.tflite_fp32), ("LiteRT INT8", files.tflite_int8)):
        if path is not None:
            found.append(entry(name, "litert", path, files.inputs))
    if side is not None:
        found.append(entry("OpenVINO INT8", "openvino", files.u8s8, files.inputs, python=side))
        if files.ncnn is not None:
            found.append(entry("ncnn INT8", "ncnn", files.ncnn, files.inputs, python=side))
    return found


def side_python() -> str | None:
    """The Python of the side environment, made on first use; None where it cannot be made."""
    folder = ROOT / "build" / "peers"
    python = folder / "bin" / "python"
    wanted = [f"{name}=={version}" for name, version in SIDE.items()]
    stamp = folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text("utf-8").split() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-q", *wanted]
        if subprocess.run(pip, check=False).returncode:
            print("OpenVINO and ncnn cannot be installed here, and are left out", file=sys.stderr)
            return None
        stamp.write_text("\n".join(wanted), "utf-8")
    return str(python)


# Exactness

PROBE_TERMS = 512
PROBE_OUTPUTS = 32


class Probe(nn.Module):
    """One of each multiplying operator, side by side, with weights that are all extreme.

    A third of the output channels has the largest weight throughout, a third the smallest, and the rest draw
    between the two: partial sums grow as large as they can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(32, PROBE_OUTPUTS, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, PROBE_OUTPUTS, 1)
        self.linear = nn.Linear(PROBE_TERMS, PROBE_OUTPUTS)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in (self.convolution, self.depthwise, self.pointwise, self.linear):
                sign = torch.randint(0, 2, part.weight.shape, generator=generator) * 2.0 - 1.0
                third = len(sign) // 3
                sign[:third], sign[third : 2 * third] = 1.0, -1.0
                part.weight.copy_(sign)
                part.bias.zero_()  # type: ignore[union-attr]

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of the four operators."""
        return self.convolution(image), self.depthwise(image), self.pointwise(image), self.linear(vector)


def probe_samples() -> dict[str, npt.NDArray[np.float32]]:
    """Two samples whose values are the lowest or the highest integer: half drawn, half the highest."""
    random = np.random.default_rng(0)
    image = random.integers(0, 2, (2, 32, 12, 12)).astype(np.float32)
    vector = random.integers(0, 2, (2, PROBE_TERMS)).astype(np.float32)
    image[..., :6], vector[:, : PROBE_TERMS // 2] = 1.0, 1.0
    return {"image": image, "vector": vector}


def steps_off(folder: Path, side: str | None) -> dict[str, float]:
    """By peer: the largest difference from the exact integer result of the probe, in steps of the output.

    One step is the freedom of a peer's rounding rule; more is arithmetic that went wrong. Peers that
    calculate in float are not asked.
    """
    files = write_files(Probe(), probe_samples(), folder, "probe")
    with np.load(files.inputs) as archive:
        exact = Runner(files.artifact, backend="reference").run(dict(archive))
    scales = {p.name: p.scale for p in files.artifact.outputs}
    off: dict[str, float] = {}
    with started([e for e in entries(files, side) if "FP32" not in e.name]) as contestants:
        for contestant in contestants:
            found = contestant.save(folder / "outputs.npz")
            off[contestant.name] = max(
                float(np.abs(found[name] - value).max() / scales[name]) for name, value in exact.items()
            )
    return off
