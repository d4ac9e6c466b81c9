"""Losses between layers, against their definitions written out in numpy."""

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright import digits
from edgewright.data import Data
from edgewright.distillation import distill
from edgewright.errors import CompressError
from edgewright.layer_losses import (
    Compared,
    attention_loss,
    hint_loss,
    relation_loss,
    self_attention_loss,
    similarity_loss,
)
from edgewright.recipe import Distill, LayerLoss

Loss = Literal["hint", "attention", "self_attention", "relation", "similarity"]
LOSSES: tuple[Loss, ...] = ("hint", "attention", "self_attention", "relation", "similarity")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _layers(loss: Loss, student: Tensor, teacher: Tensor, heads: int = 8) -> Compared:
    return Compared(LayerLoss(student="s", teacher="t", loss=loss, heads=heads), student, teacher)


def test_hint_is_the_error_over_the_teachers_power() -> None:
    s, t = _random(4, 6), _random(4, 6, seed=1)
    expected = ((s - t) ** 2).numpy().mean() / (t**2).numpy().mean()
    assert float(hint_loss(s, t)) == pytest.approx(expected)
    assert float(hint_loss(100 * s, 100 * t)) == pytest.approx(expected)


def test_attention_compares_where_and_not_which_channel_or_how_much() -> None:
    s, t = _random(3, 4, 5, 5), _random(3, 9, 5, 5, seed=1)

    def attended(maps: np.ndarray) -> np.ndarray:
        flat = (maps**2).mean(1).reshape(len(maps), -1)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))

    expected = ((attended(s.numpy()) - attended(t.numpy())) ** 2).sum(1).mean()
    assert float(attention_loss(s, t)) == pytest.approx(expected)
    assert float(attention_loss(s, 3 * s.flip(1))) == pytest.approx(0, abs=1e-12)
    assert float(attention_loss(s, s.repeat_interleave(2, 2).repeat_interleave(2, 3))) < 1e-12


def test_self_attention_is_the_divergence_of_the_relations_of_tokens() -> None:
    s, t = _random(2, 5, 8), _random(2, 5, 12, seed=1)

    def relations(tokens: np.ndarray, head: int) -> np.ndarray:
        width = tokens.shape[2] // 4
        a = tokens[:, :, head * width : (head + 1) * width]
        e = np.exp(a @ a.transpose(0, 2, 1) / np.sqrt(width))
        return np.asarray(e / e.sum(axis=2, keepdims=True))

    expected = 0.0
    for head in range(4):
        p, q = relations(t.numpy(), head), relations(s.numpy(), head)
        expected += (p * np.log(p / q)).sum(axis=2).mean() / 4
    assert float(self_attention_loss(s, t, 4)) == pytest.approx(expected)


def test_relation_sees_distances_and_angles_and_not_widths_scale_or_place() -> None:
    s = _random(6, 3)
    assert float(relation_loss(s, 5 * torch.cat([s, s], dim=1) + 2)) == pytest.approx(0, abs=1e-12)
    assert float(relation_loss(s, s.flip(0))) > 1e-2
    # A right-angled triangle with sides 3, 4, 5 against an equilateral one, worked out by hand.
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    apart = sum(2 * 0.5 * (side / 4 - 1) ** 2 for side in (3, 4, 5)) / 9
    angles = sum(2 * 0.5 * (cosine - 0.5) ** 2 for cosine in (0.0, 0.6, 0.8)) / 27
    assert float(relation_loss(right, even)) == pytest.approx(apart + 2 * angles)


def test_similarity_loss_sees_relations_and_not_widths_or_scale() -> None:
    features = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    wider = torch.cat([features, features], dim=1) * 5
    assert float(similarity_loss(features, wider)) == pytest.approx(0, abs=1e-10)
    assert float(similarity_loss(features, features.flip(0))) > 1e-3


@pytest.mark.parametrize("loss", [x for x in LOSSES if x != "attention"])
def test_padding_counts_for_nothing(loss: Loss) -> None:
    s, t = _random(4, 6, 16), _random(4, 6, 16, seed=1)
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[:, 4:] = 0
    compared = _layers(loss, s, t)
    cut, padded = (compared(s[:, :n], t[:, :n], mask[:, :n]) for n in (4, 6))
    assert float(padded) == pytest.approx(float(cut))
    assert float(padded) != pytest.approx(float(compared(s, t, None)))


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_layers_have_no_loss_and_finite_gradients(loss: Loss) -> None:
    shape = (4, 6, 16) if loss == "self_attention" else (4, 16, 3, 3)
    s = torch.cat([_random(*shape), _random(*shape)])  # every sample twice
    t, s = s.clone(), s.requires_grad_()
    found = _layers(loss, s, t)(s, t, None)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-9)
    assert s.grad is not None
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "message"),
    [
        ("hint", (2, 8, 4, 4), (2, 8), r"it takes two layers that give maps .* or tokens .* or vectors"),
        ("attention", (2, 8), (2, 8), r"it takes two layers that give maps \(N, C, H, W\)"),
        ("self_attention", (2, 8, 4, 4), (2, 8, 4, 4), r"it takes two layers that give tokens \(N, L, C\)"),
        ("self_attention", (2, 5, 8), (2, 6, 8), r"both must have the same tokens"),
        ("self_attention", (2, 5, 8), (2, 5, 12), r"both widths must be multiples of heads, which is 8"),
    ],
)
def test_layers_of_another_form_are_refused(
    loss: Loss, student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CompressError, match=rf"layers 's' and 't', of shapes .*by '{loss}': {message}"):
        _layers(loss, torch.zeros(student), torch.zeros(teacher))


class _Tagger(nn.Module):
    """Embeds tokens, mixes them, and takes the mean of those that are no padding."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words = nn.Embedding(12, width)
            self.value = nn.Linear(width, width)
            self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.value(self.words(ids)).tanh()
        weight = mask[:, :, None].float()
        out: Tensor = self.head((x * weight).sum(1) / weight.sum(1))
        return out


def _sentences() -> Data:
    random = np.random.default_rng(0)
    ids = random.integers(0, 12, (96, 7))
    mask = (np.arange(7) < random.integers(2, 8, 96)[:, None]).astype(np.int64)
    return Data.from_arrays({"ids": ids, "mask": mask}, (ids[:, 0] % 3).astype(np.int64), batch_size=16)


def test_a_projection_learns_with_the_student_and_is_thrown_away(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    """All of the student below its head is fixed here, so only the projection can bring the loss down."""
    fixed = copy.deepcopy(untrained_student).requires_grad_(False)
    fixed.get_submodule("head").requires_grad_(True)
    losses: list[float] = []
    how = Distill(
        epochs=3, learning_rate=4e-3, layers=(LayerLoss(student="residual", teacher="residual2", weight=1e3),)
    )
    student = distill(fixed, teacher, scans.data, how, progress=lambda r: losses.append(r.metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert student.state_dict().keys() == fixed.state_dict().keys()


def test_a_mask_is_found_by_its_name() -> None:
    student, teacher, data = _Tagger(8, 0), _Tagger(16, 1), _sentences()
    layers = (LayerLoss(student="value", teacher="value", loss="self_attention"),)
    masked = distill(student, teacher, data, Distill(epochs=1, layers=layers, mask="mask"))
    blind = distill(student, teacher, data, Distill(epochs=1, layers=layers))
    assert not torch.equal(masked.get_parameter("value.weight"), blind.get_parameter("value.weight"))
    with pytest.raises(CompressError, match=r"no input 'maks', which `mask` names; known: ids, mask"):
        distill(student, teacher, data, Distill(epochs=1, layers=layers, mask="maks"))
