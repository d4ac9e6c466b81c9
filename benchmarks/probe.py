"""Whether an engine's integers are exact: single operators on values at the ends of their range."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peers import Files, dynamic, entries, write_files, write_float
from race import started
from settings import Setting
from torch import nn

import edgewright as ew
from edgewright_device import Runner

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
                part.get_parameter("bias").zero_()

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


def probe_files(folder: Path, quantize: ew.Quantize) -> Files:
    """The probe in every form, also in that of dynamic quantization."""
    fp32 = folder / "probe.onnx"
    samples = write_float(Probe(), probe_samples(), fp32)
    files = write_files(
        fp32, samples, folder / f"probe-{quantize.overflow_safe}", name="probe", quantize=quantize
    )
    return replace(files, dynamic=dynamic(fp32, folder / "dynamic.onnx"))


def steps_off(files: Files, setting: Setting, side: str | None) -> dict[str, float]:
    """By engine: the largest difference from the exact integer result of the probe, in steps of the output.

    One step is the freedom of a peer's rounding rule; more is arithmetic that went wrong. Engines that
    calculate in float are not asked.
    """
    with np.load(files.inputs) as archive:
        exact = Runner(files.artifact, backend="reference").run(dict(archive))
    scales = {p.name: p.scale for p in files.artifact.outputs}
    off: dict[str, float] = {}
    asked = [e for e in entries(files, setting, side) if "FP32" not in e.name]
    with started(asked) as contestants:
        for contestant in contestants:
            found = contestant.save(files.folder / "outputs.npz")
            off[contestant.name] = max(
                float(np.abs(found[name] - value).max() / scales[name]) for name, value in exact.items()
            )
    return off
