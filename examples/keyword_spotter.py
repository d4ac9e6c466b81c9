"""A keyword spotter from spoken digits: distilled, pruned, exported to INT8, verified, with one command.

    python examples/keyword_spotter.py

The recordings are those of the Free Spoken Digit Dataset (Jackson et al. 2018), 4 speakers with 50 takes of
each digit, in ../shared/data/fsdd or below EDGEWRIGHT_DATA. The networks are DS-CNNs (Zhang et al. 2017).
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import edgewright as ew
from edgewright.data import Augment
from edgewright.fidelity import Fidelity, described, fidelity, outputs_of
from edgewright_device import Artifact, Runner

DATA = Path(os.environ.get("EDGEWRIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
RATE_HZ = 8000
SECOND = 8000
WINDOW, HOP, FFT = 320, 160, 512
MELS, FRAMES = 32, 49
FLOOR = 1e-6
TEST_TAKES, VALIDATION_TAKES = 10, 8
"""Of each speaker's 50 takes of each digit."""
TEACHING = ew.Training(epochs=12, learning_rate=4e-3)
RECIPE = ew.Recipe(
    name="keyword-spotter",
    distill=ew.Distill(epochs=8, learning_rate=2.4e-2, progressive=ew.Progressive()),
    prune=ew.Prune(ratio=0.25, round_to=4),
    finetune=ew.Finetune(epochs=6, learning_rate=1e-2),
)


