"""What activations of 16 bits gain and cost a transformer: MiniLM-L6 on SST-2. `make bench-precision`.

Accuracy of the float model and of the native engine with activations uint8, mixed and int16 on SST-2's dev
part (all of its rows, or the first of a seeded order with --rows), and the time of one sentence on one
thread, the minimum over interleaved rounds. Needs the model and the data that examples/sst2.py reads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Claim, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from minilm import minilm
from sst2 import sentences, tokens

from edgewright import Quantize, export
from edgewright.precision import Activations
from edgewright.statistics import sqnr_db
from edgewright_device import Artifact, Runner
from edgewright_kernels import Engine, cpu_paths

LENGTH = 64
CALIBRATION = 128
ACTIVATIONS: tuple[Activations, ...] = ("uint8", "mixed", "int16")
ROUNDS = 60
GOAL = 0.99  # of the float model's accuracy


def milliseconds(engines: dict[str, Engine], one: dict[str, Any]) -> dict[str, float]:
    """The least time of one sentence on each engine, one round after the other."""
    least = dict.fromkeys(engines, float("inf"))
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(one)
            least[name] = min(least[name], 1000 * (time.perf_counter() - start))
    return least


def main() -> None:
    """Exports, measures and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="how many sentences; all, if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts, labels = sentences("dev")
    chosen = np.random.default_rng(0).permutation(len(texts))[: options.rows]
    x, labels = tokens([texts[i] for i in chosen], LENGTH), labels[chosen]
    model, calibration = minilm(), tokens(sentences("train")[0][:CALIBRATION], LENGTH)
    with torch.no_grad():
        parts = [slice(i, i + 64) for i in range(0, len(labels), 64)]
        floats = np.concatenate(
            [model(*(torch.from_numpy(x[n][p]) for n in ("ids", "mask"))).numpy() for p in parts]
        )
    accuracy = float((floats.argmax(1) == labels).mean())
    rows: list[dict[str, Any]] = [{"activations": "float32", "accuracy": accuracy, "rows": len(labels)}]
    with tempfile.TemporaryDirectory() as folder:
        artifacts: dict[str, Artifact] = {
            name: export(
                model,
                target="x86-64",
                calibration=calibration,
                out=Path(folder) / f"{name}.ew",
                quantize=Quantize(activations=name),
            )
            for name in ACTIVATIONS
        }
        paths = list(dict.fromkeys(p for p in (cpu_paths()[0], "avx2", "neon") if p in cpu_paths()))
        one = {n: v[:1] for n, v in x.items()}
        times: dict[str, dict[str, float]] = {}
        for cpu in paths:
            engines = {
                n: Engine(a.read("plan.bin"), a.read("weights.safetensors"), cpu=cpu)
                for n, a in artifacts.items()
            }
            times[cpu] = milliseconds(engines, one)
        for name, artifact in artifacts.items():
            got = Runner(artifact, "native").run(x)[artifact.outputs[0].name]
            rows.append(
                {
                    "activations": name,
                    "accuracy": float((got.argmax(1) == labels).mean()),
                    "flips": float((got.argmax(1) != floats.argmax(1)).mean()),
                    "sqnr_db": sqnr_db(floats, got),
                    "min_ms": {cpu: times[cpu][name] for cpu in paths},
                }
            )
            print(rows[-1], flush=True)
    claims = [
        Claim(
            id=f"accuracy_kept.{row['activations']}",
            what=f"accuracy with {row['activations']} activations over that of the float model",
            value=row["accuracy"] / accuracy,
            unit="",
            goal=GOAL,
            reached=row["accuracy"] / accuracy >= GOAL,
        )
        for row in rows[1:]
    ]
    print(rows[0], *claims, sep="\n")
    print(write("precision", claims, rows, ("numpy", "torch", "edgewright")))


if __name__ == "__main__":
    main()
