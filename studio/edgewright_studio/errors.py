"""What can go wrong in the studio.

    Exception
    └── StudioError         something a person can put right: what failed, why, and the next step
        ├── DocumentError   a file cannot be opened as a model
        └── TaskError       a job was asked for something it cannot do

Qt-free: child processes raise these too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a page shows when something failed.

    Attributes:
        what: What failed, in one short sentence.
        why: The cause.
        next_step: What the person can do about it.
        details: For "Copy details": a traceback, or the end of a log. May be empty.
    """

    what: str
    why: str
    next_step: str
    details: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Problem:
        """Reads what `to_json` wrote."""
        return cls(**{k: str(data[k]) for k in ("what", "why", "next_step", "details")})

    def as_text(self) -> str:
        """All of it as plain text, for the clipboard."""
        parts = [self.what, f"Why: {self.why}", f"Next step: {self.next_step}", self.details]
        return "\n".join(p for p in parts if p).strip() + "\n"


class StudioError(Exception):
    """Something a person can put right; `problem` says how."""

    def __init__(self, what: str, *, why: str, next_step: str) -> None:
        super().__init__(f"{what}: {why}. {next_step}")
        self.problem = Problem(what=what, why=why, next_step=next_step)


class DocumentError(StudioError):
    """A file cannot be opened as a model."""


class TaskError(StudioError):
    """A job was asked for something it cannot do."""
