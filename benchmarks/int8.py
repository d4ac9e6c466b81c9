"""INT8 inference against its peers: latency, exactness, share of what the CPU can do. `make bench`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import NETWORKS, Network, cost
from peers import SIDE, entries, side_python, steps_off, write_files
from race import Entry, Times, race, started
from record import Claim, write
from rich.console import Console
from torch import nn

import edgewright as ew
from edgewright_device import Artifact, Runner
from edgewright_kernels import Engine, _native, cpu_paths

HERE = Path(__file__).parent
SECONDS = 3  # of racing, for each network
CALIBRATION_SAMPLES = 8
ROOF_MACS = 1 << 24  # in one call of roof.cpp
OURS = "Edgewright"


def main() -> None:
    """Races every network and records rows and claims."""
    torch.set_num_threads(1)
    console = Console(file=sys.stderr)
    side = side_python()
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        roofs = compiled_roofs(folder)
        (folder / "probe").mkdir()
        off = steps_off(folder / "probe", side)
        for network in NETWORKS:
            console.rule(network.title)
            if network.weights is not None and not network.weights.is_file():
                console.print(f"left out: {network.weights} is not there")
                continue
            (folder / network.name).mkdir()
            samples = {"x": network.samples(CALIBRATION_SAMPLES, seed=3)}
            try:
                files = write_files(network.module(), samples, folder / network.name, network.name)
            except ew.ExportError as error:
                console.print(f"left out: {error}")
                continue
            with started([*entries(files, side), *roofs]) as contestants:
                times = race(contestants, seconds=SECONDS / (1 if network.must else 4))
            rows += rows_of(network, times, off)
            claims += claims_of(network, times)
            for row in rows[-len(times) + len(roofs) :]:
                console.print(
                    f"{row['peer']:22} {row['min_ms']:9.3f} {row['median_ms']:9.3f} ms  exact: {row['exact']}"
                )
            if network.name == "mobilenetv2":
                claims.append(loading(files.artifact))
        claims += [*overheads(folder), library_size()]
    for claim in claims:
        console.print(f"{claim.id}: {claim.value:.3g} {claim.unit}" + _against(claim))
    packages = ["numpy", "torch", "onnxruntime", "ai-edge-litert"]
    console.print(write("int8", claims, rows, packages, other_versions=SIDE if side else {}))


def _against(claim: Claim) -> str:
    return (
        "" if claim.goal is None else f" (goal {claim.goal}: {'reached' if claim.reached else 'not reached'})"
    )


def compiled_roofs(folder: Path) -> list[Entry]:
    """roof.cpp as contestants, one for each path of this CPU that it knows."""
    program = folder / "roof"
    subprocess.run(["c++", "-O2", "-o", str(program), str(HERE / "roof.cpp")], check=True)
    return [
        Entry(name=f"roof {path}", command=(str(program), path))
        for path in cpu_paths()
        if subprocess.run(
            [program, path], stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode
        == 0
    ]


def rows_of(network: Network, times: dict[str, Times], off: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each contestant but the roofs."""
    return [
        {
            "model": network.name,
            "threads": 1,
            "peer": name,
            "min_ms": round(found.min_ms, 5),
            "median_ms": round(found.median_ms, 5),
            "exact": None if name not in off else off[name] <= 1.01,
            "steps_off": None if name not in off else round(off[name], 2),
        }
        for name, found in times.items()
        if not name.startswith("roof ")
    ]


def claims_of(network: Network, times: dict[str, Times]) -> list[Claim]:
    """The ratio to the best peer, and the share of the roof of the path in use."""
    path = cpu_paths()[0]
    ours = times[f"{OURS} {path}"]
    peers = {n: t for n, t in times.items() if not n.startswith((OURS, "roof "))}
    best = min(peers, key=lambda n: peers[n].min_ms)
    ratios = sorted(peers[best].ratios(ours))
    ratio = peers[best].min_ms / ours.min_ms
    tenth = len(ratios) // 10
    claims = [
        Claim(
            id=f"ratio.{network.name}",
            what=f"{network.title}: {best}, the best peer, over {OURS} {path}, fastest calls; lowest and "
            f"highest of the rounds without the outer tenths"
            + (f"; {network.aim} is aimed at" if network.aim else ""),
            value=ratio,
            unit="times",
            interval=(ratios[tenth], ratios[-1 - tenth]),
            goal=network.must,
            reached=None if network.must is None else ratio >= network.must,
        )
    ]
    if f"roof {path}" in times:
        roof = times[f"roof {path}"]
        macs = cost(network)[0]
        claims.append(
            Claim(
                id=f"roofline.{network.name}",
                what=f"{network.title}: {macs / 1e6:,.1f} million multiply-accumulates in the fastest call "
                f"of {OURS} {path}, as a share of those the core does from registers alone "
                f"({ROOF_MACS / roof.min_ms / 1e6:.0f} GMAC/s)",
                value=(macs / ours.min_ms) / (ROOF_MACS / roof.min_ms),
                unit="of the roof",
            )
        )
    return claims


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
    (folder / "one").mkdir()
    module = nn.Linear(1, 1)
    nn.init.ones_(module.weight)
    samples = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1)}
    files = write_files(module, samples, folder / "one", "one")
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


if __name__ == "__main__":
    main()
