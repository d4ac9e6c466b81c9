"""Execution providers that PyPI has and this machine runs: how far each is from the native engine.

OpenVINO runs on the CPU; QNN's package for x86-64 has a library that acts as the Hexagon processor. Both are
plugins, in a side environment, for the ONNX Runtime of this one. Samples are those that neither training nor
calibration saw.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from healthy import exported, network, written
from record import Claim, write

import edgewright as ew
from edgewright.errors import SideEnvironmentError
from edgewright.side_environment import SideEnvironment, python_of
from edgewright_device import BOUND_STEPS, Runner, RunnerError

NETWORKS = ("mlp", "lenet", "mobile", "heads", "denoiser", "ds_cnn", "keywords", "resnet8")
PACKAGES = {"onnxruntime-ep-openvino": "1.8.1", "onnxruntime-qnn": "2.7.0"}
SIDE = SideEnvironment(
    name="providers",
    requirements=tuple(f"{name}=={version}" for name, version in PACKAGES.items()),
    imports=("onnxruntime_ep_openvino", "onnxruntime_qnn"),
    size_bytes=900_000_000,
    minutes=2,
)
PROVIDERS = ("OpenVINO", "QNN")
SAMPLES = 64


def measured(artifact: ew.Artifact, provider: str, data: dict[str, Any]) -> dict[str, Any]:
    """How far a provider's outputs are from the native engine's, in steps, and the decisions that differ."""
    try:
        runner = Runner(artifact, "onnxruntime", providers=(provider,))
    except RunnerError as error:
        return {"refused": str(error).partition(": ")[2]}
    native, found = Runner(artifact).run(data), runner.run(data)
    steps, flipped = [], []
    for port in artifact.outputs:
        want, got = native[port.name], found[port.name]
        steps.append(np.abs(got - want).ravel() / port.scale)
        if want.ndim == 2 and want.shape[1] > 1:
            flipped.append(got.argmax(1) != want.argmax(1))
    off = np.concatenate(steps)
    assert runner.provider is not None
    return {
        "nodes": runner.provider.nodes,
        "left": list(runner.provider.left),
        "samples": len(next(iter(data.values()))),
        "most_steps": round(float(off.max())),
        "beyond_bound": float((np.rint(off) > BOUND_STEPS).mean()),
        "differ": float((np.rint(off) > 0).mean()),
        "flipped": float(np.mean(flipped)) if flipped else None,
    }


def main() -> int:
    """Measures, and writes benchmarks/results/providers.json."""
    try:
        python = python_of(SIDE, progress=lambda p: print(f"{p.step} {p.done}/{p.total}", flush=True))
    except SideEnvironmentError as error:
        print(error, file=sys.stderr)
        return 1
    # Behind everything else: of that environment only what this one lacks is found.
    sys.path.append(str(next((python.parent.parent / "lib").glob("python*")) / "site-packages"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in NETWORKS:
            folder = Path(scratch) / name
            folder.mkdir()
            try:
                graph, net = written(network(name, folder), folder)
            except FileNotFoundError as error:
                print(f"{name}: left out ({error})", flush=True)
                continue
            del graph
            artifact = exported(net, folder, "min-max", ew.Quantize()).artifact
            assert isinstance(artifact, ew.Artifact)
            data = {n: v[:SAMPLES] for n, v in net.held.items()}
            for provider in PROVIDERS:
                rows.append({"network": name, "provider": provider, **measured(artifact, provider, data)})
                print(rows[-1], flush=True)
    claims = []
    for provider in PROVIDERS:
        ran = [r for r in rows if r["provider"] == provider and "refused" not in r]
        beyond = sum(r["most_steps"] > BOUND_STEPS for r in ran)
        what = f"networks, of {len(ran)}, with an output more than {BOUND_STEPS} steps off on {provider}"
        claims.append(
            Claim(
                id=f"provider_bound.{provider}",
                what=what,
                value=float(beyond),
                unit="networks",
                goal=0.0,
                reached=beyond == 0,
            )
        )
    write("providers", claims, rows, ["onnxruntime", "numpy"], PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
