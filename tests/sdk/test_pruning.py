import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright import digits
from edgewright.errors import CompressError, DataError
from edgewright.progress import Progress
from edgewright.pruning import count_macs, kept_channels, prune
from edgewright.recipe import Prune

X = torch.zeros(2, 1, 8, 8)
MAGNITUDE = Prune(ratio=0.5, importance="magnitude")
BATCH_NORM = Prune(ratio=0.5, importance="batch_norm")


def _channels(model: nn.Module) -> dict[str, int]:
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    return {name: layer.weight.shape[0] for name, layer in layers.items()}


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_channels_go_from_every_layer_but_the_output(
    importance: str, scans: digits.Digits, untrained_student: nn.Module
) -> None:
    how = Prune(ratio=0.3, importance=importance)  # type: ignore[arg-type]
    pruned = prune(untrained_student, how, X, batches=scans.data.train)
    before, after = _channels(untrained_student), _channels(pruned)
    assert after["head"] == before["head"] == 10
    for name in before.keys() - {"head"}:
        assert after[name] == pytest.approx(0.7 * before[name], abs=0.5)
    assert pruned(X).shape == (2, 10)
    assert count_macs(pruned, X) < 0.55 * count_macs(untrained_student, X)
    assert not pruned.training


def test_depthwise_stays_depthwise(untrained_student: nn.Module) -> None:
    pruned = prune(untrained_student, MAGNITUDE, X)
    depthwise = pruned.get_submodule("depthwise.0")
    assert isinstance(depthwise, nn.Conv2d)
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == 24


def test_given_model_stays(untrained_student: nn.Module, scans: digits.Digits) -> None:
    model = copy.deepcopy(untrained_student)
    model.train()
    model.get_submodule("head").requires_grad_(False)
    pruned = prune(model, Prune(), X, batches=scans.data.train)
    pairs = zip(model.state_dict().values(), untrained_student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(each.grad is None for each in [*model.parameters(), *pruned.parameters()])
    assert model.training
    assert [name for name, each in pruned.named_parameters() if not each.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


class _Dead(nn.Module):
    """A network in which half of the inner channels do nothing: a residual sum, a depthwise, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 3)
        dead = [1, 2, 5, 7]
        with torch.no_grad():
            for layer in (self.stem, self.conv):
                layer.weight[dead] = 0
                assert layer.bias is not None
                layer.bias[dead] = 0
            self.depthwise.weight[dead] = 0
            self.conv.weight[:, dead] = 0
            self.head.weight.view(3, 8, 64)[:, dead] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.conv(self.depthwise(x)).relu()
        out: Tensor = self.head(x.flatten(1))
        return out


@pytest.mark.parametrize("importance", ["taylor", "hessian", "magnitude"])
def test_channels_that_do_nothing_go_first_and_the_output_stays(importance: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = _Dead(), torch.randn(5, 1, 8, 8)
    labels = np.array([0, 1, 2, 0, 1])
    how = Prune(ratio=0.5, importance=importance)  # type: ignore[arg-type]
    pruned = prune(model, how, x, batches=[(x, labels)])
    assert _channels(pruned) == {"stem": 4, "depthwise": 4, "conv": 4, "head": 3}
    torch.testing.assert_close(pruned(x), model(x))


def test_rounds_end_where_one_step_does(untrained_student: nn.Module, scans: digits.Digits) -> None:
    reports: list[Progress] = []
    how = Prune(ratio=0.5, steps=3)
    rounds = prune(untrained_student, how, X, batches=scans.data.train, progress=reports.append)
    assert _channels(rounds) == _channels(prune(untrained_student, MAGNITUDE, X))
    assert [(each.step, each.done, each.total) for each in reports] == [
        ("prune", done, 3) for done in (1, 2, 3)
    ]
    macs = [each.metrics["macs"] for each in reports]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] == count_macs(rounds, X)


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "kept"),
    [
        (64, 0.3, 1, 45),
        (64, 0.3, 8, 48),
        (24, 0.3, 8, 16),
        (8, 0.9, 8, 8),
        (6, 0.5, 8, 6),
        (2, 0.99, 1, 1),
        (20, 0.2, 8, 16),
    ],
)
def test_kept_channels(width: int, ratio: float, round_to: int, kept: int) -> None:
    assert kept_channels(width, ratio, round_to) == kept


def test_layers_that_sum_to_the_output_stay() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3)
            self.left = nn.Conv2d(8, 6, 1)
            self.right = nn.Conv2d(8, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            out: Tensor = (self.left(x) + self.right(x)).relu().mean((2, 3))
            return out

    assert _channels(prune(Sum(), MAGNITUDE, X)) == {"stem": 4, "left": 6, "right": 6}


def test_grouped_convolutions_stay_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 2)
    )
    assert list(_channels(prune(model, MAGNITUDE, X)).values()) == [8, 8, 4, 2]


def test_macs_are_counted_exactly() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    assert count_macs(model, X) == 64 * 4 * 9 + 16 * 4 * 9 + 640
    assert model.training


def test_taylor_without_batches_is_a_value_error(untrained_student: nn.Module) -> None:
    with pytest.raises(ValueError, match=r'"taylor" needs `batches`'):
        prune(untrained_student, Prune(), X)


def test_taylor_with_empty_batches_is_a_data_error(untrained_student: nn.Module) -> None:
    with pytest.raises(DataError, match="no batches to weigh channels by"):
        prune(untrained_student, Prune(), X, batches=[])


class _Fixed(nn.Module):
    """Reshapes by numbers that hold for its first width only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).reshape(-1, 8, 64).mean(2))
        return out


