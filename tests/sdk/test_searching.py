"""Search: budgets that hold, for sure; a kill that loses nothing; one clear word where it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewright.compression import compress
from edgewright.data import Data
from edgewright.errors import CompressError, DataError, SearchError
from edgewright.exporting import export
from edgewright.progress import Progress
from edgewright.recipe import Recipe
from edgewright.search_pareto import SearchReport, front_table
from edgewright.searching import halves, search
from edgewright_device import Artifact, detect, target_names
from sdk import searches

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def data() -> Data:
    return searches.samples()


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Module:
    return searches.trained(data)


@pytest.fixture(scope="module")
def found(model: nn.Module, data: Data, tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A whole search."""
    return searches.run(model, data, tmp_path_factory.mktemp("whole") / "search")


def test_the_winner_keeps_budget_and_accuracy_for_sure(found: SearchReport) -> None:
    winner = found.winner
    assert found.outcome == "held"
    assert winner is not None
    assert winner.fidelity is not None
    assert winner.fidelity.interval[0] > -0.08
    assert winner.costs["size"].value <= 0.55 * found.baseline["size"]
    assert Artifact.open(found.place(winner) / "model.ew").size_bytes == winner.costs["size"].value


def test_the_winner_is_judged_again_on_samples_that_nothing_was_chosen_by(
    found: SearchReport, data: Data
) -> None:
    chosen_by, held_back = halves(data.validation, 0)
    assert found.confirmed is not None
    assert found.confirmed.count == sum(len(y) for _, y in held_back)
    assert found.winner is not None
    assert found.winner.fidelity is not None
    assert found.winner.fidelity.count == sum(len(y) for _, y in chosen_by)
    assert found.confirmed.loses_less_than(0.08)


def test_halves_share_no_sample_and_each_class_evenly(data: Data) -> None:
    parts = halves(data.validation, 0)
    samples = [np.concatenate([x.numpy().reshape(len(x), -1) for x, _ in part]) for part in parts]
    rows = [{row.tobytes() for row in part} for part in samples]
    assert not rows[0] & rows[1]
    assert sum(map(len, samples)) == sum(len(y) for _, y in data.validation)
    counts = [Counter(torch.cat([y for _, y in part]).tolist()) for part in parts]
    assert all(abs(counts[0][label] - counts[1][label]) <= 1 for label in range(10))


def test_what_needs_no_training_comes_first(found: SearchReport) -> None:
    trained = [bool(trial.point["finetune"]) for trial in found.trials]
    assert trained == sorted(trained)
    assert any(trained)


def test_a_trial_that_is_too_large_before_training_is_not_trained(found: SearchReport) -> None:
    stopped = [trial for trial in found.trials if trial.status == "stopped"]
    assert stopped
    for trial in stopped:
        assert "before training, over" in trial.reason
        assert not trial.curve
        assert trial not in found.front


