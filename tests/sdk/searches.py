"""A search that is small enough for tests; `python -m sdk.searches FOLDER` runs it, and says what it does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgewright import digits
from edgewright.data import Data
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Recipe, Training
from edgewright.search_pareto import SearchReport
from edgewright.searching import search
from edgewright.training import train

TRIALS = 7
RECIPE = """
name = "scans"

[search.prune]
ratio = { low = 0.25, high = 0.75, step = 0.25 }
importance = ["magnitude"]

[search.finetune]
epochs = [3]
learning_rate = [3e-3]

[search.quantize]
calibration = ["minmax", "mse"]
"""


def network() -> nn.Module:
    """Takes float32 (N, 1, 8, 8), gives logits (N, 10); untrained, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def samples() -> Data:
    """The digits' scans: 600 to train on, 660 to validate on."""
    scans = digits.load(0)
    inputs = [x for x, _ in scans.data.validation] + [torch.from_numpy(scans.x_test)]
    labels = [y for _, y in scans.data.validation] + [torch.from_numpy(scans.y_test)]
    train_x = np.concatenate([x.numpy() for x, _ in scans.data.train])[:600]
    train_y = np.concatenate([y.numpy() for _, y in scans.data.train])[:600]
    return Data.from_arrays(train_x, train_y, torch.cat(inputs).numpy(), torch.cat(labels).numpy())


def trained(data: Data) -> nn.Module:
    """The network, as good as it gets in a second."""
    return train(network(), data, Training(epochs=6, learning_rate=5e-3))


def run(
    model: nn.Module, data: Data, folder: Path, *, trials: int = TRIALS, progress: OnProgress | None = None
) -> SearchReport:
    """Searches for about half the size, at most 8 points lost."""
    return search(
        model,
        Recipe.from_toml(RECIPE),
        data=data,
        budgets=["size=55%"],
        min_accuracy=-8,
        out=folder,
        trials=trials,
        progress=progress,
    )


def _say(report: Progress) -> None:
    sys.stdout.write(f"{report.step} {report.metrics.get('epoch', 0):g}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = samples()
    run(trained(given), given, Path(sys.argv[1]), progress=_say)
