"""What a long job tells its caller while it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report from a running job.

    Attributes:
        step: What is being done: "distill", "prune", "finetune", …
        done: Units of work finished in this step.
        total: Units of work in this step.
        metrics: What is known so far, by name: "loss", "accuracy" (0..1), …
        note: What a person should be told once the job is done; mostly nothing.
    """

    step: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


OnProgress = Callable[[Progress], None]
"""Called with each report. An exception it raises cancels the job and reaches the caller."""