def test_the_models_of_the_front_are_kept_and_no_others(found: SearchReport) -> None:
    front = {trial.number for trial in found.front}
    for trial in found.trials:
        place = found.place(trial)
        assert Recipe.from_toml(place / "recipe.toml") == found.recipe(trial)
        kept = {"model.ew", "model.pt2"} if trial.number in front else set()
        if kept and (trial.point["prune"] or trial.point["finetune"]):
            kept |= {"steps"}
        assert {p.name for p in place.iterdir()} == {"recipe.toml", "trial.json"} | kept
    told = json.loads((found.folder / "pareto.json").read_text())
    assert told == json.loads(json.dumps(found.to_table()))
    assert (found.folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_recipe_of_the_winner_alone_gives_its_bits(
    found: SearchReport, model: nn.Module, data: Data, tmp_path: Path
) -> None:
    assert found.winner is not None
    recipe = found.recipe(found.winner)
    chosen_by, _ = halves(data.validation, recipe.seed)
    small = compress(model, recipe, data=replace(data, validation=chosen_by))
    again = export(
        small, target=detect(), calibration=data.train, out=tmp_path / "model.ew", quantize=recipe.quantize
    )
    assert again.digest == found.winner.digest


def test_a_killed_search_goes_on_to_what_it_would_have_found(
    found: SearchReport, model: nn.Module, data: Data, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    tests = Path(__file__).resolve().parents[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "sdk.searches", folder],
        env=os.environ | {"PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert any(line.endswith("finetune 2\n") for line in child.stdout)  # in the middle of a training
    child.send_signal(signal.SIGKILL)
    child.communicate()
    left = sorted(path.parent.name for path in folder.glob("trials/*/trial.json"))
    assert 0 < len(left) < searches.TRIALS
    assert len(list(folder.glob("trials/*"))) == len(left) + 1
    begun: list[str] = []
    resumed = searches.run(model, data, folder, progress=lambda told: begun.append(told.step))
    assert not [step for step in begun if step.startswith(tuple(f"trial {int(n)}:" for n in left))]
    assert [t.point for t in resumed.trials] == [t.point for t in found.trials]
    assert [t.digest for t in resumed.trials] == [t.digest for t in found.trials]
    assert [t.fidelity for t in resumed.trials] == [t.fidelity for t in found.trials]
    assert [t.curve for t in resumed.trials] == [t.curve for t in found.trials]
    assert resumed.confirmed == found.confirmed


def test_an_exception_from_progress_cancels_and_more_trials_may_follow(
    model: nn.Module, data: Data, tmp_path: Path
) -> None:
    def stop(told: Progress) -> None:
        if told.step.startswith("trial 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run(model, data, tmp_path / "search", progress=stop)
    assert len(json.loads((tmp_path / "search" / "pareto.json").read_text())["trials"]) == 2
    told: list[Progress] = []
    more = searches.run(model, data, tmp_path / "search", trials=3, progress=told.append)
    assert len(more.trials) == 3
    assert all(report.remaining_s is not None for report in told[1:-1])
    assert {(report.done, report.total) for report in told} >= {(2, 3)}


def test_a_budget_that_cannot_be_met_names_the_best_that_could(
    model: nn.Module, data: Data, tmp_path: Path
) -> None:
    recipe = Recipe.from_toml(searches.RECIPE)
    got = search(
        model, recipe, data=data, budgets=["size=1kB"], min_accuracy=-8, out=tmp_path / "s", trials=3
    )
    assert (got.outcome, got.winner, got.confirmed) == ("not met", None, None)
    assert got.nearest is not None
    assert got.nearest.number in {trial.number for trial in got.front}
    assert f"no trial holds; the best that could: trial {got.nearest.number} with " in got.sentence()


def test_latency_is_measured_beside_the_model_itself(model: nn.Module, data: Data, tmp_path: Path) -> None:
    recipe = Recipe.from_toml('name = "m"\n[search.quantize]\ncalibration = ["minmax", "mse"]\n')
    got = search(
        model,
        recipe,
        data=data,
        budgets=["latency=300%", "size=200%"],
        min_accuracy=-8,
        out=tmp_path / "s",
        trials=5,
    )
    assert [trial.status for trial in got.trials] == ["held", "held"]  # and nothing else is there to try
    for trial in got.trials:
        cost = trial.costs["latency"]
        assert cost.low <= cost.value <= cost.high < 3 * got.baseline["latency"]
        assert cost.value == pytest.approx(got.baseline["latency"], rel=0.5)  # it is the same program
    assert front_table(got).row_count == len(got.front)
    assert (tmp_path / "s" / "pareto.png").is_file()


def test_too_few_samples_to_tell_are_refused_before_any_work(
    model: nn.Module, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"too small to tell a loss of 0\.5 points.* 330 .* about 7\d\d for"):
        search(model, data=data, budgets=["size=50%"], min_accuracy=-0.5, out=tmp_path / "s")
    few = list(data.validation)[:1]
    with pytest.raises(DataError, match="confirmed on 64, whose interval would reach"):
        search(model, data=data, budgets=["size=50%"], min_accuracy=-2, out=tmp_path / "s", confirm=few)
    assert not (tmp_path / "s").exists()


def test_a_folder_of_another_search_is_not_mixed_with_it(
    found: SearchReport, model: nn.Module, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match=r"holds another search: .*model is another"):
        searches.run(searches.network(), data, found.folder)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SearchError, match="holds something else than a search"):
        searches.run(model, data, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_searches_in_one_folder_are_told_apart(model: nn.Module, data: Data, tmp_path: Path) -> None:
    def again(told: Progress) -> None:
        with pytest.raises(SearchError, match="another search is running there"):
            searches.run(model, data, tmp_path / "search")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run(model, data, tmp_path / "search", progress=again)


def test_a_search_of_which_nothing_can_come_says_why(model: nn.Module, data: Data, tmp_path: Path) -> None:
    fixed = Recipe.from_toml(
        'name = "m"\n[finetune]\nlearning_rate = 1e30\n[search.finetune]\nepochs = [1, 2]\n'
    )
    with pytest.raises(SearchError, match="all 2 trials failed, the first: finetune diverged in epoch 1"):
        search(model, fixed, data=data, budgets=["size=99%"], min_accuracy=-8, out=tmp_path / "s", trials=2)


def test_what_cannot_be_asked_is_refused(model: nn.Module, data: Data, tmp_path: Path) -> None:
    def ask(**changes: object) -> None:
        asked = {"data": data, "budgets": ["size=50%"], "out": tmp_path / "s", "min_accuracy": -8} | changes
        search(model, **asked)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="one budget or more"):
        ask(budgets=[])
    with pytest.raises(ValueError, match="one for each quantity"):
        ask(budgets=["size=50%", "size=1kB"])
    with pytest.raises(ValueError, match="below 0, not 0"):
        ask(min_accuracy=0)
    with pytest.raises(ValueError, match="0 trials"):
        ask(trials=0)
    with pytest.raises(CompressError, match="needs a teacher"):
        ask(recipe=Recipe.from_toml('name = "m"\n[search.distill]\nepochs = [1]\n'))
    other = next(name for name in target_names() if name != detect().name)
    with pytest.raises(SearchError, match="cannot be measured here"):
        ask(budgets=["latency=5ms"], target=other)


def test_a_search_may_train_with_fake_quantization(model: nn.Module, data: Data, tmp_path: Path) -> None:
    recipe = Recipe.from_toml('name = "m"\n[search.qat]\nepochs = [1]\n')
    got = search(
        model, recipe, data=data, budgets=["size=200%"], min_accuracy=-8, out=tmp_path / "s", trials=3
    )
    assert [(trial.point["qat"], trial.status) for trial in got.trials] == [(False, "held"), (True, "held")]
    assert got.trials[0].digest != got.trials[1].digest
    trained = got.place(got.trials[1])
    assert (trained / "model.onnx").exists() == (got.trials[1] in got.front)
