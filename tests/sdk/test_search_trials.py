"""What holds, what is best, and what is hopeless, by the numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgewright.errors import SearchError
from edgewright.fidelity import Fidelity
from edgewright.search_budgets import Cost, Quantity
from edgewright.search_pareto import SearchReport, front_table, steps_in_words
from edgewright.search_trials import Demands, Trial

DEMANDS = Demands(margin=0.02, limits={"latency": 1.0}, reference_accuracy=0.95)


def kept(difference: float, half: float = 0.005, **changes: Any) -> Fidelity:
    values: dict[str, Any] = {
        "count": 1000,
        "reference_accuracy": 0.95,
        "accuracy": 0.95 + difference,
        "difference": difference,
        "interval": (difference - half, difference + half),
        "flip_rate": 0.01,
        "p_value": 0.5,
        "sqnr_db": 30.0,
    }
    return Fidelity(**values | changes)


def trial(
    number: int, difference: float, cost: float, *, spread: float = 0.0, half: float = 0.005, **changes: Any
) -> Trial:
    fidelity = kept(difference, half)
    costs: dict[Quantity, Cost] = {"latency": Cost(value=cost, low=cost - spread, high=cost + spread)}
    values: dict[str, Any] = {
        "number": number,
        "point": {"prune": number > 0, "quantize.calibration": "mse"},
        "recipe": 'name = "m"\n',
        "status": DEMANDS.status(fidelity, costs),
        "fidelity": fidelity,
        "costs": costs,
        "curve": {},
        "seconds": 1.0,
    }
    return Trial(**values | changes)


@pytest.mark.parametrize(
    ("difference", "half", "cost", "spread", "status"),
    [
        (-0.01, 0.005, 0.9, 0.05, "held"),
        (-0.018, 0.005, 0.9, 0.05, "cannot tell"),  # the interval of accuracy holds the margin
        (-0.01, 0.005, 0.98, 0.05, "cannot tell"),  # that of the latency holds the limit
        (-0.03, 0.005, 0.9, 0.05, "not met"),
        (-0.01, 0.005, 1.2, 0.05, "not met"),
        (-0.018, 0.005, 1.2, 0.05, "not met"),
    ],
)
def test_a_trial_holds_where_whole_intervals_do(
    difference: float, half: float, cost: float, spread: float, status: str
) -> None:
    assert trial(0, difference, cost, spread=spread, half=half).status == status


def test_the_front_is_what_no_other_beats_and_has_the_winner() -> None:
    trials = [
        trial(0, 0.0, 2.0),
        trial(1, -0.001, 0.8),
        trial(2, -0.002, 0.9),  # beaten by 1
        trial(3, -0.001, 0.8),  # the same as 1
        trial(4, -0.04, 0.5),
        trial(5, 0.001, 0.95, half=0.002),
        trial(6, 0.1, 0.1, status="stopped"),
    ]
    assert [t.number for t in DEMANDS.front(trials)] == [4, 1, 5]
    winner = DEMANDS.winner(trials)
    assert winner is not None
    assert winner.number == 5  # of those that hold, what has surely kept most


def test_noise_that_flatters_does_not_win() -> None:
    surely, luckily = trial(0, -0.001, 0.8, half=0.002), trial(1, 0.002, 0.8, half=0.02)
    winner = DEMANDS.winner([surely, luckily])
    assert winner is surely


def test_where_nothing_holds_the_nearest_is_named() -> None:
    trials = [trial(0, 0.0, 5.0), trial(1, -0.021, 1.1), trial(2, -0.5, 0.9)]
    nearest = DEMANDS.nearest(trials)
    assert nearest is not None
    assert nearest.number == 1
    assert DEMANDS.winner(trials) is None
    excess = DEMANDS.excess(trials[1])
    assert excess == pytest.approx({"accuracy": 0.3, "latency": 0.1})


def test_a_trial_is_hopeless_if_others_are_better_and_the_best_recovery_would_not_do() -> None:
    earlier = [trial(n, -0.01, 0.9, curve={1: 0.80 + 0.02 * n, 3: 0.93}) for n in range(5)]
    gain = 0.94 - 0.80  # of the one that gained most after its first epoch; 0.93 is needed
    assert DEMANDS.hopeless(1, 0.93 - gain + 0.001, earlier) is None
    why = DEMANDS.hopeless(1, 0.93 - gain - 0.01, earlier)
    assert why is not None
    assert "5 of 5 others were better" in why
    assert "largest gain from there, 14.0 points, would leave it 1.0 short" in why
    assert DEMANDS.hopeless(2, 0.1, earlier) is None  # no rung
    assert DEMANDS.hopeless(3, 0.1, earlier) is not None
    assert DEMANDS.hopeless(3, 0.1, earlier, last=True) is None  # nothing is saved any more
    assert DEMANDS.hopeless(1, 0.1, earlier[:2]) is None  # too few have gone on from there
    worse = [*earlier, *(trial(n, 0.0, 0.9, status="stopped", curve={1: 0.1}) for n in range(5, 25))]
    assert DEMANDS.hopeless(1, 0.5, worse) is None  # among the best third of its rung


def test_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    there = trial(3, -0.01, 0.9, curve={1: 0.8}, reason="so")
    path = tmp_path / "trial.json"
    path.write_text(there.to_json())
    assert Trial.from_json(path) == there
    exact = trial(0, 0.0, 1.0, fidelity=kept(0.0, sqnr_db=math.inf))
    path.write_text(exact.to_json())
    assert "Infinity" not in path.read_text()
    assert Trial.from_json(path) == exact
    for damaged in ("{", "{}", "[]", there.to_json().replace('"value"', '"worth"')):
        path.write_text(damaged)
        with pytest.raises(SearchError, match=r"trial\.json: cannot read this trial"):
            Trial.from_json(path)


def report(trials: list[Trial], confirmed: Fidelity | None) -> SearchReport:
    return SearchReport(
        folder=Path("s"),
        demands=DEMANDS,
        baseline={"latency": 2.0},
        trials=tuple(trials),
        confirmed=confirmed,
    )


def test_the_outcome_is_that_of_the_samples_nothing_was_chosen_by() -> None:
    trials = [trial(0, 0.0, 2.0), trial(1, -0.001, 0.8)]
    sure, unsure, refuted = kept(-0.005), kept(-0.018), kept(-0.03)
    assert report(trials, sure).outcome == "held"
    assert (
        "trial 1 holds, confirmed on samples that no trial was chosen by" in report(trials, sure).sentence()
    )
    assert report(trials, unsure).outcome == "cannot tell"
    assert "more samples or a larger loss are needed" in report(trials, unsure).sentence()
    assert report(trials, refuted).outcome == "not confirmed"
    assert "held by luck" in report(trials, refuted).sentence()
    assert report(trials[:1], None).outcome == "not met"
    close = report([trial(0, -0.018, 0.9)], None)
    assert close.outcome == "cannot tell"
    assert "cannot be told whether any trial holds; the best that could: trial 0" in close.sentence()
    assert report([], None).sentence() == "no trial could be measured whole"


def test_the_table_shows_what_trials_differ_in() -> None:
    trials = [
        trial(0, 0.0, 2.0, point={"prune": False, "quantize.calibration": "mse", "quantize.bits": 8}),
        trial(
            1,
            -0.001,
            0.8,
            point={"prune": True, "prune.ratio": 0.3, "quantize.calibration": "mse", "quantize.bits": 4},
        ),
        trial(2, -0.1, 0.7, point={"prune": True, "prune.ratio": 0.5, "quantize.calibration": "mse"}),
    ]
    assert steps_in_words(trials[0], trials) == "quantize bits 8"
    assert steps_in_words(trials[1], trials) == "prune ratio 0.3; quantize bits 4"
    table = front_table(report(trials, kept(0.0)))
    assert table.row_count == 3
    assert [str(c) for c in table.columns[0].cells] == ["2", "1", "0"]
