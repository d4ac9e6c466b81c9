"""Quantized files as other tools write them: ONNX Runtime's quantize_static, torchao's pt2e."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgewright.graph import quiet
from sdk.graphs import FloatArray

SHAPES = {"mlp": (20,), "cnn": (3, 12, 12), "encoder": (6, 12)}
FREE = ({0: torch.export.Dim("N", min=1, max=1 << 20)},)


class _Block(nn.Module):
    """Depthwise and pointwise convolutions, and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(x + self.norm2(self.pointwise(inner)))


class _Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.pool, self.first, self.second = nn.MaxPool2d(2), _Block(12), _Block(12)
        self.last, self.head = nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = nn.functional.relu6(self.last(self.second(self.first(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 3)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.0)
                for _ in range(2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.embed(x)).mean(1))
        return out


def network(name: str) -> nn.Module:
    """A network whose batch norms have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = {
            "mlp": lambda: nn.Sequential(
                nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5)
            ),
            "cnn": _Cnn,
            "encoder": _Encoder,
        }[name]()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
        with torch.no_grad():
            for _ in range(20):
                made.train()(torch.from_numpy(inputs(name, 32)))
    return made.eval()


def inputs(name: str, count: int, seed: int = 0) -> FloatArray:
    """Samples for a network."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPES[name])).astype(np.float32)


def float_file(name: str, path: Path) -> Path:
    """A network as float ONNX."""
    return _exported(network(name), torch.from_numpy(inputs(name, 2)), path)


def _exported(module: nn.Module, x: Tensor, path: Path) -> Path:
    """A module in a file, its batch free."""
    with quiet():
        program = torch.onnx.export(
            module,
            (x,),
            dynamo=True,
            dynamic_shapes=FREE,
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, str(path))
    return path


class _Reader:
    """Calibration data for ONNX Runtime."""

    def __init__(self, samples: FloatArray) -> None:
        self.parts = iter([{"x": samples[i : i + 16]} for i in range(0, len(samples), 16)])

    def get_next(self) -> dict[str, FloatArray] | None:
        return next(self.parts, None)


def quantize_static(source: Path, out: Path, samples: FloatArray, types: str, **how: Any) -> Path:
    """Quantizes a float file; types are those of activations and weights, such as U8S8."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    kinds = {"U8": QuantType.QUInt8, "S8": QuantType.QInt8}
    with _unlogged():
        quantize_static(
            str(source),
            str(out),
            _Reader(samples),
            activation_type=kinds[types[:2]],
            weight_type=kinds[types[2:]],
            **{"quant_format": QuantFormat.QDQ, **how},
        )
    return out


def pt2e(name: str, quantizer: str, out: Path) -> Path:
    """Quantizes a network by torchao's pt2e, and exports it to ONNX."""
    with _unlogged(), quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        samples = torch.from_numpy(inputs(name, 64))
        program = torch.export.export(network(name), (samples,), dynamic_shapes=FREE).module()
        prepared = prepare_pt2e(program, _quantizer(quantizer))
        prepared(samples)
        return _exported(convert_pt2e(prepared), samples, out)


def _quantizer(name: str) -> Any:
    if name == "x86":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        inductor = x86.X86InductorQuantizer()
        inductor.set_global(x86.get_default_x86_inductor_quantization_config())
        return inductor
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    made = xnnpack.XNNPACKQuantizer()
    made.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    return made


@contextlib.contextmanager
def _unlogged() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def operator_by_operator(model: onnx.ModelProto | Path, feed: dict[str, Any]) -> dict[str, FloatArray]:
    """A QDQ graph as it is written, each Q, DQ and operator in float32: nothing fused, nothing rewritten."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
