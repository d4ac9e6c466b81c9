"""Handwritten digits: real scans, two small networks, and a shift to adapt to.

The scans are scikit-learn's copy of a UCI test set (Alpaydin & Kaynak 1998): 1,797 digits of 8 x 8 pixels.
The networks keep to layers that every target runs as integers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgewright.data import Augment, Data
from edgewright.recipe import Distill, Finetune, Prune, Recipe, Training

TEST_COUNT = 360
VALIDATION_COUNT = 300
PAPER = 0.2
"""The value of blank paper in `shifted` scans; in `load` it is 0."""

TEACHING = Training(epochs=10, learning_rate=3e-3)
"""How to train `Teacher`."""
ADAPTING = Finetune(epochs=3, learning_rate=1e-3)
"""How to bring a trained network to `shifted` scans."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Digits:
    """The scans, split so that each class keeps its share.

    Attributes:
        data: 1,137 scans to train on, moved about a little in each epoch, and 300 to validate on.
        x_test: float32 (360, 1, 8, 8) in 0..1, seen by no training.
        y_test: int64 (360,) in 0..9.
    """

    data: Data
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def load(seed: int = 0) -> Digits:
    """Loads the scans from scikit-learn's installation (no network), scaled to 0..1.

    Args:
        seed: Fixes the split.
    """
    x, y = _scans()
    return _cut(x, y, seed, augment=jitter(0.08, 0.5))


def shifted(seed: int = 0) -> Digits:
    """Loads the same scans, in the same split, as another scanner would see them.

    It sees fainter ink on greyer paper, slanted, with some noise: the change is the same for all scans, but
    for the noise and a small placement error.

    Args:
        seed: Fixes the split, the noise and the placement.
    """
    x, y = _scans()
    generator = torch.Generator().manual_seed(seed)
    scans = torch.from_numpy(x)
    moved = _moved(scans, generator, angle=0.1, shift=0.4, slant=0.2, turn=0.1)
    noise = 0.03 * torch.randn(moved.shape, generator=generator)
    grey = (0.7 * moved + PAPER + noise).clamp(0, 1)
    return _cut(grey.numpy(), y, seed, augment=jitter(0.08, 0.5, fill=PAPER))


def recipe(seed: int = 0) -> Recipe:
    """Returns how to compress `Student`, taught by a trained `Teacher`."""
    return Recipe(
        name="digits",
        seed=seed,
        distill=Distill(epochs=12, learning_rate=4e-3),
        prune=Prune(ratio=0.3, round_to=4),
        finetune=Finetune(epochs=8, learning_rate=1e-3),
    )


def jitter(angle: float, shift: float, fill: float = 0.0) -> Augment:
    """Returns a change that turns and moves each image a little.

    Args:
        angle: Greatest turn, in radians.
        shift: Greatest move along each axis, in pixels.
        fill: The paper's value, which comes in from the sides.
    """

    def change(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        return _moved(x_NCHW - fill, generator, angle=angle, shift=shift) + fill

    return change


class Teacher(nn.Module):
    """A larger network: 279,000 parameters. Takes float32 (N, 1, 8, 8), gives logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 32)
        self.widen = _conv(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.residual1 = _Residual(64)
        self.widen2 = _conv(64, 128)
        self.pool2 = nn.AvgPool2d(2)
        self.residual2 = _Residual(128)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns logits (N, 10)."""
        x_NCHW = self.residual1(self.pool(self.widen(self.stem(x_NCHW))))
        x_NCHW = self.residual2(self.pool2(self.widen2(x_NCHW)))
        logits: Tensor = self.head(torch.flatten(self.average(x_NCHW), 1))
        return logits


class Student(nn.Module):
    """A small network: 52,000 parameters. Takes float32 (N, 1, 8, 8), gives logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 24)
        self.widen = _conv(24, 48)
        self.pool = nn.MaxPool2d(2)
        self.depthwise = _conv(48, 48, groups=48)
        self.pointwise = _conv(48, 64, kernel=1)
        self.residual = _Residual(64)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns logits (N, 10)."""
        x_NCHW = self.pool(self.widen(self.stem(x_NCHW)))
        x_NCHW = self.residual(self.pointwise(self.depthwise(x_NCHW)))
        logits: Tensor = self.head(torch.flatten(self.average(x_NCHW), 1))
        return logits


class _Residual(nn.Module):
    """Adds what one convolution makes of its input to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.act(x_NCHW + self.norm(self.conv(x_NCHW)))
        return out


def _conv(inputs: int, outputs: int, *, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # slow to import, and only this needs it

    scans: Any = load_digits()
    x = (scans.images / 16.0).astype(np.float32)[:, np.newaxis]
    return x, scans.target.astype(np.int64)


def _cut(x: NDArray[np.float32], y: NDArray[np.int64], seed: int, *, augment: Augment) -> Digits:
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(y)), test_size=TEST_COUNT, stratify=y, random_state=seed)
    train, validation = train_test_split(
        rest, test_size=VALIDATION_COUNT, stratify=y[rest], random_state=seed
    )
    data = Data.from_arrays(x[train], y[train], x[validation], y[validation], batch_size=64, augment=augment)
    return Digits(data=data, x_test=x[test], y_test=y[test])


def _moved(
    x_NCHW: Tensor,
    generator: torch.Generator,
    *,
    angle: float,
    shift: float,
    slant: float = 0.0,
    turn: float = 0.0,
) -> Tensor:
    """Turns and moves each image at random, on top of one slant and turn for all; zeros come in."""
    count, _, height, width = x_NCHW.shape
    draw = 2 * torch.rand(count, 3, generator=generator) - 1
    angles = turn + angle * draw[:, 0]
    cos, sin = angles.cos(), angles.sin()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos, slant * cos - sin
    theta[:, 1, 0], theta[:, 1, 1] = sin, slant * sin + cos
    theta[:, 0, 2] = 2 * shift / width * draw[:, 1]
    theta[:, 1, 2] = 2 * shift / height * draw[:, 2]
    grid = functional.affine_grid(theta, list(x_NCHW.shape), align_corners=False)
    return functional.grid_sample(x_NCHW, grid, padding_mode="zeros", align_corners=False)
