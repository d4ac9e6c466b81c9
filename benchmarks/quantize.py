"""What quantization after training keeps, method by method, in the integer engine. `make bench-quantize`.

MLPerf Tiny's ResNet8 on CIFAR-10's test part at hand (2,000 images), and MiniLM-L6 on SST-2's dev part (6,735
sentences), both from ../shared/data. Each method is calibrated on samples of the train part, three draws of
them for ResNet8; the method that a claim is about is the one with the best signal to noise ratio on other
samples of the train part, and what is measured plays no part in that. A claim takes the worst of the draws.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from record import Claim, write
from tflite_reader import onnx_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from image_classifier import images
from minilm import minilm
from sst2 import DATA, sentences, tokens

from edgewright import OnProgress, Progress, Quantize, export, sqnr_db
from edgewright.fidelity import fidelity
from edgewright.graph import onnx_function
from edgewright.wiring import initializers
from edgewright_device import Artifact, Runner

LENGTH = 64
DRAWN = 256  # calibration samples
JUDGED = 512  # samples of the train part that choose the method
MOST_LOSS, REFUSED = 0.5, 1.0  # points
SMALLER = 3.9
Samples = Mapping[str, npt.NDArray[Any]]

IMAGE_METHODS: dict[str, Quantize] = {
    "min-max": Quantize(),
    "percentile": Quantize(calibration="percentile"),
    "least error": Quantize(calibration="mse"),
    "entropy": Quantize(calibration="entropy"),
    "equalized": Quantize(equalize=True),
    "smoothed": Quantize(smooth="search"),
    "bias correction": Quantize(correct_bias=True),
    "gptq": Quantize(rounding="gptq"),
    "least error, gptq, bias correction": Quantize(calibration="mse", rounding="gptq", correct_bias=True),
}
TEXT_METHODS: dict[str, Quantize] = {
    "min-max": Quantize(),
    "least error": Quantize(calibration="mse"),
    "smoothed": Quantize(smooth="fixed"),
    "auto, 20 dB": Quantize(activations="auto", min_sqnr_db=20),
    "mixed": Quantize(activations="mixed"),
    "mixed, smoothed, least error": Quantize(activations="mixed", smooth="fixed", calibration="mse"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and its data.

    Attributes:
        name: Of it.
        model: A module, or the path of a float ONNX file.
        floats: It as a function of samples by name.
        weights_bytes: Of its float32 weights.
        draw: Calibration samples by seed.
        judging: Samples that choose a method.
        test: Samples that are measured on.
        labels: Of `test`.
        methods: By name.
        draws: Seeds.
    """

    name: str
    model: Any
    floats: Callable[[Samples], npt.NDArray[Any]]
    weights_bytes: int
    draw: Callable[[int], Samples]
    judging: Samples
    test: Samples
    labels: npt.NDArray[Any]
    methods: Mapping[str, Quantize]
    draws: int


def batched(run: Callable[[Samples], npt.NDArray[Any]], x: Samples) -> npt.NDArray[Any]:
    """The outputs, 64 samples at a time."""
    count = len(next(iter(x.values())))
    return np.concatenate([run({n: v[i : i + 64] for n, v in x.items()}) for i in range(0, count, 64)])


def resnet8(folder: Path, rows: int | None) -> Case:
    """MLPerf Tiny's network; its pixels are 0..255."""
    graph = onnx_of(DATA / "mlperf_tiny" / "pretrainedResnet.tflite")
    path = folder / "resnet8.onnx"
    onnx.save(graph, path)
    run = onnx_function(graph)
    (train, _), (test, labels) = ((255 * (x / 4 + 0.5), y) for x, y in (images("train"), images("test")))
    order = np.random.default_rng(0).permutation(len(train))
    judged, left = order[:JUDGED], order[JUDGED:]
    return Case(
        name="ResNet8",
        model=path,
        floats=lambda x: run(x)["y"],
        weights_bytes=sum(v.nbytes for v in initializers(graph).values()),
        draw=lambda seed: {"x": train[np.random.default_rng(seed).permutation(left)[:DRAWN]]},
        judging={"x": train[judged]},
        test={"x": test[:rows]},
        labels=labels[:rows],
        methods=IMAGE_METHODS,
        draws=3,
    )


