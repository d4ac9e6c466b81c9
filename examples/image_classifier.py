"""An image classifier: trained, pruned to a latency budget, exported to INT8, verified, with one command.

    python examples/image_classifier.py

The images are a part of CIFAR-10 (Krizhevsky 2009), 20,000 to learn from and 2,000 to test on, in
../shared/data/cifar10 or below EDGEWRIGHT_DATA. The network is a residual one (He et al. 2016).
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import edgewright as ew
from edgewright.data import Batches
from edgewright.fidelity import Fidelity, described, fidelity, outputs_of

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
DATA = Path(os.environ.get("EDGEWRIGHT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FLOAT_EPOCHS, FINETUNE_EPOCHS = 16, 12
BATCH = 128
SPEEDUP = 2.2  # what is asked for; a prediction is some percent off, and 2.1 is what must come of it


class Block(nn.Module):
    """Two 3x3 convolutions at half the resolution, and past them one of 1x1."""

    def __init__(self, channels: int, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Conv2d(channels, outer, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Takes (N, channels, H, W), gives (N, outer, H/2, W/2)."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.norm(self.shortcut(x)))


class Classifier(nn.Module):
    """Takes images, float32 (N, 3, 32, 32), as `images` gives them; gives logits (N, 10).

    Args:
        stem: Channels of the first convolution.
        blocks: Of each block, the channels inside and at its end.
    """

    def __init__(
        self, stem: int = 32, blocks: Sequence[tuple[int, int]] = ((64, 64), (128, 128), (256, 256))
    ) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        before = (stem, *(outer for _, outer in blocks))
        self.blocks = nn.Sequential(
            *(Block(channels, inner, outer) for channels, (inner, outer) in zip(before, blocks, strict=False))
        )
        self.head = nn.Linear(before[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies."""
        logits: Tensor = self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))
        return logits


def save(model: nn.Module, path: Path) -> None:
    """Writes a classifier of any widths."""
    save_file({name: value.contiguous().cpu() for name, value in model.state_dict().items()}, path)


def load(path: Path) -> Classifier:
    """Reads a classifier that `save` wrote, in eval mode; its widths are those of its weights."""
    weights = load_file(path)
    widths = {name: value.shape[0] for name, value in weights.items() if value.ndim == 4}
    count = sum(name.endswith("conv1.weight") for name in widths)
    blocks = [tuple(widths[f"blocks.{i}.conv{j}.weight"] for j in (1, 2)) for i in range(count)]
    model = Classifier(widths["stem.weight"], blocks)  # type: ignore[arg-type]
    model.load_state_dict(weights)
    return model.eval()


def images(part: str) -> tuple[Images, Labels]:
    """Images, float32 (n, 3, 32, 32) in -2..2, and their classes, of the "train" or the "test" part."""
    from PIL import Image

    with np.load(DATA / "cifar10" / f"{part}.npz") as file:
        data, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(data[start:stop].tobytes()))) for start, stop in pairwise(offsets)]
    )
    x = (pixels.astype(np.float32) / 255 - 0.5) * 4
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def changed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to 4 pixels, mirrors half of them, and blanks a square of 8 (DeVries 2017)."""
    n, _, height, width = x.shape

    def drawn(most: int) -> Tensor:
        return torch.randint(0, most, (n,), generator=generator).to(x.device)

    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    down, right = drawn(9)[:, None] + rows, drawn(9)[:, None] + columns
    right = torch.where(drawn(2)[:, None] == 1, right.flip(1), right)
    x = padded.gather(2, down[:, None, :, None].expand(-1, 3, -1, padded.shape[3]))
    x = x.gather(3, right[:, None, None, :].expand(-1, 3, height, -1))
    near_row, near_column = (
        (places[None] - drawn(len(places))[:, None]).abs() < 4 for places in (rows, columns)
    )
    return x.masked_fill((near_row[:, :, None] & near_column[:, None, :])[:, None], 0)


def learning_data(seed: int = 0) -> ew.Data:
    """The train part: nine tenths to train on, one to validate on; on the accelerator, if there is one."""
    x, y = images("train")
    data = ew.Data.from_arrays(x, y, batch_size=BATCH, validation_part=0.1, seed=seed, augment=changed)
    return ew.Data(train=_placed(data.train), validation=_placed(data.validation))


def _placed(batches: Any) -> Batches:
    assert isinstance(batches, Batches)
    assert isinstance(batches.inputs, Tensor)
    return replace(batches, inputs=batches.inputs.to(device()), labels=batches.labels.to(device()))


def device() -> torch.device:
    """Where to train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trained(data: ew.Data, epochs: int, seed: int = 0, progress: ew.OnProgress | None = None) -> nn.Module:
    """A whole network, trained from scratch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier().to(device())
    assert isinstance(data.train, Batches)
    data = replace(data, train=replace(data.train, size=2 * BATCH))
    how = ew.Training(epochs=epochs, learning_rate=4e-3, weight_decay=0.1)
    return ew.train(model, data, how, seed=seed, progress=progress)


def recipe(epochs: int, seed: int = 0, measurements: Path | str = "") -> ew.Recipe:
    """Pruned to be so much faster in INT8 here, then taught by the whole network."""
    return ew.Recipe(
        name="image-classifier",
        seed=seed,
        prune=ew.Prune(speedup=SPEEDUP, round_to=16, samples=16, batches=16, measurements=str(measurements)),
        finetune=ew.Finetune(epochs=epochs, learning_rate=2e-3, weight_decay=0.05),
    )


def kept(artifact: ew.Artifact, reference: nn.Module, x: Images, labels: Labels) -> Fidelity:
    """What the native engine's INT8 kept of a float model, on images that nothing has learned from."""
    logits, _ = outputs_of(reference, [(x[i : i + 250], labels[i : i + 250]) for i in range(0, len(x), 250)])
    found = ew.Runner(artifact).run({artifact.inputs[0].name: x})
    return fidelity(logits, found[artifact.outputs[0].name], labels)


