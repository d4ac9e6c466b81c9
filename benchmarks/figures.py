"""The engine's other figures: what a call costs, how long loading takes, how large the library is."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import write_files, write_float
from record import Claim
from torch import nn

import edgewright as ew
from edgewright_device import Artifact, Runner
from edgewright_kernels import Engine, _native


def fastest(call: Any, rounds: int) -> float:
    """Seconds of the fastest of so many calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1e9


def loading(artifact: Artifact) -> Claim:
    """Time to open an artifact, check it and make it ready."""
    value = 1e3 * fastest(lambda: Runner(Artifact.open(artifact.path), backend="native"), 20)
    return Claim(
        id="load.mobilenetv2",
        what="MobileNetV2: Runner(Artifact.open(path)), its files in the page cache; fastest of 20",
        value=value,
        unit="ms",
        goal=20,
        reached=value <= 20,
    )


def overheads(folder: Path) -> list[Claim]:
    """What a call from Python costs beside the network's own work: the time of a network of one number."""
    module = nn.Linear(1, 1)
    nn.init.ones_(module.weight)
    samples = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1)}
    fp32 = folder / "one.onnx"
    samples = write_float(module, samples, fp32)
    files = write_files(fp32, samples, folder / "one", name="one", quantize=ew.Quantize())
    artifact = files.artifact
    with np.load(files.inputs) as archive:
        inputs = dict(archive)
    runner = Runner(artifact, backend="native")
    engine = Engine(artifact.read("plan.bin"), artifact.read("weights.safetensors"))
    peer = Runner(artifact, backend="onnxruntime")
    found = {
        "call_overhead": ("Runner.run", lambda: runner.run(inputs), 2.0),
        "call_overhead.engine": ("Engine.run", lambda: engine.run(inputs), 2.0),
        "call_overhead.onnxruntime": ("the same in ONNX Runtime", lambda: peer.run(inputs), None),
    }
    claims = []
    for name, (what, call, goal) in found.items():
        value = 1e6 * fastest(call, 20_000)
        claims.append(
            Claim(
                id=name,
                what=f"{what}, from Python, of a fully connected layer of one weight; fastest call",
                value=value,
                unit="µs",
                goal=goal,
                reached=None if goal is None else value <= goal,
            )
        )
    return claims


def library_size() -> Claim:
    """The shared library, stripped as a package ships it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "native.so"
        shutil.copy(str(_native.__file__), copy)
        subprocess.run(["strip", str(copy)], check=True)
        value = copy.stat().st_size / 2**20
    return Claim(
        id="library_size",
        what="the engine with its Python binding, stripped",
        value=value,
        unit="MiB",
        goal=1.5,
        reached=value <= 1.5,
    )
