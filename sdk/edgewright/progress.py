"""What a long job tells its caller while it runs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report from a running job.

    Attributes:
        step: What is being done: "distill", "prune", "finetune", …
        done: Units of work finished in this step.
        total: Units of work in this step.
        begun: Units that had been finished before this run began, and were taken from a checkpoint.
        metrics: What is known so far, by name: "loss", "accuracy" (0..1), …
        note: What a person should be told once the job is done; mostly nothing.
        remaining_s: How long the whole job will still take, seconds, estimated; None where that is not known.
    """

    step: str
    done: int
    total: int
    begun: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    remaining_s: float | None = None


OnProgress = Callable[[Progress], None]
"""Called with each report. An exception it raises cancels the job and reaches the caller."""


class Remaining:
    """Adds to each report how long the whole job will still take; call it with the reports.

    The step that runs is taken to go on as it did in this run, and those that follow to take their share of
    what the ones before them took.

    Args:
        progress: Is called with the reports.
        shares: What each step of the job takes, in any unit, in the order of the steps. A step that is not
            among them counts while it runs.
        clock: Seconds that only rise.
    """

    def __init__(
        self,
        progress: OnProgress,
        shares: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._shares, self._clock = progress, dict(shares), clock
        self._later = list(shares)
        self._step = ""
        self._part = 0.0  # of the step, done in this run
        self._began_s = self._last_s = clock()
        self._worked, self._spent_s = 0.0, 0.0  # by the steps before this one, in this run

    def __call__(self, report: Progress) -> None:
        """Hands a report on; one that says itself what remains, as it is."""
        if report.remaining_s is not None:
            self._progress(report)
            return
        if report.step != self._step:
            self._worked += self._shares.get(self._step, 0.0) * self._part
            self._spent_s += self._last_s - self._began_s if self._step in self._shares else 0.0
            self._step, self._began_s = report.step, self._last_s
            if report.step in self._later:
                self._later = self._later[self._later.index(report.step) + 1 :]
        total = max(report.total, 1)
        self._part = max(report.done - report.begun, 0) / total
        self._last_s = self._clock()
        self._progress(replace(report, remaining_s=self._remaining_s(1 - report.done / total)))

    def _remaining_s(self, left: float) -> float | None:
        """What the job will still take when `left`, 0..1, of this step is left."""
        here_s = self._last_s - self._began_s
        share = self._shares.get(self._step, 0.0)
        worked, spent_s = self._worked + share * self._part, self._spent_s + (here_s if share else 0.0)
        later = sum(self._shares[step] for step in self._later)
        pace = spent_s / worked if worked else None  # seconds for a unit of the shares
        if left <= 0:
            own: float | None = 0.0
        elif self._part:
            own = here_s * left / self._part
        else:
            own = None if pace is None else pace * share * left
        if not later or own is None:
            return own
        return None if pace is None else own + pace * later
