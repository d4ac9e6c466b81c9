"""Models of several inputs, and of tokens: through data, training, distillation and pruning."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright.compression import compress
from edgewright.data import Data, call
from edgewright.errors import DataError
from edgewright.recipe import Distill, Finetune, Prune, Recipe
from edgewright.training import evaluate


class Pooled(nn.Module):
    """Takes ids and mask, int64 (N, length); gives logits (N, 2)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.up, self.head = nn.Linear(8, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        kept = mask[..., None].float()
        pooled = (self.words(ids) * kept).sum(1) / kept.sum(1)
        out: Tensor = self.head(torch.relu(self.up(pooled)))
        return out


def _arrays() -> tuple[dict[str, Any], Any]:
    random = np.random.default_rng(0)
    ids = random.integers(1, 20, (200, 6))
    mask = (np.arange(6) < random.integers(2, 7, (200, 1))).astype(np.int64)
    return {"mask": mask, "ids": ids * mask}, ((ids < 10) * mask).sum(1) * 2 > mask.sum(1)


@pytest.fixture(scope="module")
def data() -> Data:
    x, y = _arrays()
    return Data.from_arrays(x, y.astype(np.int64), batch_size=20)


def test_whole_numbers_of_named_inputs_stay_whole(data: Data) -> None:
    inputs, _ = next(iter(data.train))
    assert {n: v.dtype for n, v in inputs.items()} == {"mask": torch.int64, "ids": torch.int64}


def test_a_model_of_several_inputs_is_distilled_pruned_and_tuned(data: Data) -> None:
    torch.manual_seed(0)
    recipe = Recipe(
        name="several",
        distill=Distill(epochs=8, learning_rate=3e-2),
        prune=Prune(ratio=0.5),
        finetune=Finetune(epochs=2),
    )
    small = compress(Pooled(), recipe, data=data, teacher=Pooled(64))
    assert small.get_submodule("up").weight.shape == (8, 8)
    assert evaluate(small, data.validation) > 0.4


def test_inputs_in_order_are_the_same_as_by_name(data: Data) -> None:
    inputs, labels = next(iter(data.validation))
    model = Pooled()
    assert torch.equal(call(model, inputs), call(model, (inputs["ids"], inputs["mask"])))
    ordered = [([inputs["ids"].numpy(), inputs["mask"].numpy()], labels.numpy())]
    assert evaluate(model, ordered) == evaluate(model, [(inputs, labels)])


def test_inputs_that_the_model_does_not_have_are_named(data: Data) -> None:
    inputs, labels = next(iter(data.validation))
    batch = [({"words": inputs["ids"], "mask": inputs["mask"]}, labels)]
    with pytest.raises(DataError, match="words"):
        compress(Pooled(), Recipe(name="r"), data=Data(train=batch, validation=batch))


def test_inputs_of_different_lengths_are_refused() -> None:
    x, y = _arrays()
    with pytest.raises(DataError, match=r"x_train\['mask'\] has 199 samples"):
        Data.from_arrays(x | {"mask": x["mask"][:-1]}, y.astype(np.int64))
