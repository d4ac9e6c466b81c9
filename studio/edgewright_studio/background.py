"""The window's side of jobs: a timer that drains their events and hands them on as signals."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal

from edgewright_studio.jobs import End, Job, Task

DRAIN_INTERVAL_MS = 50


class Background(QObject):
    """Runs jobs until they end; `happened` gives (Job, Event) in order."""

    happened = Signal(object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._jobs: list[Job] = []
        self._timer = QTimer(self)
        self._timer.setInterval(DRAIN_INTERVAL_MS)
        self._timer.timeout.connect(self._drain)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those that still run, the oldest first."""
        return tuple(self._jobs)

    def start(self, task: Task) -> Job:
        """Starts a job.

        Raises:
            TaskError: Its process cannot be started.
        """
        job = Job(task)
        self._jobs.append(job)
        self._timer.start()
        return job

    def close(self) -> None:
        """Kills what still runs, waits for it, and cleans up after it. No more signals come."""
        self._timer.stop()
        for job in self._jobs:
            job.close()
        self._jobs.clear()

    def _drain(self) -> None:
        for job in tuple(self._jobs):
            for event in job.poll():
                if isinstance(event, End) and job in self._jobs:
                    self._jobs.remove(job)
                self.happened.emit(job, event)
        if not self._jobs:
            self._timer.stop()
