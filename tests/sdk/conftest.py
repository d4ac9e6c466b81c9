"""Trained once in a run, for all tests of the SDK. The models are shared: a test must not change them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewright import digits
from edgewright.compression import compress
from edgewright.recipe import Distill, Finetune, Prune, Recipe, Training
from edgewright.training import train
from sdk import foreign


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are no faster on two threads, and wait long for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cnn_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network as float ONNX."""
    return foreign.float_file("cnn", tmp_path_factory.mktemp("cnn") / "cnn.onnx")


@pytest.fixture(scope="session")
def scans() -> digits.Digits:
    """The digits, in the split of seed 0."""
    return digits.load(0)


@pytest.fixture(scope="session")
def shifted_scans() -> digits.Digits:
    """The same split, as another scanner sees it."""
    return digits.shifted(0)


@pytest.fixture(scope="session")
def teacher(scans: digits.Digits) -> nn.Module:
    """A quickly trained digits teacher, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = digits.Teacher()
    return train(untrained, scans.data, Training(epochs=4, learning_rate=3e-3))


@pytest.fixture(scope="session")
def untrained_student() -> nn.Module:
    """A digits student that has learned nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digits.Student()


@pytest.fixture(scope="session")
def quick_recipe() -> Recipe:
    """Every step of compression, briefly."""
    return Recipe(
        name="quick",
        distill=Distill(epochs=4, learning_rate=4e-3),
        prune=Prune(ratio=0.3, round_to=4),
        finetune=Finetune(epochs=2),
    )


@pytest.fixture(scope="session")
def compressed(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module, quick_recipe: Recipe
) -> nn.Module:
    """The student, distilled, pruned and fine-tuned, in eval mode."""
    return compress(untrained_student, quick_recipe, data=scans.data, teacher=teacher)
