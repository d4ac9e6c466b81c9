"""What quantization-aware training gains: MiniLM-L6 with uint8 activations on SST-2. `make bench-qat`.

The same uint8 grids, calibrated alone and then trained: one epoch over some thousand phrases of SST-2's train
part, the float model as the only teacher, on one thread. Accuracy, SQNR and flipped decisions against the
float model are the native engine's, on SST-2's dev part, which neither calibration nor training has seen.
Sentences have 32 tokens. Needs the model and the data in ../shared/data, as examples/minilm.py does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from minilm import minilm
from record import Claim, write
from sst2 import sentences, tokens

from edgewright import Data, Progress, Qat, Quantize, Recipe, compress, export
from edgewright.fidelity import fidelity
from edgewright_device import Artifact, Runner

LENGTH = 32
HELD = 200  # phrases to validate on while training
QAT = Qat(epochs=1, learning_rate=1e-4, temperature=8, alpha=1)
GOAL_DB = 3.0


def chosen(part: str, count: int | None) -> tuple[dict[str, Any], Any]:
    """Tokens and labels of so many sentences, in a seeded order."""
    texts, labels = sentences(part)
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return tokens([texts[i] for i in order], LENGTH), labels[order]


def outputs(model: torch.nn.Module, x: dict[str, Any]) -> Any:
    """Logits of a module, 64 sentences at a time."""
    parts = [slice(i, i + 64) for i in range(0, len(x["ids"]), 64)]
    with torch.no_grad():
        return np.concatenate([model(*(torch.from_numpy(x[n][p]) for n in x)).numpy() for p in parts])


def show(progress: Progress) -> None:
    """One line for each report."""
    print(progress.step, progress.done, progress.total, dict(progress.metrics), flush=True)


def main() -> None:
    """Trains, exports, measures and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000, help="how many sentences to measure on")
    parser.add_argument("--phrases", type=int, default=6400, help="how many to train on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, (x, labels) = minilm(), chosen("dev", options.rows)
    reference = outputs(model, x)
    learned, classes = chosen("train", options.phrases + HELD)
    data = Data.from_arrays(
        {n: v[HELD:] for n, v in learned.items()},
        classes[HELD:],
        {n: v[:HELD] for n, v in learned.items()},
        classes[:HELD],
        batch_size=32,
    )
    rows: list[dict[str, Any]] = []

    def measured(name: str, artifact: Artifact, train_s: float) -> None:
        logits = Runner(artifact, "native").run(x)[artifact.outputs[0].name]
        rows.append({"name": name, "train_s": train_s, **asdict(fidelity(reference, logits, labels))})
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        calibration = {n: v[HELD : HELD + 512] for n, v in learned.items()}
        out = Path(folder)
        measured("calibrated", export(model, target="x86-64", calibration=calibration, out=out / "ptq.ew"), 0)
        began_s = time.perf_counter()
        trained = compress(model, Recipe(name="qat", qat=QAT, quantize=Quantize()), data=data, progress=show)
        train_s = time.perf_counter() - began_s
        measured("trained", export(trained, target="x86-64", out=out / "qat.ew"), train_s)
    before, after = rows
    gain = after["sqnr_db"] - before["sqnr_db"]
    claims = [
        Claim(
            id="qat.sqnr_gain",
            what=f"SQNR won by training on {options.phrases:,} phrases",
            value=gain,
            unit="dB",
            goal=GOAL_DB,
            reached=gain >= GOAL_DB,
        ),
        Claim(
            id="qat.accuracy_kept",
            what="accuracy of the trained uint8 model over that of the float model",
            value=after["accuracy"] / after["reference_accuracy"],
            unit="",
            goal=0.99,
            reached=after["accuracy"] >= 0.99 * after["reference_accuracy"],
        ),
    ]
    print(*claims, write("qat", claims, rows, ("numpy", "torch", "edgewright")), sep="\n")


if __name__ == "__main__":
    main()
