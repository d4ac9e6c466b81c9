"""A BERT-class encoder on a CPU: MiniLM-L6 on SST-2, pruned and in integers. `make bench-encoder`.

The student is what examples/sentence_encoder.py makes: it is trained here, which takes most of an hour on two
cores, unless it lies in out/sentence-encoder already, or where --student says. Accuracy is the native
engine's on SST-2's dev part, which no step has seen. Times are of one sentence that fills its length, in
turns with MiniLM-L6 in float32 in ONNX Runtime, on one thread and on two; with AVX2 alone, where the goal
was set, and with all instructions. Once more against the shape of BERT-base, 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import numpy as np
import torch
from minilm import Layer, load_encoder, minilm, save_encoder
from networks import NETWORKS
from peers import write_float
from record import Claim, write
from sentence_encoder import LENGTHS, MARGIN, RECIPE, data, kept, student, tell, to_integers
from settings import settings
from sst2 import sentences, tokens

import edgewright as ew
from edgewright.latency import onnx_call
from edgewright_device import Artifact
from edgewright_kernels import Engine

STUDENT = Path("out/sentence-encoder/student.safetensors")
ROUNDS = 60
THREADS = (1, 2)
GOAL, GOAL_BERT = 5.0, 10.0
JUDGED = LENGTHS[-1]  # the length at which the ratio is lowest


def words(length: int) -> dict[str, Any]:
    """A sentence that fills so many tokens."""
    found = tokens([" ".join(sentences("train")[0][:100])], length)
    assert found["mask"].all()
    return found


def race(folder: Path) -> list[dict[str, Any]]:
    """Times in turns, round by round, in this process."""
    rows = []
    bert = np.load(folder / "bert.npy")
    artifact = Artifact.open(folder / "student.ew")
    for threads in THREADS:
        large = onnx_call(folder / "bert.onnx", [bert], threads=threads)
        for length in LENGTHS:
            x = words(length)
            file = "plan.bin" if length == LENGTHS[-1] else f"plan-{length}.bin"
            engine = Engine(artifact.read(file), artifact.read("weights.safetensors"), threads=threads)
            calls: dict[str, Callable[[], object]] = {
                "student": partial(engine.run, x),
                "minilm": onnx_call(folder / f"minilm-{length}.onnx", x, threads=threads),
            }
            if length == JUDGED:
                calls["bert"] = large
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    times[name].append(1e3 * (time.perf_counter() - start))
            row: dict[str, Any] = {"threads": threads, "length": length}
            for name, found in times.items():
                row[f"{name}_min_ms"] = min(found)
                if name != "student":
                    ratios = sorted(a / b for a, b in zip(found, times["student"], strict=True))
                    row[f"{name}_ratio"] = min(found) / min(times["student"])
                    row[f"{name}_ratios"] = (ratios[ROUNDS // 4], ratios[-1 - ROUNDS // 4])
                    row[f"{name}_median_ratio"] = statistics.median(ratios)
            rows.append(row)
    return rows


def files(folder: Path, small: torch.nn.Module, recipe: ew.Recipe) -> Artifact:
    """Everything that races, written to a folder."""
    artifact = to_integers(small, recipe, folder / "student.ew", progress=tell)
    for length in LENGTHS:
        path = folder / f"minilm-{length}.onnx"
        x = words(length)
        example = tuple(torch.from_numpy(np.repeat(v, 2, axis=0)) for v in x.values())
        ew.export_onnx(minilm(), path, example_inputs=example, optimize=True, opset=20)
    bert = next(n for n in NETWORKS if n.name == "bert-base")
    (sample,) = write_float(bert.module(), {"x": bert.samples(2)}, folder / "bert.onnx").values()
    np.save(folder / "bert.npy", sample[:1])
    return artifact


def main() -> None:
    """Trains where needed, measures and records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", type=Path, default=STUDENT, help="trained, or where it will be kept")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda")
    parser.add_argument("--race", type=Path, help="used by itself: the folder of what races")
    options = parser.parse_args()
    if options.race:
        print(json.dumps(race(options.race)))
        return
    recipe = ew.Recipe.from_toml(RECIPE)
    made_before = options.student.is_file()
    if not made_before:
        options.student.parent.mkdir(parents=True, exist_ok=True)
        save_encoder(student(recipe, data(), device=options.device, progress=tell), options.student)
    small = load_encoder(options.student)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = files(folder, small, recipe)
        for setting in settings(folder):
            done = subprocess.run(
                [sys.executable, __file__, "--race", str(folder)],
                env=os.environ | dict(setting.environment),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows += [{"instructions": setting.name, **row} for row in json.loads(done.stdout)]
        for part in ("dev", "test"):
            in_float, in_integers = kept((minilm(), small, artifact), part)
            rows += [
                {"model": "pruned, float32", "part": part, **asdict(in_float)},
                {"model": "pruned, INT8", "part": part, **asdict(in_integers)},
            ]
        rows.append(
            {
                "weights_bytes": len(artifact.read("weights.safetensors")),
                "float_weights_bytes": 4 * sum(p.numel() for p in minilm().parameters()),
                "layers": [(x.heads, x.up.out_features) for x in small.layers if isinstance(x, Layer)],
                "student_made_before": made_before,
            }
        )
    result = claims(rows)
    print(*result, sep="\n")
    print(write("encoder", result, rows, ("numpy", "torch", "onnxruntime", "edgewright")))


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """What the rows say."""
    races = [row for row in rows if "instructions" in row]
    judged = races[0]["instructions"]  # AVX2 alone, where that can be had
    one, two = (
        next(r for r in races if r["length"] == JUDGED and r["threads"] == threads) for threads in THREADS
    )
    dev = next(r for r in rows if r.get("model") == "pruned, INT8" and r["part"] == "dev")
    share = dev["accuracy"] / dev["reference_accuracy"]
    low, high = (1 + x / dev["reference_accuracy"] for x in dev["interval"])
    kept = Claim(
        id="C4.accuracy",
        what=f"accuracy in INT8 over MiniLM-L6's on {dev['count']:,} sentences of SST-2's dev part; "
        "interval: 95 %, paired; reached if all of it is above the goal",
        value=share,
        unit="",
        interval=(low, high),
        goal=1 - MARGIN,
        reached=low >= 1 - MARGIN,
    )
    setting = {"avx2": "AVX2 alone", "all": "all instructions"}[judged]
    title = "MiniLM-L6 in float32 in ONNX Runtime"
    return [
        _ratio("C4", title, f"one thread, {setting}", one, "minilm", GOAL),
        kept,
        _ratio(
            "C4.bert_base",
            "the shape of BERT-base likewise",
            f"one thread, {setting}",
            one,
            "bert",
            GOAL_BERT,
        ),
        _ratio("C4.two_threads", title, f"two threads, {setting}", two, "minilm", GOAL),
    ]


def _ratio(name: str, what: str, how: str, row: dict[str, Any], peer: str, goal: float) -> Claim:
    value = row[f"{peer}_median_ratio"]
    return Claim(
        id=name,
        what=f"{what} over the pruned INT8 form, {JUDGED} tokens, {how}: median of rounds in turns; "
        "interval: quartiles",
        value=value,
        unit="times",
        interval=tuple(row[f"{peer}_ratios"]),
        goal=goal,
        reached=value >= goal,
    )


if __name__ == "__main__":
    main()
