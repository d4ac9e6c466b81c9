"""The trials of a search: what each found, whether it holds, which are best, and which are hopeless."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from edgewright.errors import SearchError
from edgewright.fidelity import Fidelity
from edgewright.search_budgets import Cost, Quantity, Verdict
from edgewright.search_proposals import Point, Tried

Status = Literal["held", "cannot tell", "not met", "stopped", "failed"]

REDUCTION = 3
"""Of the trials at a rung, one in so many is promoted whatever its accuracy; rungs lie this factor apart."""
WITNESSES = 3
"""So many trials must have gone on from a rung before one is stopped there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one trial found.

    Attributes:
        number: From 0.
        point: What was chosen of all that varies.
        recipe: The whole recipe, as TOML text.
        status: "held" where everything holds with its whole interval, "not met" where something does not with
            none of it, else "cannot tell"; "stopped" early, or "failed".
        reason: Why it was stopped or failed.
        fidelity: What the artifact keeps of the float model, on the data that trials are chosen by. Of one
            that was stopped before training, what it has without.
        costs: By quantity: ms or bytes.
        curve: Accuracy after each epoch of its last training, by epoch.
        seconds: How long it took.
        digest: Of the artifact.
    """

    number: int
    point: Point
    recipe: str
    status: Status
    reason: str = ""
    fidelity: Fidelity | None = None
    costs: Mapping[Quantity, Cost]
    curve: Mapping[int, float]
    seconds: float
    digest: str = ""

    @property
    def complete(self) -> bool:
        """Whether it was measured whole."""
        return self.status not in {"stopped", "failed"}

    def to_json(self) -> str:
        """Writes it as JSON text that `from_json` reads back."""
        return json.dumps(plain(asdict(self)), indent=1) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Reads a trial.

        Raises:
            SearchError: The file cannot be read, or is none.
        """
        try:
            table: dict[str, Any] = json.loads(path.read_text("utf-8"))
            table["costs"] = {name: Cost(**cost) for name, cost in table["costs"].items()}
            table["curve"] = {int(epoch): value for epoch, value in table["curve"].items()}
            if table["fidelity"] is not None:
                kept: dict[str, Any] = dict(table["fidelity"], interval=tuple(table["fidelity"]["interval"]))
                if kept["sqnr_db"] is None:
                    kept["sqnr_db"] = math.inf  # equal outputs, which JSON cannot say
                table["fidelity"] = Fidelity(**kept)
            return cls(**table)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SearchError(f"{path}: cannot read this trial: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What must hold.

    Attributes:
        margin: Less accuracy than this, 0..1, may be lost.
        limits: By quantity: the most, in ms or bytes.
        reference_accuracy: Of the float model, 0..1.
    """

    margin: float
    limits: Mapping[Quantity, float]
    reference_accuracy: float

    def verdicts(self, fidelity: Fidelity, costs: Mapping[Quantity, Cost]) -> dict[str, Verdict]:
        """What holds, by "accuracy" and quantity."""
        kept = fidelity.loses_less_than(self.margin)
        verdict: Verdict = "cannot tell" if kept is None else "holds" if kept else "fails"
        return {
            "accuracy": verdict,
            **{name: costs[name].within(limit) for name, limit in self.limits.items()},
        }

    def status(self, fidelity: Fidelity, costs: Mapping[Quantity, Cost]) -> Status:
        """All verdicts in one."""
        found = set(self.verdicts(fidelity, costs).values())
        return "not met" if "fails" in found else "cannot tell" if "cannot tell" in found else "held"

    def excess(self, trial: Trial) -> dict[str, float]:
        """By how much each demand is missed: above 0 where its interval does not hold whole."""
        found: dict[str, float] = {
            name: trial.costs[name].high / limit - 1 for name, limit in self.limits.items()
        }
        return {"accuracy": (self._lost(trial) - self.margin) / self.margin, **found}

    def tried(self, trial: Trial) -> Tried:
        """A trial as proposals are made from."""
        if not self._measured(trial):
            return Tried(point=trial.point, values=None, violations={})
        values = (self._lost(trial), *(trial.costs[name].high for name in self.limits))
        return Tried(point=trial.point, values=values, violations=self.excess(trial))

    def nearest(self, trials: Iterable[Trial]) -> Trial | None:
        """The trial that misses least: the best that could be had where nothing holds."""
        begun = [trial for trial in trials if trial.fidelity is not None and self._measured(trial)]
        return min(
            self.front(trials) or begun,
            key=lambda trial: sum(max(0.0, x) for x in self.excess(trial).values()),
            default=None,
        )

    def winner(self, trials: Iterable[Trial]) -> Trial | None:
        """Of the trials that hold, the one that has surely kept most; of equals, the cheapest."""
        held = [trial for trial in trials if trial.status == "held"]
        return min(
            held,
            key=lambda trial: (
                self._lost(trial),
                math.prod(trial.costs[name].high / limit for name, limit in self.limits.items()),
            ),
            default=None,
        )

    def front(self, trials: Iterable[Trial]) -> tuple[Trial, ...]:
        """The trials that no other beats, by the most they may have lost and the most they may cost."""
        points = [
            (trial, (self._lost(trial), *(trial.costs[name].high for name in self.limits)))
            for trial in trials
            if trial.complete
        ]
        kept = []
        for trial, values in points:
            beaten = any(
                all(a <= b for a, b in zip(others, values, strict=True))
                and (others != values or other.number < trial.number)
                for other, others in points
                if other is not trial
            )
            if not beaten:
                kept.append(trial)
        return tuple(sorted(kept, key=lambda t: [t.costs[name].high for name in self.limits]))

    def hopeless(
        self, epoch: int, accuracy: float, earlier: Sequence[Trial], last: bool = False
    ) -> str | None:
        """Why a trial that trains need not go on, after an epoch; None where it may.

        Asynchronous successive halving (Li et al. 2020) with a second condition: a trial that is not among
        the best at its rung is stopped only if it would miss the accuracy even with the largest gain that an
        earlier one made from there on. So strong compression, which starts low, gets its time.

        Args:
            epoch: From 1.
            accuracy: Of the float model in training, 0..1.
            earlier: The trials before it.
            last: Whether this was its last epoch.
        """
        rung = round(REDUCTION ** round(math.log(epoch, REDUCTION)))
        if last or epoch != rung:
            return None
        rivals = [trial.curve[epoch] for trial in earlier if epoch in trial.curve]
        gains = [
            trial.fidelity.accuracy - trial.curve[epoch]
            for trial in earlier
            if trial.complete and trial.fidelity is not None and epoch in trial.curve
        ]
        if len(gains) < WITNESSES:
            return None
        better = sum(rival > accuracy for rival in rivals)
        short = self.reference_accuracy - self.margin - (accuracy + max(0.0, *gains))
        if better < max(1, (len(rivals) + 1) // REDUCTION) or short <= 0:
            return None
        return (
            f"after epoch {epoch} {better} of {len(rivals)} others were better, and the largest gain from "
            f"there, {100 * max(0.0, *gains):.1f} points, would leave it {100 * short:.1f} short"
        )

    def _lost(self, trial: Trial) -> float:
        """The most that it may have lost, 0..1."""
        if trial.fidelity is not None:
            return -trial.fidelity.interval[0]
        return self.reference_accuracy - max(trial.curve.values()) + self.margin  # stopped while it trained

    def _measured(self, trial: Trial) -> bool:
        known = trial.fidelity is not None or bool(trial.curve)
        return trial.status != "failed" and known and self.limits.keys() <= trial.costs.keys()


def plain(value: Any) -> Any:
    """A value as strict JSON has it: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
