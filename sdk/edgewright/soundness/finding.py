"""Finding: one thing that is not as it should be, with its place and a likely cause."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong with an artifact.

    Attributes:
        check: Name of the check that found it.
        place: The layer, value, operator or file.
        found: What is there, and what is allowed, in words.
        cause: What most likely brought it about, in words.
    """

    check: str
    place: str
    found: str
    cause: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.found}"