def main() -> None:
    """Takes the whole trip, and says what was kept."""
    from edgewright.console import console_for, progress_bar

    parser = argparse.ArgumentParser(description="an image classifier, from training to a verified artifact")
    parser.add_argument("--out", type=Path, default=Path("out/image_classifier"))
    parser.add_argument("--epochs", type=int, default=FLOAT_EPOCHS, help="to train the whole network for")
    parser.add_argument("--finetune-epochs", type=int, default=FINETUNE_EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    console = console_for(None)
    data = learning_data(options.seed)
    with progress_bar(console) as progress:
        if (out / "float.safetensors").exists():
            whole: nn.Module = load(out / "float.safetensors").to(device())
            console.print(
                f"the whole network comes from {out / 'float.safetensors'}; remove it to train anew"
            )
        else:
            whole = trained(data, options.epochs, options.seed, progress)
            save(whole, out / "float.safetensors")
        steps = recipe(options.finetune_epochs, options.seed, out / "latency.json")
        small = ew.compress(whole, steps, data=data, teacher=whole, progress=progress)
        save(small, out / "pruned.safetensors")
        calibration = np.ascontiguousarray(images("train")[0][:256])
        x, labels = images("test")
        for name, model in {"whole": whole.cpu(), "pruned": small.cpu()}.items():
            artifact = ew.export(
                model, target=ew.detect(), calibration=calibration, out=out / f"{name}.ew", progress=progress
            )
            console.print(
                f"{name:7} INT8 against its float model: {described(kept(artifact, model, x, labels))}"
            )
        console.print(
            f"pruned  INT8 against the whole float:   {described(kept(artifact, whole, x, labels))}"
        )
        report = ew.verify(artifact, reference=small, data=x[:500], progress=progress)
    calls = {name: call(out / f"{name}.ew", x[:1]) for name in ("whole", "pruned")}
    times = ew.measure(calls, rounds=2000)
    console.print(
        f"{times['whole'].min_ms:.4f} ms whole, {times['pruned'].min_ms:.4f} ms pruned: "
        f"{times['whole'].min_ms / times['pruned'].min_ms:.2f}x as fast, one image on one thread"
    )
    console.print(
        f"verified: {'passed' if report.passed else 'FAILED'}; {out / 'pruned.ew'} is ready to publish"
    )
    raise SystemExit(0 if report.passed else 1)


def call(artifact: Path, x: Images) -> Callable[[], object]:
    """One run of an artifact on the native engine, one thread."""
    runner = ew.Runner(ew.Artifact.open(artifact))
    inputs = {runner.artifact.inputs[0].name: x}
    return lambda: runner.run(inputs)


if __name__ == "__main__":
    main()
