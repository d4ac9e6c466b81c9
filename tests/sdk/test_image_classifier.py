"""The example of an image classifier, apart from its training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_classifier import DATA, Classifier, changed, images, load, recipe, save

from edgewright.pruning import prune
from edgewright.recipe import Prune


def test_a_network_of_any_widths_comes_back_from_its_file(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    small = prune(Classifier(), Prune(ratio=0.4, importance="magnitude"), x)
    save(small, tmp_path / "small.safetensors")
    assert torch.equal(load(tmp_path / "small.safetensors")(x), small(x))


def test_changes_are_drawn_from_the_generator_alone() -> None:
    x = torch.rand(16, 3, 32, 32) + 1
    one, two = (changed(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert not torch.equal(one, changed(x, torch.Generator().manual_seed(1)))


def test_changed_images_are_shifted_mirrored_and_blanked() -> None:
    columns = torch.arange(1.0, 33.0).expand(200, 3, 32, 32).contiguous()
    out = changed(columns, torch.Generator().manual_seed(0))
    steps = out[:, 0, 16, 12:20].diff(dim=1)
    mirrored = (steps == -1).any(dim=1)
    assert 60 < int(mirrored.sum()) < 140
    blank = (out == 0).all(dim=1).sum(dim=(1, 2))
    assert int(blank.min()) >= 16  # a corner of the square at least
    assert int(blank.max()) < 400


def test_the_recipe_reads_back() -> None:
    how = recipe(3, 1, "m.json")
    assert type(how).from_toml(how.to_toml()) == how


@pytest.mark.skipif(not (DATA / "cifar10").exists(), reason=f"no images at {DATA / 'cifar10'}")
def test_images_are_read_as_they_are_described() -> None:
    x, labels = images("test")
    assert (x.shape, labels.shape) == ((2000, 3, 32, 32), (2000,))
    assert x.dtype == np.float32
    assert -2 <= x.min() < -1.9 < 1.9 < x.max() <= 2
    assert set(labels) == set(range(10))