def log_mel(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """The front end: one second of sound as log energies, float32 (49, 32), about -2..2.

    Frames of 40 ms every 20 ms, Hann window, power spectrum, 32 triangular mel bands (HTK's scale) from 60 Hz
    to 4 kHz, logarithm. It is plain numpy; a device runs it before the model.

    Args:
        samples: Sound at 8 kHz of any length. What is longer than a second is cut at both ends; what is
            shorter gets silence there.
    """
    excess = len(samples) - SECOND
    if excess > 0:
        samples = samples[excess // 2 : excess // 2 + SECOND]
    sound = np.zeros(SECOND, np.float32)
    start = (SECOND - len(samples)) // 2
    sound[start : start + len(samples)] = samples / np.float32(32768)
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW).astype(
        np.float32
    )
    power = np.abs(np.fft.rfft(frames, FFT)).astype(np.float32) ** 2
    energies: npt.NDArray[np.float32] = ((np.log(power @ _bands() + FLOOR) + 6) / 4).astype(np.float32)
    return energies


def _bands() -> npt.NDArray[np.float32]:
    """Triangular filters, (257, 32)."""

    def mel(hz: Any) -> Any:
        return 2595 * np.log10(1 + hz / 700)

    edges = np.linspace(mel(60.0), mel(RATE_HZ / 2), MELS + 2)
    bins = mel(np.arange(FFT // 2 + 1) * RATE_HZ / FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands: npt.NDArray[np.float32] = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return bands


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Speech:
    """Spoken digits as log-mel energies, float32 (N, 1, 49, 32), split by take.

    So every speaker is in each part, and this says nothing about speakers that were never heard.

    Attributes:
        data: 32 takes of each digit and speaker to train on, a little different each time, and 8 to
            validate on.
        x_test: 10 takes of each, seen by no training.
        y_test: int64, 0..9.
    """

    data: ew.Data
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]


def load(batch_size: int = 64) -> Speech:
    """Reads the Free Spoken Digit Dataset and splits it by take."""
    with np.load(DATA / "fsdd" / "recordings_8khz.npz") as file:
        sound, at, y, who = (file[name] for name in ("samples", "offsets", "labels", "speakers"))
    x = np.stack([log_mel(sound[a:b]) for a, b in itertools.pairwise(at)])[:, None]
    seen: dict[tuple[str, int], int] = {}
    take = np.zeros(len(y), np.int64)
    for i, key in enumerate(zip(who.tolist(), y.tolist(), strict=True)):
        take[i] = seen[key] = seen.get(key, -1) + 1
    test, held = take < TEST_TAKES, (take >= TEST_TAKES) & (take < TEST_TAKES + VALIDATION_TAKES)
    train = ~test & ~held
    labels = y.astype(np.int64)
    data = ew.Data.from_arrays(
        x[train], labels[train], x[held], labels[held], batch_size=batch_size, augment=augment()
    )
    return Speech(data=data, x_test=x[test], y_test=labels[test])


def augment(shift: int = 6, gain: float = 0.3, noise: float = 0.1) -> Augment:
    """Sound that comes sooner or later, louder or softer, and with noise."""

    def change(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        count, _, frames, _ = x_NCHW.shape
        by = torch.randint(-shift, shift + 1, (count, 1), generator=generator)
        where = (torch.arange(frames)[None] + by) % frames
        x_NCHW = x_NCHW[torch.arange(count)[:, None], 0, where][:, None]
        louder = gain * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
        return x_NCHW + louder + noise * torch.randn(x_NCHW.shape, generator=generator)

    return change


class DsCnn(nn.Module):
    """Depthwise-separable convolutions (Zhang et al. 2017, "Hello Edge").

    Takes float32 (N, 1, 49, 32), gives logits (N, classes).
    """

    def __init__(self, channels: int, blocks: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv(1, channels, (10, 4), stride=2, padding=(4, 1))
        self.blocks = nn.Sequential(*(_separable(channels) for _ in range(blocks)))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns logits."""
        x_NCHW = self.average(self.blocks(self.stem(x_NCHW)))
        logits: Tensor = self.head(torch.flatten(x_NCHW, 1))
        return logits


def _conv(inputs: int, outputs: int, kernel: Any, **more: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(channels, channels, 3, padding=1, groups=channels), _conv(channels, channels, 1)
    )


def teacher() -> DsCnn:
    """The large network, untrained: 23,050 parameters."""
    torch.manual_seed(0)
    return DsCnn(64)


def student() -> DsCnn:
    """The small one, untrained: 7,434 parameters."""
    torch.manual_seed(1)
    return DsCnn(32)


def make(
    out: Path,
    *,
    target: str = "x86-64",
    teaching: ew.Training = TEACHING,
    recipe: ew.Recipe = RECIPE,
    say: Callable[[str], None] = print,
) -> Fidelity:
    """Makes the artifact, and says on the way what each step left.

    Args:
        out: A folder; it gets `keyword-spotter.ew`, `recipe.toml` and `report.json`.
        target: What will run the artifact.
        teaching: How the teacher learns.
        recipe: How the student is made from it.
        say: Told each line.

    Returns:
        The integers against the float student, on the test part.
    """
    speech = load()
    test = [(speech.x_test, speech.y_test)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    say("the teacher learns")
    taught = ew.train(teacher(), speech.data, teaching)
    by_teacher, labels = outputs_of(taught, test)
    say(f"teacher: {_size(taught)}, test accuracy {(by_teacher.argmax(1) == labels).mean():.2%}")

    def show(report: ew.Progress) -> None:
        if "accuracy" in report.metrics:
            accuracy = report.metrics["accuracy"]
            say(f"  {report.step} {report.done}/{report.total}: {accuracy:.2%} of validation")

    distilled = ew.compress(
        student(), replace(recipe, prune=None, finetune=None), data=speech.data, teacher=taught, progress=show
    )
    say(f"distilled: {_size(distilled)}; to the teacher: {_kept(by_teacher, distilled, test)}")
    small = ew.compress(
        distilled, replace(recipe, distill=None), data=speech.data, teacher=taught, progress=show
    )
    say(f"pruned: {_size(small)}; to the teacher: {_kept(by_teacher, small, test)}")
    artifact = ew.export(
        small,
        target=target,
        calibration=speech.data.train,
        quantize=recipe.quantize,
        out=out / "keyword-spotter.ew",
    )
    report = ew.verify(artifact, reference=small, data=_validation(speech.data))
    (out / "report.json").write_text(report.to_json(), "utf-8")
    say(f"verified: {'passed' if report.passed else 'FAILED'}, {report.bit_mismatches} differing values")
    by_small, _ = outputs_of(small, test)
    found = fidelity(by_small, spot(artifact, speech.x_test), labels)
    say(f"in integers; to the float student: {described(found)}")
    return found


def spot(artifact: Artifact, x_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Runs the artifact as a device does: log-mel energies (N, 1, 49, 32) to logits (N, 10)."""
    outputs = Runner(artifact).run({artifact.inputs[0].name: x_NCHW})
    logits: npt.NDArray[np.float32] = outputs[artifact.outputs[0].name]
    return logits


def _validation(data: ew.Data) -> npt.NDArray[np.float32]:
    return np.concatenate([np.asarray(inputs) for inputs, _ in data.validation])


def _kept(reference: npt.NDArray[Any], model: nn.Module, test: list[Any]) -> str:
    outputs, labels = outputs_of(model, test)
    return described(fidelity(reference, outputs, labels))


def _size(model: nn.Module) -> str:
    return f"{sum(each.numel() for each in model.parameters()):,} parameters"


def main() -> None:
    """The whole trip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/keyword-spotter"), help="where the result goes")
    parser.add_argument("--target", default="x86-64", help="what will run it (`edgewright targets`)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(options.out, target=options.target)
    print(f"{options.out / 'keyword-spotter.ew'} is ready")


if __name__ == "__main__":
    main()