def test_models_that_cannot_be_pruned_say_why() -> None:
    with pytest.raises(CompressError, match="nothing to prune"):
        prune(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), MAGNITUDE, X)
    with pytest.raises(
        CompressError, match=r"does not run once channels are gone|changed the output's shape"
    ):
        prune(_Fixed(), MAGNITUDE, X)
    with pytest.raises(CompressError, match=r"'0' has no batch normalisation, by whose scale"):
        prune(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3)), BATCH_NORM, torch.zeros(1, 64))


def test_a_dead_layer_is_named(untrained_student: nn.Module, scans: digits.Digits) -> None:
    model = copy.deepcopy(untrained_student)
    with torch.no_grad():
        for each in model.get_submodule("stem").parameters():
            each.zero_()
    for importance in ("taylor", "hessian"):
        how = Prune(importance=importance)
        with pytest.raises(
            CompressError, match=r"'[a-z0-9.]+' is dead: no channel of it changes the outputs"
        ):
            prune(model, how, X, batches=scans.data.train)


def test_damaged_gradients_are_named(untrained_student: nn.Module, scans: digits.Digits) -> None:
    inputs, labels = next(iter(scans.data.train))
    with pytest.raises(CompressError, match=r"cannot weigh the channels of '[a-z.]+': NaN or infinity"):
        prune(untrained_student, Prune(), X, batches=[(inputs * torch.nan, labels)])


def test_batch_norm_keeps_the_channels_with_the_largest_scale(untrained_student: nn.Module) -> None:
    model = copy.deepcopy(untrained_student)
    norm = model.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(len(norm.weight)) % 7)
    wanted = norm.weight.sort().values[-(len(norm.weight) // 2) :]
    kept = prune(model, BATCH_NORM, X).get_submodule("stem.1").weight
    assert isinstance(kept, Tensor)
    assert torch.equal(kept.sort().values, wanted)


def test_global_ranking_takes_from_where_it_matters_least(scans: digits.Digits) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)),
        )
    with torch.no_grad():
        for each in model.get_submodule("4").parameters():
            each[2:] = 0
    how = Prune(ratio=0.5, ranking="global", max_ratio=0.75, round_to=4)
    kept = _channels(prune(model, how, X, batches=scans.data.train))
    assert kept["4"] == 4
    assert kept["0"] + kept["2"] + kept["4"] == 24
