"""How a running job is doing: overall progress, the step, time to go, figures, and their curves."""

from __future__ import annotations

from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QProgressBar, QVBoxLayout

from edgewright_studio import units
from edgewright_studio.curve import Curve
from edgewright_studio.jobs import Cancelled, End, Failed, Finished, Job, Progressed
from edgewright_studio.page import label, restyle

_BAR = 1000
_FIGURES = {"loss": ("loss", "{:.3f}"), "accuracy": ("accuracy", "{:.1%}")}


class RunCard(QFrame):
    """Shows one job, from start to end."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self._state = label("Ready", "heading")
        self._time = label(role="muted")
        self._step = label("Press Start to run the recipe.", "muted", wrap=True)
        self.bar = QProgressBar()
        self.bar.setRange(0, _BAR)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the job")
        self._loss = Curve("Loss", "{:.3f}", each_own_scale=True)
        self._accuracy = Curve("Validation accuracy", "{:.1%}", each_own_scale=False)
        head = QHBoxLayout()
        head.addWidget(self._state)
        head.addStretch(1)
        head.addWidget(self._time)
        column = QVBoxLayout(self)
        column.setContentsMargins(18, 14, 18, 16)
        column.setSpacing(10)
        column.addLayout(head)
        column.addWidget(self.bar)
        column.addWidget(self._step)
        column.addSpacing(4)
        curves = QHBoxLayout()
        curves.setSpacing(24)
        curves.addWidget(self._loss)
        curves.addWidget(self._accuracy)
        column.addLayout(curves, 1)

    def begin(self) -> None:
        """Clears it for a job that was just started."""
        self._loss.clear()
        self._accuracy.clear()
        self.bar.setValue(0)
        restyle(self.bar, tone="")
        self._state.setText("Running")
        self._step.setText("Starting…")
        self._time.setText("")

    def show_progress(self, job: Job, event: Progressed) -> None:
        """Shows how far it is."""
        self.bar.setValue(round(_BAR * event.overall))
        self._state.setText("Cancelling…" if job.cancelling else "Running")
        count = f"{event.done:,} of {event.total:,}" if event.total > 1 else ""
        named = [
            f"{name} {form.format(event.metrics[k])}"
            for k, (name, form) in _FIGURES.items()
            if k in event.metrics
        ]
        self._step.setText("  ·  ".join(filter(None, [step_title(event.step), count, *named])))
        self._time.setText(time_text(job))
        if "loss" in event.metrics:
            self._loss.add(step_title(event.step), event.metrics["loss"])
        if "accuracy" in event.metrics:
            self._accuracy.add(step_title(event.step), event.metrics["accuracy"])

    def show_end(self, job: Job, event: End) -> None:
        """Shows how it ended."""
        self._time.setText(f"after {units.duration(job.elapsed_s)}")
        match event:
            case Finished():
                self.bar.setValue(_BAR)
                restyle(self.bar, tone="good")
                self._state.setText("Done")
                self._step.setText("Every step is done.")
            case Failed():
                restyle(self.bar, tone="bad")
                self._state.setText("Failed")
                self._step.setText(event.problem.what)
            case Cancelled():
                self._state.setText("Cancelled")
                self._step.setText("Its partial output was removed.")

    @property
    def state_label(self) -> QLabel:
        """Says in one word how the job is."""
        return self._state


def step_title(step: str) -> str:
    """A step's name as a title."""
    return step[:1].upper() + step[1:]


def time_text(job: Job) -> str:
    """Elapsed, and to go where that can be told."""
    elapsed = units.duration(job.elapsed_s)
    return elapsed if job.remaining_s is None else f"{elapsed}, about {units.duration(job.remaining_s)} to go"
