"""The latency model, on times that a formula gives; and what is chosen by it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.errors import CompressError
from edgewright.latency_budget import choose
from edgewright.latency_model import LatencyModel, Measured, Operator, load_measured, save_measured


def _measured(a: int, b: int, noise: float = 0.0) -> Measured:
    """Three convolutions of 64 pixels, 3 to a to b to a channels, and a sum of both a's."""
    ops = []
    for name, read, written in (("one", 3, a), ("two", a, b), ("three", b, a)):
        macs = 64 * 9 * read * written
        us = 0.3 + macs / 2e5 + 64 * written / 4e4
        ops.append(Operator(name=name, macs=macs, read=64 * read, written=64 * written, microseconds=us))
    ops.append(Operator(name="sum", macs=0, read=128 * a, written=64 * a, microseconds=64 * a / 4e3))
    total = sum(op.microseconds for op in ops) * 1.05
    return Measured(widths=(a, b), milliseconds=total * (1 + noise) / 1e3, operators=tuple(ops))


DESIGNS = [(64, 64), (16, 16), (16, 48), (48, 16), (32, 64), (64, 32)]


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return LatencyModel([_measured(*d) for d in DESIGNS])


def test_predictions_follow_the_formula_between_what_was_measured(model: LatencyModel) -> None:
    for widths in ((48, 48), (40, 24), (56, 16)):
        assert model.milliseconds(widths) == pytest.approx(_measured(*widths).milliseconds, rel=0.01)


def test_cross_validation_sees_what_the_lines_do_not_explain(model: LatencyModel) -> None:
    assert model.cross_validation().worst < 0.02
    random = np.random.default_rng(0)
    noisy = LatencyModel([_measured(*d, noise=random.normal(0, 0.1)) for d in DESIGNS])
    found = noisy.cross_validation()
    assert found.count == 6
    assert 0.02 < found.mean < found.worst < 0.4


def test_more_never_takes_less_time(model: LatencyModel) -> None:
    times = [model.milliseconds((width, 32)) for width in range(1, 65)]
    assert times == sorted(times)
    assert times[0] > 0


def test_an_operator_that_not_all_have_counts_as_one_of_the_others() -> None:
    measured = [_measured(*d) for d in DESIGNS]
    measured[1] = replace(measured[1], operators=measured[1].operators[:-1])
    found = LatencyModel(measured)
    for each in (measured[0], *measured[2:]):
        assert found.milliseconds(each.widths) == pytest.approx(each.milliseconds, rel=0.2)


def test_one_width_or_other_operators_are_refused() -> None:
    one = _measured(16, 16)
    with pytest.raises(CompressError, match="two widths at least"):
        LatencyModel([one, one])
    other = replace(one, widths=(1, 2), operators=one.operators[-1:])
    with pytest.raises(CompressError, match=r"do not run the same operators \(one, .*give `ratio`"):
        LatencyModel([one, other])


def test_measurements_come_back_for_what_they_hold_for_alone(tmp_path: Path) -> None:
    path, measured = tmp_path / "m.json", [_measured(*d) for d in DESIGNS]
    assert load_measured(path, {"cpu": "avx2"}) == ()
    save_measured(path, {"cpu": "avx2"}, measured)
    assert load_measured(path, {"cpu": "avx2"}) == tuple(measured)
    assert load_measured(path, {"cpu": "neon"}) == ()
    table = json.loads(path.read_text("utf-8"))
    del table["measured"][0]["widths"]
    path.write_text(json.dumps(table), "utf-8")
    with pytest.raises(CompressError, match="damaged latency measurements: 'widths'; delete the file"):
        load_measured(path, {"cpu": "avx2"})


CHOICES = (tuple(range(16, 65, 16)), tuple(range(16, 65, 16)))


def test_what_matters_least_for_its_time_goes_and_the_budget_is_kept(model: LatencyModel) -> None:
    equal = torch.ones(64)
    for budget in (0.6, 0.4, 0.3):
        most = model.milliseconds((64, 64))
        for scores in ([equal * 100, equal], [equal, equal * 100]):
            widths = choose(model, CHOICES, scores, budget * most)
            assert widths is not None
            assert model.milliseconds(widths) <= budget * most
            dear, cheap = (0, 1) if scores[0][0] > 1 else (1, 0)
            assert widths[dear] >= widths[cheap]


def test_the_best_choice_of_all_is_not_far(model: LatencyModel) -> None:
    scores = [torch.linspace(0, 1, 64) ** 2, torch.linspace(0, 2, 64)]

    def lost(widths: tuple[int, ...]) -> float:
        return sum(float(s.sort().values[: 64 - w].sum()) for s, w in zip(scores, widths, strict=True))

    budget = 0.5 * model.milliseconds((64, 64))
    fitting = [(a, b) for a in CHOICES[0] for b in CHOICES[1] if model.milliseconds((a, b)) <= budget]
    chosen = choose(model, CHOICES, scores, budget)
    assert chosen in fitting
    assert lost(chosen) <= 1.3 * min(map(lost, fitting))


def test_nothing_goes_within_a_budget_that_is_kept_already(model: LatencyModel) -> None:
    assert choose(model, CHOICES, [torch.ones(64)] * 2, 1.0) == (64, 64)


def test_no_choice_where_the_narrowest_is_too_slow(model: LatencyModel) -> None:
    assert choose(model, CHOICES, [torch.ones(64)] * 2, 0.5 * model.milliseconds((16, 16))) is None
