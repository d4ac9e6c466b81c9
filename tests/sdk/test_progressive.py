"""Help that is strong at first and ends before the training does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewright import digits
from edgewright.compression import compress
from edgewright.distillation import distill
from edgewright.errors import CompressError
from edgewright.progress import Progress
from edgewright.progressive import Help, inherit
from edgewright.recipe import Distill, Finetune, LayerLoss, Progressive, Recipe, Training
from edgewright.training import evaluate, train


class Family(nn.Module):
    """Networks that differ in width alone. Takes float32 (N, 1, 8, 8), gives logits (N, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, 2 * width, 3, stride=2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.depthwise(self.norm(self.conv(x_NCHW)).relu()).relu()
        out: Tensor = self.head(self.mix(x_NCHW).relu().mean((2, 3)))
        return out


def _made(width: int, seed: int = 0) -> Family:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Family(width).eval()


@pytest.fixture(scope="module")
def large(scans: digits.Digits) -> nn.Module:
    return train(_made(24), scans.data, Training(epochs=5, learning_rate=1e-2))


def test_a_student_of_the_same_size_inherits_everything(large: nn.Module, scans: digits.Digits) -> None:
    student = _made(24, seed=1)
    assert set(inherit(student, large)) == set(student.state_dict())
    x = torch.from_numpy(scans.x_test[:8])
    with torch.no_grad():
        assert torch.equal(student.eval()(x), large(x))


def test_a_narrower_student_is_a_subnetwork_of_its_teacher() -> None:
    """Where each unit of the teacher stands twice, half of them give what all did."""
    student, teacher, expected = _made(4, seed=1), _made(8), _made(4)
    doubled = dict(teacher.state_dict())
    for name, value in expected.state_dict().items():
        grown = value
        for axis, length in enumerate(doubled[name].shape):
            grown = grown.repeat_interleave(length // grown.shape[axis], axis)
        inputs = grown.shape[1] / value.shape[1] if value.ndim > 1 else 1
        doubled[name] = grown / inputs
    teacher.load_state_dict(doubled)
    inherit(student, teacher)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), expected(x))
        torch.testing.assert_close(student(x), expected(x))


def test_what_the_teacher_lacks_stays_as_it_was() -> None:
    student = nn.ModuleDict(
        {
            "words": nn.Embedding(9, 4),
            "wide": nn.Linear(8, 4),
            "own": nn.Linear(2, 2),
            "both": nn.Linear(4, 2),
        }
    )
    teacher = nn.ModuleDict({"words": nn.Embedding(12, 8), "wide": nn.Linear(4, 4), "both": nn.Linear(8, 2)})
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert inherit(student, teacher) == ["wide.bias", "both.weight", "both.bias"]
    for name in ("words.weight", "wide.weight", "own.weight"):
        assert torch.equal(student.state_dict()[name], before[name])


def test_a_student_that_cannot_inherit_is_told_so(large: nn.Module, scans: digits.Digits) -> None:
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(CompressError, match=r"cannot inherit: .* set inherit = false"):
        distill(stranger, large, scans.data, Distill(epochs=1, progressive=Progressive()))


def test_help_falls_to_none_and_goes_on_where_it_was() -> None:
    help_share = Help(Progressive(until=0.5), 8)
    assert [help_share() for _ in range(3)] == [1.0, 0.75, 0.5]
    later = Help(Progressive(until=0.5), 8)
    later.load_state_dict(help_share.state_dict())
    assert [later() for _ in range(4)] == [0.25, 0.0, 0.0, 0.0]


def test_the_teacher_is_not_run_once_its_help_has_ended(scans: digits.Digits) -> None:
    teacher, student, calls = _made(8), _made(4), list[int]()
    teacher.register_forward_hook(lambda _model, _inputs, out: calls.append(len(out)))
    distill(student, teacher, scans.data, Distill(epochs=2, progressive=Progressive(until=0.25)))
    batches = len(list(scans.data.train))
    assert len(calls) == round(2 * batches * 0.25)


def test_a_student_starts_ahead_of_plain_distillation(large: nn.Module, scans: digits.Digits) -> None:
    student, data = _made(12, seed=1), scans.data
    how = Distill(epochs=1, learning_rate=1e-2)
    plain = distill(student, large, data, how)
    ahead = distill(student, large, data, Distill(epochs=1, learning_rate=1e-2, progressive=Progressive()))
    assert evaluate(ahead, data.validation) > evaluate(plain, data.validation) + 0.1


class _CutOffError(Exception):
    pass


def test_work_that_is_cut_off_goes_on_to_the_same_bits(
    tmp_path: Path, large: nn.Module, scans: digits.Digits
) -> None:
    layers = (
        LayerLoss(student="mix", teacher="mix"),
        LayerLoss(student="conv", teacher="conv", loss="attention"),
    )
    how = Distill(epochs=2, learning_rate=1e-2, layers=layers, progressive=Progressive(until=0.7))
    student = _made(12, seed=1)
    whole = distill(student, large, scans.data, how)

    def cut(report: Progress) -> None:
        if report.done >= report.total // 2:
            raise _CutOffError

    with pytest.raises(_CutOffError):
        distill(student, large, scans.data, how, progress=cut, checkpoint=tmp_path)
    again = distill(student, large, scans.data, how, checkpoint=tmp_path)
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_fine_tuning_does_not_start_anew(large: nn.Module, scans: digits.Digits) -> None:
    """It would throw away what distillation made: one epoch at a tiny rate must leave the student as good."""
    recipe = Recipe(
        name="x",
        distill=Distill(epochs=3, learning_rate=1e-2, progressive=Progressive()),
        finetune=Finetune(epochs=1, learning_rate=1e-9),
    )
    student = compress(_made(12, seed=1), recipe, data=scans.data, teacher=large)
    first = distill(_made(12, seed=1), large, scans.data, recipe.distill or Distill())
    assert torch.allclose(student.get_parameter("head.weight"), first.get_parameter("head.weight"), atol=1e-5)
