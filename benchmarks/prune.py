"""Channels pruned to a latency budget: how much faster, and what of accuracy is lost. `make bench-prune`.

The image classifier of examples/image_classifier.py, trained on a part of CIFAR-10, pruned to a latency
budget of this machine's engine in INT8, fine-tuned towards the whole network, exported. Whole and pruned run
in turns on one thread, in INT8 on the native engine and in FP32 in ONNX Runtime; accuracy is that of the
native engine on the 2,000 test images, which nothing has learned from.

Networks that OUT (out/image_classifier) holds already are not trained again: float.safetensors,
pruned_SEED.safetensors, and the measurements for the latency model, latency.json; trained.json beside them
says where and how they were trained. Training takes some minutes on an accelerator and about half an hour on
two cores. Needs ../shared/data/cifar10.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from race import Times, entry, race, started
from record import Claim, write
from settings import settings
from torch import nn

import edgewright as ew
from edgewright.dependencies import Dependencies
from edgewright.fidelity import Fidelity, described, fidelity
from edgewright.latency_budget import Stopwatch, latency_model
from edgewright.latency_model import LatencyModel
from edgewright.pruning import count_macs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from image_classifier import (
    FINETUNE_EPOCHS,
    FLOAT_EPOCHS,
    Images,
    Labels,
    device,
    images,
    learning_data,
    load,
    recipe,
    save,
    trained,
)

SPEEDUP = 2.1
POINTS = 1.0  # of accuracy that may be lost
PREDICTED = 0.10  # how far a prediction may be off
CHANNELS = 0.30


def networks(out: Path, seeds: Sequence[int], epochs: int, tuning: int) -> tuple[nn.Module, list[nn.Module]]:
    """The whole network, and one pruned for each seed: those at hand, and what is missing trained."""
    told = out / "trained.json"
    notes: dict[str, Any] = json.loads(told.read_text("utf-8")) if told.exists() else {}

    def note(name: str, start: float, epochs: int) -> None:
        notes[name] = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "epochs": epochs,
            "seconds": round(time.time() - start),
        }
        told.write_text(json.dumps(notes, indent=1), "utf-8")

    missing = [seed for seed in seeds if not (out / f"pruned_{seed}.safetensors").exists()]
    data = learning_data() if missing else None
    if not (out / "float.safetensors").exists():
        start = time.time()
        save(trained(learning_data(), epochs, progress=_show), out / "float.safetensors")
        note("float", start, epochs)
    whole = load(out / "float.safetensors")
    for seed in missing:
        assert data is not None
        start, teacher = time.time(), load(out / "float.safetensors").to(device())
        how = recipe(tuning, seed, out / "latency.json")
        small = ew.compress(teacher, how, data=data, teacher=teacher, progress=_show)
        save(small, out / f"pruned_{seed}.safetensors")
        note(f"pruned_{seed}", start, tuning)
    return whole, [load(out / f"pruned_{seed}.safetensors") for seed in seeds]


def predictions(whole: nn.Module, out: Path, example: Images) -> tuple[LatencyModel, list[str]]:
    """The latency model that widths are chosen by, and the first layer of each group."""
    how = recipe(1, 0, out / "latency.json").prune
    assert how is not None
    x = torch.from_numpy(example)
    whole = whole.eval().requires_grad_(True)
    graph = Dependencies(whole, x[:1])
    model = latency_model(whole, graph, how, x[:1], Stopwatch(x, ew.Quantize()), _show)
    return model, [group.name for group in graph.groups]


def channels(model: nn.Module) -> int:
    """Output channels of all convolutions."""
    return sum(part.out_channels for part in model.modules() if isinstance(part, nn.Conv2d))


def logits(artifact: ew.Artifact, x: Images) -> Any:
    """What the native engine gives."""
    return ew.Runner(artifact).run({artifact.inputs[0].name: x})[artifact.outputs[0].name]


def races(folder: Path, name: str, x: Images, seconds: float) -> dict[str, dict[str, Times]]:
    """Times of whole and pruned, INT8 here and FP32 in ONNX Runtime, for each set of instructions."""
    inputs = folder / "x.npz"
    np.savez(inputs, allow_pickle=False, **{name: x[:1]})
    found = {}
    for setting in settings(folder):
        entries = [
            entry(
                f"{network} {kind}",
                engine,
                folder / f"{network}{suffix}",
                inputs,
                environment=setting.environment,
            )
            for kind, engine, suffix in (("INT8", "edgewright", ".ew"), ("FP32", "onnxruntime", ".onnx"))
            for network in ("whole", "pruned")
        ]
        with started(entries) as contestants:
            found[setting.name] = race(contestants, seconds=seconds)
    return found


def _show(report: ew.Progress) -> None:
    values = {name: float(f"{value:.4g}") for name, value in report.metrics.items()}
    print(f"{report.step} {report.done}/{report.total} {values}", file=sys.stderr, flush=True)


def _points(found: Fidelity) -> tuple[float, tuple[float, float]]:
    """Points of accuracy lost, and their interval."""
    low, high = found.interval
    return -100 * found.difference, (-100 * high, -100 * low)


def main() -> None:
    """Trains what is missing, measures and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/image_classifier"))
    parser.add_argument("--seeds", type=int, default=2, help="how many times to fine-tune")
    parser.add_argument("--epochs", type=int, default=49 if torch.cuda.is_available() else FLOAT_EPOCHS)
    parser.add_argument(
        "--finetune-epochs", type=int, default=28 if torch.cuda.is_available() else FINETUNE_EPOCHS
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each race")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    whole, small = networks(options.out, range(options.seeds), options.epochs, options.finetune_epochs)
    x, labels = images("test")
    calibration = np.ascontiguousarray(images("train")[0][:256])
    model, groups = predictions(whole, options.out, calibration[:64])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        claims, rows = measured(folder, whole, small, x, labels, calibration, model, groups, options.seconds)
    told = options.out / "trained.json"
    rows.append({"trained": json.loads(told.read_text("utf-8")) if told.exists() else {}})
    print(*claims, sep="\n")
    print(write("prune", claims, rows, ("numpy", "torch", "torch-pruning", "onnxruntime", "edgewright")))


def measured(
    folder: Path,
    whole: nn.Module,
    small: Sequence[nn.Module],
    x: Images,
    labels: Labels,
    calibration: Images,
    model: LatencyModel,
    groups: Sequence[str],
    seconds: float,
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Claims and rows; the first pruned network is the one that runs against time."""
    names = ["whole", "pruned", *(f"pruned_{seed}" for seed in range(1, len(small)))]
    artifacts = {
        name: ew.export(each, target=ew.detect(), calibration=calibration, out=folder / f"{name}.ew")
        for name, each in zip(names, (whole, *small), strict=True)
    }
    for name, each in (("whole", whole), ("pruned", small[0])):
        ew.export_onnx(each, folder / f"{name}.onnx", example_inputs=(x[:1],))
    outputs = {name: logits(artifact, x) for name, artifact in artifacts.items()}
    with torch.no_grad():
        floats = whole(torch.from_numpy(x)).numpy()
    rows: list[dict[str, Any]] = []
    lost = []
    for name, each in zip(names, (whole, *small), strict=True):
        against_float, against_whole = (
            fidelity(reference, outputs[name], labels) for reference in (floats, outputs["whole"])
        )
        print(f"{name}: INT8 against the whole float network: {described(against_float)}")
        rows.append(
            {
                "network": name,
                "channels": channels(each),
                "parameters": sum(p.numel() for p in each.parameters()),
                "macs": count_macs(each, torch.from_numpy(x[:1])),
                "accuracy_int8": against_float.accuracy,
                "accuracy_whole_float": against_float.reference_accuracy,
                "points_lost_to_whole_float": _points(against_float),
                "points_lost_to_whole_int8": _points(against_whole),
                "flips_to_whole_float": against_float.flip_rate,
                "sqnr_db_to_whole_float": against_float.sqnr_db,
            }
        )
        if name != "whole":
            lost.append(_points(against_whole))
    layers = [small[0].get_submodule(group) for group in groups]
    widths = tuple(int(each.out_channels) for each in layers if isinstance(each, nn.Conv2d))
    predicted = model.milliseconds(widths)
    error = model.cross_validation()
    timed = races(folder, artifacts["whole"].inputs[0].name, x, seconds)
    claims = []
    for setting, times in timed.items():
        for kind in ("INT8", "FP32"):
            ratios = times[f"whole {kind}"].ratios(times[f"pruned {kind}"])
            rows.append(
                {
                    "instructions": setting,
                    "engine": "edgewright" if kind == "INT8" else "onnxruntime",
                    "kind": kind,
                    "whole_min_ms": times[f"whole {kind}"].min_ms,
                    "whole_median_ms": times[f"whole {kind}"].median_ms,
                    "pruned_min_ms": times[f"pruned {kind}"].min_ms,
                    "pruned_median_ms": times[f"pruned {kind}"].median_ms,
                    "speedup": float(np.median(ratios)),
                    "quartiles": [float(q) for q in np.percentile(ratios, (25, 75))],
                    "rounds": len(ratios),
                }
            )
    best = list(timed)[-1]  # the instructions that the latency model was measured with
    ratios = timed[best]["whole INT8"].ratios(timed[best]["pruned INT8"])
    speedup = float(np.median(ratios))
    points, interval = lost[0]
    removed = 1 - channels(small[0]) / channels(whole)
    actual = timed[best]["pruned INT8"].min_ms
    rows.append(
        {
            "predicted_ms": predicted,
            "predicted_speedup": model.milliseconds(model.measured[0].widths) / predicted,
            "measured_ms": actual,
            "predicted_whole_ms": model.milliseconds(model.measured[0].widths),
            "measured_whole_ms": timed[best]["whole INT8"].min_ms,
            "cross_validation": {"mean": error.mean, "worst": error.worst, "models": error.count},
            "widths": dict(zip(groups, widths, strict=True)),
        }
    )
    claims.append(
        Claim(
            id="C2",
            what="INT8 pruned against INT8 whole, how many times as fast: one image, one thread, native "
            f"engine, {best} instructions; median and quartiles of paired rounds; reached if at most 1 point "
            "is lost too",
            value=speedup,
            unit="x",
            interval=tuple(np.percentile(ratios, (25, 75)).tolist()),
            goal=SPEEDUP,
            reached=speedup >= SPEEDUP and points <= POINTS,
        )
    )
    claims.append(
        Claim(
            id="C2.lost",
            what="accuracy that INT8 pruned lost to INT8 whole on 2,000 test images; 95 % interval, paired",
            value=points,
            unit="points",
            interval=interval,
            goal=POINTS,
            reached=points <= POINTS,
        )
    )
    claims.append(
        Claim(
            id="C2.predicted",
            what="how far the predicted latency of the pruned network is from the measured one",
            value=abs(predicted / actual - 1),
            unit="",
            goal=PREDICTED,
            reached=abs(predicted / actual - 1) <= PREDICTED,
        )
    )
    claims.append(
        Claim(
            id="C2.cross_validated",
            what="mean error of the latency model on networks that it was not fitted to",
            value=error.mean,
            unit="",
            interval=(0.0, error.worst),
            goal=PREDICTED,
            reached=error.mean <= PREDICTED,
        )
    )
    claims.append(
        Claim(
            id="C2.channels",
            what="part of the channels of all convolutions that is gone",
            value=removed,
            unit="",
            goal=CHANNELS,
            reached=removed >= CHANNELS,
        )
    )
    return claims, rows


if __name__ == "__main__":
    main()
