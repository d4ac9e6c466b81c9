"""Which recipes a search tries, and in which order.

First what needs no training, then a few with all steps, then what a tree-structured Parzen estimator proposes
from the trials so far, for several objectives under constraints (Ozaki et al. 2022; Watanabe & Hutter 2023).
A proposal depends on the trials before it and the seed alone. So a search that was killed goes on as it would
have, and nothing but the trials themselves needs to be kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from edgewright.recipe import PARTS, Recipe
from edgewright.search_space import Range, Scalar, Space, Varied

if TYPE_CHECKING:
    import optuna

Point = dict[str, Scalar]
"""A choice for all that varies: "prune" (whether that step is taken), "prune.ratio", …"""

TRAINING_STEPS = frozenset({"distill", "finetune", "qat"})
RANDOM_TRIALS = 10
"""So many trials, the first ones included, before the estimator is asked."""
ATTEMPTS, ESTIMATED = 60, 30
"""How often to propose again what was there before; the later ones are drawn at random."""
CANDIDATES = 24
"""Draws of which the estimator proposes the most promising; fewer where it proposed what was there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A trial that is over.

    Attributes:
        point: What it was.
        values: What is to be small, in one order for all trials; None where it failed.
        violations: By constraint: above 0 where it does not hold.
    """

    point: Point
    values: tuple[float, ...] | None
    violations: Mapping[str, float]


def default_space(recipe: Recipe) -> Space:
    """What a search varies where a recipe does not say: pruning, fine-tuning, and how integers are chosen."""
    return Space(
        sections={
            "prune": {
                "ratio": Range(low=0.1, high=0.7, step=0.1),
                "round_to": (recipe.prune.round_to if recipe.prune else 8,),
            },
            "finetune": {
                "epochs": Range(low=3, high=12, step=3),
                "learning_rate": (5e-4, 1e-3, 2e-3),
            },
            "quantize": {
                "calibration": ("minmax", "mse", "entropy"),
                "activations": ("uint8", "mixed"),
                "overflow_safe": ("off", "pairs"),
                "rounding": ("nearest", "gptq"),
            },
        }
    )


def recipe_at(point: Point, space: Space, base: Recipe, *, name: str) -> Recipe:
    """The recipe of a point.

    Raises:
        ValueError: Its values do not fit together.
    """
    sections: dict[str, Any] = {}
    for section, keys in space.sections.items():
        if point.get(section) is False:
            sections[section] = None
            continue
        given = getattr(base, section) or PARTS[section]()
        sections[section] = replace(given, **{key: point[f"{section}.{key}"] for key in keys})
    return replace(base, name=name, search=None, **sections)


def optional_steps(space: Space, base: Recipe) -> tuple[str, ...]:
    """The steps that a trial may take or leave: those that the recipe itself does not take."""
    return tuple(section for section in space.sections if getattr(base, section) is None)


def openers(space: Space, base: Recipe) -> Iterator[Point]:
    """What to try before anything is known, the cheapest first."""
    optional = optional_steps(space, base)
    plain = {**_at(0.0, space, base), **dict.fromkeys(optional, False)}
    for key, varied in space.sections.get("quantize", {}).items():
        plain[f"quantize.{key}"] = _nearest(varied, getattr(base.quantize, key))
    yield plain
    for key, varied in space.sections.get("quantize", {}).items():
        for value in varied if not isinstance(varied, Range) else ():
            if value != plain[f"quantize.{key}"]:
                yield {**plain, f"quantize.{key}": value}
    untrained = [step for step in optional if step not in TRAINING_STEPS]
    if untrained:
        yield {**plain, **dict.fromkeys(untrained, True)}
    for part in (0.25, 0.5, 0.75, 1.0):
        middle = _at(part, space, base)
        quantize = {key: value for key, value in plain.items() if key.startswith("quantize.")}
        yield {**middle, **dict.fromkeys(optional, True), **quantize}


def propose(space: Space, base: Recipe, tried: Sequence[Tried], *, number: int, seed: int) -> Point | None:
    """What trial `number` should try; None where nothing is left that has not been tried.

    Args:
        space: What varies.
        base: The recipe that it varies.
        tried: The trials so far.
        number: Of the new trial, from 0.
        seed: Of the search.
    """
    import optuna

    seen = {_identity(trial.point) for trial in tried}
    for point in openers(space, base):
        if _identity(_relevant(point)) not in seen:
            return _relevant(point)
    study = _study(space, base, tried)
    for attempt in range(ATTEMPTS):
        drawn = zlib.crc32(f"{seed} {number} {attempt}".encode())
        if attempt < ESTIMATED:
            study.sampler = optuna.samplers.TPESampler(
                seed=drawn,
                n_startup_trials=RANDOM_TRIALS,
                n_ei_candidates=max(1, CANDIDATES // (1 + attempt)),
            )
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=drawn)
        point = _ask(study, space, base)
        if _identity(point) not in seen:
            return point
    return None


def _study(space: Space, base: Recipe, tried: Sequence[Tried]) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = _distributions(space, base)
    measured = [trial for trial in tried if trial.values is not None]
    objectives = len(measured[0].values or ()) if measured else 1
    study = optuna.create_study(directions=["minimize"] * objectives)
    for trial in measured:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.point,
                distributions={name: known[name] for name in trial.point},
                values=trial.values,
                constraints=dict(trial.violations),
            )
        )
    return study


def _ask(study: optuna.Study, space: Space, base: Recipe) -> Point:
    """Draws a point: whether a step is taken first, and then only what its keys are."""
    trial = study.ask()
    point: Point = {}
    for name, distribution in _distributions(space, base).items():
        if point.get(name.partition(".")[0], True) is not False:
            point[name] = _suggest(trial, name, distribution)
    return point


def _suggest(trial: optuna.Trial, name: str, distribution: optuna.distributions.BaseDistribution) -> Scalar:
    import optuna

    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        chosen: Scalar | None = trial.suggest_categorical(name, distribution.choices)
        assert chosen is not None
        return chosen
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, optuna.distributions.FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    return _short(trial.suggest_float(name, low, high, log=distribution.log, step=step), low, high)


def _short(value: float, low: float, high: float) -> float:
    """Five digits are enough for people, and for telling whether a point was there before."""
    return min(max(float(f"{value:.5g}"), low), high)


def _distributions(space: Space, base: Recipe) -> dict[str, optuna.distributions.BaseDistribution]:
    import optuna

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for section, keys in space.sections.items():
        if section in optional_steps(space, base):
            found[section] = optuna.distributions.CategoricalDistribution((False, True))
        for key, varied in keys.items():
            if not isinstance(varied, Range):
                found[f"{section}.{key}"] = optuna.distributions.CategoricalDistribution(varied)
            elif _is_whole(section, key):
                found[f"{section}.{key}"] = optuna.distributions.IntDistribution(
                    int(varied.low), int(varied.high), log=varied.log, step=int(varied.step or 1)
                )
            else:
                found[f"{section}.{key}"] = optuna.distributions.FloatDistribution(
                    varied.low, varied.high, log=varied.log, step=varied.step
                )
    return found


def _at(part: float, space: Space, base: Recipe) -> Point:
    """The same part of the way along every range, and of every list of choices."""
    point: Point = {}
    for section, keys in space.sections.items():
        if section in optional_steps(space, base):
            point[section] = True
        for key, varied in keys.items():
            if isinstance(varied, Range):
                whole = _is_whole(section, key)
                value = varied.at(part, whole=whole)
                point[f"{section}.{key}"] = value if whole else _short(value, varied.low, varied.high)
            else:
                point[f"{section}.{key}"] = varied[0]
    return point


def _nearest(varied: Varied, wanted: Any) -> Scalar:
    """What the recipe has, where the space has it too; else the first choice, or the end of the range."""
    if isinstance(varied, Range):
        return min(max(wanted, varied.low), varied.high) if varied.step is None else varied.low
    return wanted if wanted in varied else varied[0]


def _is_whole(section: str, key: str) -> bool:
    return get_type_hints(PARTS[section])[key] is int


def _relevant(point: Point) -> Point:
    """A point without the keys of steps that are not taken."""
    return {
        name: value
        for name, value in point.items()
        if "." not in name or point.get(name.partition(".")[0], True) is not False
    }


def _identity(point: Point) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(point.items()))
