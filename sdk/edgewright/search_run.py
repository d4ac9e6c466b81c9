"""One search: its trials, one after the other, and what is kept of them in its folder."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewright.checkpoint import Checkpoint
from edgewright.compression import lock_of, steps_of, take_step
from edgewright.data import Batch, Data, map_inputs
from edgewright.durable import write_whole
from edgewright.errors import CompressError, ExportError, SearchError
from edgewright.exporting import export
from edgewright.fidelity import Fidelity, artifact_outputs_of, feed_of, fidelity, outputs_of
from edgewright.float_onnx import export_onnx
from edgewright.graph import forward_parameters
from edgewright.lock import Lock
from edgewright.models import save_model
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Recipe
from edgewright.search_budgets import (
    Budget,
    Cost,
    Quantity,
    fastest_ms,
    latency_beside,
    one_call,
    shown,
    size_of,
)
from edgewright.search_cache import Curve, StepCache
from edgewright.search_pareto import SearchReport
from edgewright.search_proposals import TRAINING_STEPS, Point, default_space, propose, recipe_at
from edgewright.search_trials import Demands, Trial
from edgewright.training import own_randomness, tensors
from edgewright_device import Artifact, Target

BEGUN = "search.lock.json"
"""What the search is about: it cannot go on with anything else."""
FUTILE = 5
"""If so many trials fail and none is measured, the search ends."""
CLEARLY_OVER = 1.1
"""A trial that costs this times a budget before its training is not trained."""


class HopelessError(Exception):
    """Ends a trial early, from inside its training."""


@dataclass(kw_only=True)
class SearchRun:
    """A search that runs; all that it knows is in its folder too."""

    model: nn.Module
    teacher: nn.Module | None
    base: Recipe
    data: Data
    target: Target
    folder: Path
    count: int
    progress: OnProgress
    done: list[Trial] = field(default_factory=list)
    probed: dict[Recipe, tuple[dict[Quantity, Cost], Fidelity]] = field(default_factory=dict)

    @property
    def reference(self) -> nn.Module:
        """The float model that accuracy is compared with."""
        return self.model if self.teacher is None else self.teacher

    def begin(self, budgets: Mapping[Quantity, Budget], margin: float) -> None:
        """Claims the folder, measures the baseline, and reads the trials that are there."""
        self.space = self.base.search or default_space(self.base)
        self.cache = StepCache(self.folder / "steps", self.model)
        self._claim(budgets, margin)
        self.progress(Progress(step="measure the model as it is", done=0, total=self.count))
        self.reference_outputs, self.labels = outputs_of(self.reference, self.data.validation)
        baseline = self._baseline("latency" in budgets)
        self.baseline = baseline
        self.demands = Demands(
            margin=margin,
            limits={name: budget.limit_for(baseline[name]) for name, budget in budgets.items()},
            reference_accuracy=float((self.reference_outputs.argmax(1) == self.labels).mean()),
        )
        self._resume()

    def go_on(self) -> None:
        """Runs the trials that are missing."""
        while len(self.done) < self.count:
            tried = [self.demands.tried(trial) for trial in self.done]
            point = propose(self.space, self.base, tried, number=len(self.done), seed=self.base.seed)
            if point is None:  # everything has been tried
                break
            self.done.append(self._trial(len(self.done), point))
            self._keep_the_front()
            failed = [trial for trial in self.done if trial.status == "failed"]
            if len(failed) == len(self.done) >= min(FUTILE, self.count):
                raise SearchError(f"all {len(failed)} trials failed, the first: {failed[0].reason}")

    def conclude(self, held_back: Sequence[Batch]) -> SearchReport:
        """Judges the winner on samples that no trial was chosen by, and writes what was found."""
        winner = self.demands.winner(self.done)
        confirmed = None
        if winner is not None:
            self.progress(Progress(step="confirm the winner", done=len(self.done), total=self.count))
            reference, labels = outputs_of(self.reference, held_back)
            outputs, _ = artifact_outputs_of(self._artifact(winner.number), held_back)
            confirmed = fidelity(reference, outputs, labels)
        report = self._report(confirmed)
        report.write()
        return report

    def _report(self, confirmed: Fidelity | None = None) -> SearchReport:
        return SearchReport(
            folder=self.folder,
            demands=self.demands,
            baseline=self.baseline,
            trials=tuple(self.done),
            confirmed=confirmed,
        )

    def _claim(self, budgets: Mapping[Quantity, Budget], margin: float) -> None:
        """Writes down what the search is about, or checks that it is still about that."""
        settings = {
            "budgets": {name: str(budget) for name, budget in budgets.items()},
            "min_accuracy": -100 * margin,
            "target": self.target.name,
        }
        lock = lock_of(self.model, replace(self.base, search=self.space), self.data, self.teacher)
        lock = replace(lock, recipe={**lock.recipe, **settings})
        path = self.folder / BEGUN
        if not path.exists():
            lock.write(path)
            return
        differences = Lock.from_json(path).differences(lock)
        if differences:
            raise SearchError(
                f"{self.folder}: holds another search: {'; '.join(differences)}. Go on with what it was "
                "begun with, or choose another folder"
            )

    def _baseline(self, timed: bool) -> dict[Quantity, float]:
        """What the model costs in INT8 alone, and what latencies are compared with."""
        path = self.folder / "baseline.json"
        if not path.exists():
            none: dict[str, Any] = dict.fromkeys(steps_of(self.base))
            alone = replace(self.base, **none)
            artifact = self._export(self.model, alone, self.folder / "baseline.ew")
            costs = {"size": float(artifact.size_bytes)}
            if timed:
                costs["latency"] = fastest_ms(self._one_call(artifact))
            write_whole(path, (json.dumps(costs) + "\n").encode())
        found: dict[Quantity, float] = json.loads(path.read_text("utf-8"))
        if timed:
            artifact = Artifact.open(self.folder / "baseline.ew")
            self.baseline_call = self._one_call(artifact)
        return found

    def _resume(self) -> None:
        """Reads the trials that are whole; what a kill left of another is removed."""
        folders = sorted((self.folder / "trials").glob("[0-9]*"))
        for number, each in enumerate(folders):
            path = each / "trial.json"
            if each.name == f"{number:03d}" and path.exists():
                self.done.append(Trial.from_json(path))
            else:
                shutil.rmtree(each)

    def _trial(self, number: int, point: Point) -> Trial:
        begun = time.monotonic()
        place = self.folder / "trials" / f"{number:03d}"
        place.mkdir(parents=True)
        costs: dict[Quantity, Cost] = {}
        curve: Curve = {}
        found: dict[str, Any] = {}
        text = ""
        try:
            recipe = recipe_at(point, self.space, self.base, name=f"{self.base.name}-{number:03d}")
            text = recipe.to_toml()
            write_whole(place / "recipe.toml", text.encode())
            self._too_costly(recipe, place, found, costs)
            small = self._compressed(number, recipe, curve)
            self._tell(number, "export and measure", {})
            artifact = self._export(small, recipe, place / "model.ew")
            costs |= self._costs(artifact)
            kept = self._kept(artifact)
            found |= {
                "fidelity": kept,
                "status": self.demands.status(kept, costs),
                "digest": artifact.digest,
            }
        except HopelessError as error:
            found |= {"status": "stopped", "reason": str(error)}
        except (CompressError, ExportError, ValueError) as error:
            found = {"status": "failed", "reason": " ".join(str(error).split())}
        trial = Trial(
            number=number,
            point=point,
            recipe=text,
            costs=costs,
            curve=curve,
            seconds=round(time.monotonic() - begun, 3),
            **found,
        )
        if trial.complete and trial in self.demands.front([*self.done, trial]):
            save_model(small, self._example(), place / ("model.pt2" if recipe.qat is None else "model.onnx"))
            self.cache.hand_out(steps_of(recipe), recipe, place / "steps")
        else:
            shutil.rmtree(place / "model.ew", ignore_errors=True)
        write_whole(place / "trial.json", trial.to_json().encode())
        return trial

    def _too_costly(
        self, recipe: Recipe, place: Path, found: dict[str, Any], costs: dict[Quantity, Cost]
    ) -> None:
        """Measures a model before its training, which hardly changes what it costs."""
        if not TRAINING_STEPS & set(steps_of(recipe)):
            return
        untrained = replace(recipe, name="untrained", distill=None, finetune=None, qat=None)
        if untrained not in self.probed:
            model = self._compressed(len(self.done), untrained, {})
            artifact = self._export(model, untrained, place / "model.ew")
            self.probed[untrained] = self._costs(artifact), self._kept(artifact)
        before, kept = self.probed[untrained]
        costs |= before
        for name, limit in self.demands.limits.items():
            if costs[name].low > CLEARLY_OVER * limit:
                found["fidelity"] = kept
                raise HopelessError(
                    f"{name} {shown(name, costs[name].value)} before training, over {shown(name, limit)}"
                )

    def _compressed(self, number: int, recipe: Recipe, curve: Curve) -> nn.Module:
        """The model after all steps of a recipe; the accuracies of its last training go into `curve`."""
        steps = steps_of(recipe)
        training = [step for step in steps if step in TRAINING_STEPS]
        model = self.model
        for place, step in enumerate(steps):
            watched: Curve | None = curve if training and step == training[-1] else None

            def take(
                kept: Checkpoint, step: str = step, before: nn.Module = model, watched: Curve | None = watched
            ) -> nn.Module:
                return take_step(
                    step,
                    before,
                    recipe,
                    data=self.data,
                    teacher=self.teacher,
                    progress=self._watching(number, step, watched),
                    checkpoint=kept,
                )

            model = self.cache.take(steps[: place + 1], recipe, {} if watched is None else watched, take)
        return model if steps else copy.deepcopy(model).eval()

    def _watching(self, number: int, step: str, curve: Curve | None) -> OnProgress:
        """Shows the progress of one step as that of the search, and ends it where it is hopeless."""

        def report(told: Progress) -> None:
            self._tell(number, step, told.metrics)
            if curve is not None and "accuracy" in told.metrics:
                epoch = int(told.metrics["epoch"])
                curve[epoch] = told.metrics["accuracy"]
                last = told.done == told.total
                why = self.demands.hopeless(epoch, curve[epoch], self.done, last=last)
                if why is not None:
                    raise HopelessError(why)

        return report

    def _tell(self, number: int, step: str, known: Mapping[str, float]) -> None:
        self.progress(
            Progress(
                step=f"trial {number}: {step}",
                done=number,
                total=self.count,
                metrics={name: known[name] for name in ("epoch", "accuracy") if name in known},
                remaining_s=self._seconds_left(),
            )
        )

    def _seconds_left(self) -> float | None:
        """What the missing trials will take, if they are like those that trained so far."""
        trained = [t.seconds for t in self.done if t.curve] or [t.seconds for t in self.done]
        if not trained:
            return None
        return (self.count - len(self.done)) * sum(trained) / len(trained)

    def _export(self, model: nn.Module, recipe: Recipe, place: Path) -> Artifact:
        """Quantizes a model; those that differ in nothing but that are traced once."""
        traced = self.cache.place(steps_of(recipe), recipe) / "float.onnx"
        if recipe.qat is None and not traced.exists():
            export_onnx(model, traced, example_inputs=self._example())
        with own_randomness():
            torch.manual_seed(recipe.seed)
            return export(
                traced if recipe.qat is None else model,
                target=self.target,
                calibration=self.data.train,
                out=place,
                quantize=recipe.quantize,
            )

    def _costs(self, artifact: Artifact) -> dict[Quantity, Cost]:
        costs: dict[Quantity, Cost] = {"size": size_of(artifact)}
        if "latency" in self.demands.limits:
            costs["latency"] = latency_beside(
                self.baseline_call,
                self.baseline["latency"],
                self._one_call(artifact),
                self.demands.limits["latency"],
            )
        return costs

    def _kept(self, artifact: Artifact) -> Fidelity:
        outputs, _ = artifact_outputs_of(artifact, self.data.validation)
        return fidelity(self.reference_outputs, outputs, self.labels)

    def _one_call(self, artifact: Artifact) -> Callable[[], object]:
        """A call of an artifact with one sample."""
        inputs, _ = tensors(next(iter(self.data.validation)), torch.device("cpu"))
        return one_call(artifact, feed_of(artifact, map_inputs(inputs, lambda value: value[:1])))

    def _example(self) -> tuple[Any, ...]:
        """The arguments of one call."""
        inputs, _ = tensors(next(iter(self.data.validation)), torch.device("cpu"))
        if isinstance(inputs, Mapping):
            return tuple(inputs[name] for name in forward_parameters(self.model) if name in inputs)
        return inputs if isinstance(inputs, tuple) else (inputs,)

    def _artifact(self, number: int) -> Artifact:
        return Artifact.open(self.folder / "trials" / f"{number:03d}" / "model.ew")

    def _keep_the_front(self) -> None:
        """Removes the models of trials that others have beaten, and writes what is known so far."""
        front = {trial.number for trial in self.demands.front(self.done)}
        for trial in self.done:
            if trial.number not in front:
                place = self.folder / "trials" / f"{trial.number:03d}"
                shutil.rmtree(place / "model.ew", ignore_errors=True)
                shutil.rmtree(place / "steps", ignore_errors=True)
                for name in ("model.pt2", "model.onnx"):
                    (place / name).unlink(missing_ok=True)
        self._report().write(picture=False)
