"""Proposals: cheap ones first, none twice, better ones with time, and the same ones after a kill."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright.recipe import Prune, Recipe
from edgewright.search_proposals import (
    TRAINING_STEPS,
    Point,
    Tried,
    default_space,
    optional_steps,
    propose,
    recipe_at,
)

pytest.importorskip("optuna")
BASE = Recipe(name="base", seed=3)
SPACE = default_space(BASE)


def outcome(point: Point) -> Tried:
    """A smooth world: what is pruned costs less and loses more, and training wins most of that back."""
    ratio = float(point.get("prune.ratio", 0.0))
    lost = ratio**2 * (0.1 if point["finetune"] else 1.0) + 0.02 * (point["quantize.calibration"] == "mse")
    return Tried(
        point=point,
        values=(lost, 1 - ratio),
        violations={"accuracy": lost - 0.04, "latency": (1 - ratio) - 0.45},
    )


def played(trials: int, seed: int = 0) -> list[Tried]:
    tried: list[Tried] = []
    for number in range(trials):
        point = propose(SPACE, BASE, tried, number=number, seed=seed)
        assert point is not None
        tried.append(outcome(point))
    return tried


def test_the_first_trial_is_the_recipe_itself_and_training_comes_later() -> None:
    tried = played(10)
    first = recipe_at(tried[0].point, SPACE, BASE, name="base")
    assert first == BASE
    trained = [bool(TRAINING_STEPS & {k for k, v in trial.point.items() if v is True}) for trial in tried]
    assert trained[:5] == [False] * 5
    assert trained == sorted(trained)


def test_no_trial_is_there_twice_and_each_is_a_recipe() -> None:
    points = [trial.point for trial in played(30)]
    assert len({tuple(sorted(point.items())) for point in points}) == 30
    for number, point in enumerate(points):
        made = recipe_at(point, SPACE, BASE, name=f"base-{number}")
        assert (made.seed, made.search, made.name) == (3, None, f"base-{number}")
        assert (made.prune is not None, made.finetune is not None) == (point["prune"], point["finetune"])
        assert ("prune.ratio" in point) == point["prune"]


def test_a_proposal_depends_on_the_trials_before_it_and_the_seed_alone() -> None:
    tried = played(22)
    for number in (11, 16, 21):
        again = propose(SPACE, BASE, tried[:number], number=number, seed=0)
        assert again == tried[number].point
    assert [t.point for t in played(22, seed=1)] != [t.point for t in tried]


def test_later_trials_are_closer_to_what_is_wanted() -> None:
    def excess(trial: Tried) -> float:
        return sum(max(0.0, value) for value in trial.violations.values())

    late, early = [], []
    for seed in range(3):
        tried = played(26, seed)
        early += [excess(trial) for trial in tried[:10]]
        late += [excess(trial) for trial in tried[10:]]
        assert min(map(excess, tried)) == 0
    assert np.median(late) < 0.1 * np.median(early)


def test_a_failed_trial_is_not_tried_again() -> None:
    tried: list[Tried] = []
    for number in range(8):
        point = propose(SPACE, BASE, tried, number=number, seed=0)
        assert point is not None
        tried.append(Tried(point=point, values=None, violations={}))
    assert len({tuple(sorted(trial.point.items())) for trial in tried}) == 8


def test_a_small_space_ends() -> None:
    small = Recipe.from_toml('name = "m"\n[search.quantize]\ncalibration = ["mse", "minmax", "percentile"]\n')
    assert small.search is not None
    tried: list[Tried] = []
    while (point := propose(small.search, small, tried, number=len(tried), seed=0)) is not None:
        tried.append(Tried(point=point, values=(0.0, 1.0), violations={}))
    assert [trial.point["quantize.calibration"] for trial in tried] == ["minmax", "mse", "percentile"]


def test_a_step_that_the_recipe_takes_is_always_taken() -> None:
    fixed = Recipe(name="m", prune=Prune(ratio=0.2, round_to=2))
    space = default_space(fixed)
    assert optional_steps(space, fixed) == ("finetune",)
    point = propose(space, fixed, [], number=0, seed=0)
    assert point is not None
    made = recipe_at(point, space, fixed, name="m")
    assert made.prune is not None
    assert made.prune.round_to == 2
