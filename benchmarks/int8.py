"""INT8 inference against its peers: latency, exactness, share of what the CPU can do. `make bench`.

python benchmarks/int8.py --only resnet8,ds-cnn    # prints, and leaves the recorded result alone
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from figures import library_size, loading, overheads
from judging import depthwise_claims, race_claims, thread_claims
from networks import NETWORKS, Network
from peers import SIDE, Files, entries, side_python, write_files, write_float
from probe import probe_files, steps_off
from race import Entry, Times, entry, race, started
from record import Claim, write
from rich.console import Console
from settings import WEIGHTS, Setting, settings
from torch import nn

import edgewright as ew
from edgewright_device import Runner

HERE = Path(__file__).parent
SECONDS = 3  # of each race of a network that has a goal
SECONDS_ELSE = 1
THREADS = 2
CALIBRATION_SAMPLES = 8
ONE_STEP = 1.01  # of the output's grid: what a peer's own rounding rule may differ by


def main() -> None:
    """Races every network and records rows and claims."""
    parser = argparse.ArgumentParser(description="INT8 inference against its peers.")
    parser.add_argument("--only", help="names of networks, with commas; what is found is not recorded")
    only = parser.parse_args().only
    chosen = [n for n in NETWORKS if not only or n.name in only.split(",")]
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # advice of ONNX Runtime's that is already followed
    with tempfile.TemporaryDirectory() as folder:
        bench = Benchmark(Path(folder))
        for network in chosen:
            bench.measure(network)
        for setting in bench.settings:
            bench.claims += depthwise_claims(setting, bench.depthwise[setting.name])
        if not only:
            bench.claims += [*overheads(Path(folder)), library_size()]
    for claim in bench.claims:
        goal = f" (goal {claim.goal}: {'reached' if claim.reached else 'not reached'})" if claim.goal else ""
        bench.console.print(f"{claim.id}: {claim.value:.3g} {claim.unit}{goal}")
    if not only:
        packages = ["numpy", "torch", "onnxruntime", "ai-edge-litert"]
        versions = SIDE if bench.side else {}
        bench.console.print(write("int8", bench.claims, bench.rows, packages, other_versions=versions))


class Benchmark:
    """What all races share, and what they found.

    Args:
        folder: An empty one, for files.

    Attributes:
        rows: For the result.
        claims: For the result.
        settings: Of the races.
        depthwise: The races of the networks that are depthwise convolutions, by setting.
    """

    def __init__(self, folder: Path) -> None:
        self.console = Console(file=sys.stderr)
        self.rows: list[dict[str, Any]] = []
        self.claims: list[Claim] = []
        self.side = side_python()
        self._folder = folder
        self.settings = settings(folder)
        self.depthwise: dict[str, dict[Network, dict[str, Times]]] = {s.name: {} for s in self.settings}
        self._roof = compiled_roof(folder)
        probes = {q: probe_files(folder, q) for q in {WEIGHTS, *(s.quantize for s in self.settings)}}
        self._off = {
            (s.name, q): steps_off(probes[q], s, self.side)
            for s in self.settings
            for q in {WEIGHTS, s.quantize}
        }

    def measure(self, network: Network) -> None:
        """Races a network in every setting, on one thread and, where it has a goal, on two."""
        self.console.rule(network.title)
        if network.weights is not None and not network.weights.is_file():
            self.console.print(f"left out: {network.weights} is not there")
            return
        module = network.module()
        fp32 = self._folder / f"{network.name}.onnx"
        samples = write_float(module, {"x": network.samples(CALIBRATION_SAMPLES, seed=3)}, fp32)
        files: dict[ew.Quantize, Files] = {}
        for setting in self.settings:
            quantize = setting.quantize
            if quantize not in files:
                folder = self._folder / f"{network.name}-{len(files)}"
                try:
                    files[quantize] = write_files(fp32, samples, folder, name=network.name, quantize=quantize)
                except ew.ExportError as error:
                    self.console.print(f"left out: {error}")
                    return
                if network.whole:
                    self.claims.append(noise(network, module, files[quantize], quantize))
            self._race(network, setting, files[quantize])
        if network.must is not None:
            self._race_on_threads(network, self.settings[0], files[self.settings[0].quantize])
        if network.name == "mobilenetv2":
            self.claims.append(loading(files[WEIGHTS].artifact))

    def _race(self, network: Network, setting: Setting, files: Files) -> None:
        contestants = [*entries(files, setting, self.side), *self._roof(setting)]
        with started(contestants) as running:
            times = race(running, seconds=SECONDS if network.must else SECONDS_ELSE)
        if network.name.startswith("depthwise"):
            self.depthwise[setting.name][network] = times
        self._record(network, setting, 1, times)
        self.claims += race_claims(network, setting, times)

    def _race_on_threads(self, network: Network, setting: Setting, files: Files) -> None:
        alone = entry(
            "alone",
            "edgewright",
            files.artifact.path,
            files.inputs,
            environment=dict(setting.environment) | {"EDGEWRIGHT_CPU": setting.paths[0]},
        )
        with started([*entries(files, setting, self.side, threads=THREADS), alone], THREADS) as running:
            times = race(running, seconds=SECONDS)
        one = times.pop("alone")
        self._record(network, setting, THREADS, times)
        self.claims += thread_claims(network, setting, one, times)

    def _record(self, network: Network, setting: Setting, threads: int, times: Mapping[str, Times]) -> None:
        self.console.print(f"{setting.title}, threads: {threads}")
        off, off_raced = (self._off[setting.name, q] for q in (WEIGHTS, setting.quantize))
        for name, found in times.items():
            if name == "roof":
                continue
            steps, steps_raced = off.get(name), off_raced.get(name)
            row = {
                "model": network.name,
                "instructions": setting.name,
                "threads": threads,
                "peer": name,
                "min_ms": round(found.min_ms, 5),
                "median_ms": round(found.median_ms, 5),
                "exact": None if steps is None else steps <= ONE_STEP,
                "exact_raced": None if steps_raced is None else steps_raced <= ONE_STEP,
                "steps_off": None if steps is None else round(steps, 2),
            }
            self.rows.append(row)
            exact = "" if steps is None else "exact" if row["exact"] else "not exact"
            exact += " but on these weights" if row["exact_raced"] and not row["exact"] else ""
            self.console.print(f"  {name:24} {row['min_ms']:9.3f} {row['median_ms']:9.3f} ms  {exact}")


def noise(network: Network, module: nn.Module, files: Files, quantize: ew.Quantize) -> Claim:
    """How far the integer network is from the float one, on samples that did not choose its ranges."""
    x: npt.NDArray[Any] = network.samples(CALIBRATION_SAMPLES, seed=4)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    runner = Runner(files.artifact, backend="native")
    (name,) = (p.name for p in files.artifact.inputs)
    (found,) = runner.run({name: x}).values()
    safe = quantize != WEIGHTS
    return Claim(
        id=f"sqnr.{network.name}{'.safe' if safe else ''}",
        what=f"{network.title}: signal to quantization noise of the integer network"
        + (", its weights overflow-safe," if safe else "")
        + f" against the float one, {len(x)} random samples",
        value=float(ew.sqnr_db(expected, np.asarray(found))),
        unit="dB",
    )


def compiled_roof(folder: Path) -> Callable[[Setting], list[Entry]]:
    """roof.cpp built; gives the entry for a setting's best path and weights, if it knows them."""
    program = folder / "roof"
    subprocess.run(["c++", "-O2", "-o", str(program), str(HERE / "roof.cpp")], check=True)

    def roof(setting: Setting) -> list[Entry]:
        safe = setting.quantize.overflow_safe
        command = (str(program), setting.paths[0] + ("" if safe == "off" else f"-{safe}"))
        known = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return [Entry(name="roof", command=command)] if known.returncode == 0 else []

    return roof


if __name__ == "__main__":
    main()