def encoder(rows: int | None) -> Case:
    """MiniLM-L6, fine-tuned on SST-2."""
    model = minilm()
    train = sentences("train")[0]
    texts, labels = sentences("dev")
    order = np.random.default_rng(0).permutation(len(train))
    chosen = np.random.default_rng(0).permutation(len(texts))[:rows]

    def run(x: Samples) -> npt.NDArray[Any]:
        with torch.no_grad():
            found: npt.NDArray[Any] = model(*(torch.from_numpy(x[n]) for n in ("ids", "mask"))).numpy()
        return found

    def of(numbers: npt.NDArray[Any]) -> Samples:
        return tokens([train[i] for i in numbers], LENGTH)

    return Case(
        name="MiniLM-L6",
        model=model,
        floats=run,
        weights_bytes=sum(4 * p.numel() for p in model.parameters()),
        draw=lambda seed: of(np.random.default_rng(seed).permutation(order[JUDGED:])[: DRAWN // 2]),
        judging=of(order[:JUDGED]),
        test=tokens([texts[i] for i in chosen], LENGTH),
        labels=labels[chosen],
        methods=TEXT_METHODS,
        draws=1,
    )


def noting(notes: list[str]) -> OnProgress:
    """Keeps what is noted."""

    def show(report: Progress) -> None:
        if report.note:
            notes.append(report.note)

    return show


def measured(case: Case, folder: Path) -> list[dict[str, Any]]:
    """One row for each method and draw."""
    exact, judged = batched(case.floats, case.test), batched(case.floats, case.judging)
    rows: list[dict[str, Any]] = []
    for name, how in case.methods.items():
        for seed in range(case.draws):
            start, notes = time.perf_counter(), list[str]()
            artifact: Artifact = export(
                case.model,
                target="x86-64",
                calibration=case.draw(seed),
                out=folder / "measured.ew",
                quantize=how,
                progress=noting(notes),
            )
            seconds = time.perf_counter() - start
            runner, port = Runner(artifact, "native", threads=2), artifact.outputs[0].name

            def run(x: Samples, runner: Runner = runner, port: str = port) -> npt.NDArray[Any]:
                found: npt.NDArray[Any] = runner.run(dict(x))[port]
                return found

            found = fidelity(exact, batched(run, case.test), case.labels)
            rows.append(
                {
                    "model": case.name,
                    "method": name,
                    "seed": seed,
                    **asdict(found),
                    "judged_db": sqnr_db(judged, batched(run, case.judging)),
                    "weights_ratio": case.weights_bytes / len(artifact.read("weights.safetensors")),
                    "export_s": seconds,
                    "notes": notes,
                }
            )
            print(
                case.name, name, seed, f"{found.sqnr_db:.1f} dB", f"{100 * found.difference:+.2f}", flush=True
            )
    return rows


def claims(rows: Sequence[dict[str, Any]], suffix: str) -> list[Claim]:
    """What is claimed of one model."""
    names = dict.fromkeys(r["method"] for r in rows)
    best = max(names, key=lambda n: float(np.mean([r["judged_db"] for r in rows if r["method"] == n])))
    chosen = [r for r in rows if r["method"] == best]
    worst = min(chosen, key=lambda r: float(r["difference"]))
    low, high = (100 * float(b) for b in worst["interval"])
    loss = -100 * float(worst["difference"])
    ratio = min(float(r["weights_ratio"]) for r in chosen)
    return [
        Claim(
            id=f"C1{suffix}",
            what=f"{worst['model']}, {best}: accuracy lost to INT8, paired 95 % interval, worst draw",
            value=loss,
            unit="points",
            interval=(-high, -low),
            goal=MOST_LOSS,
            reached=loss <= MOST_LOSS and -low < REFUSED,
        ),
        Claim(
            id=f"C1.size{suffix}",
            what=f"{worst['model']}, {best}: bytes of float32 weights over those of the artifact's weights",
            value=ratio,
            unit="x",
            goal=SMALLER,
            reached=ratio >= SMALLER,
        ),
    ]


def main() -> None:
    """Exports, measures and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="how many samples to measure on; all, if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images_rows = measured(resnet8(folder, options.rows), folder)
        text_rows = measured(encoder(options.rows), folder)
    made = [*claims(images_rows, ""), *claims(text_rows, ".minilm")]
    print(*made, sep="\n")
    print(write("quantize", made, [*images_rows, *text_rows], ("numpy", "torch", "edgewright")))


if __name__ == "__main__":
    main()
