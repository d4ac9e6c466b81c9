"""The result of a compress or export job: one row per variant of the model. Qt-free."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of a variant: its key, heading with unit, how to print it, and which way is better."""

    key: str
    title: str
    form: str
    larger_is_better: bool
    scale: float = 1.0


COLUMNS = (
    Column(key="accuracy", title="Accuracy, %", form="{:.2f}", larger_is_better=True, scale=100.0),
    Column(key="size_bytes", title="Size, KiB", form="{:,.1f}", larger_is_better=False, scale=1 / 1024),
    Column(key="latency_ms", title="Latency, ms", form="{:.3f}", larger_is_better=False),
    Column(key="sqnr_db", title="SQNR, dB", form="{:.1f}", larger_is_better=True),
    Column(key="flips", title="Flips", form="{:,.0f}", larger_is_better=False),
)
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One version of the model and what was measured of it. None: not measured, or without meaning.

    Attributes:
        name: Such as "Float" or "INT8, native".
        accuracy: 0..1 on the held-out data.
        size_bytes: Of the weights as stored.
        latency_ms: Median of one sample at a time on this machine.
        sqnr_db: Signal to quantization noise of the outputs against the float model of the same weights.
        flips: Held-out samples whose predicted class differs from that model's.
        note: Anything else.
    """

    name: str
    accuracy: float | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    sqnr_db: float | None = None
    flips: int | None = None
    note: str = ""

    def value(self, column: Column) -> float | None:
        """The figure in the column's unit."""
        raw = getattr(self, column.key)
        return None if raw is None else float(raw) * column.scale

    def text(self, column: Column) -> str:
        """The figure as it is shown."""
        value = self.value(column)
        if value is None:
            return ABSENT
        return "exact" if math.isinf(value) else column.form.format(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job gives.

    Attributes:
        title: The model's name.
        variants: In the order they were made; the first is the baseline.
        artifact: Path of the artifact that was written.
        passed: What `verify` said.
        cases: On how many cases.
        seconds: The whole job took.
        samples: Held-out samples that accuracy and flips are about.
    """

    title: str
    variants: tuple[Variant, ...]
    artifact: str
    passed: bool
    cases: int
    seconds: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON data; an exact match has an SQNR of "inf"."""
        data = asdict(self)
        for row in data["variants"]:
            if row["sqnr_db"] is not None and math.isinf(row["sqnr_db"]):
                row["sqnr_db"] = "inf"
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Reads what `to_json` wrote."""
        rows = [dict(row) for row in data["variants"]]
        for row in rows:
            row["sqnr_db"] = None if row["sqnr_db"] is None else float(row["sqnr_db"])
        return cls(**{**data, "variants": tuple(Variant(**row) for row in rows)})

    def highlights(self) -> tuple[tuple[str, str], ...]:
        """(figure, meaning) pairs that say what was gained from the first variant to the last."""
        first, last = self.variants[0], self.variants[-1]
        pairs: list[tuple[str, str]] = []
        if first.size_bytes and last.size_bytes:
            pairs.append((f"{first.size_bytes / last.size_bytes:.1f}\N{MULTIPLICATION SIGN}", "smaller"))
        if first.latency_ms and last.latency_ms:
            ratio = first.latency_ms / last.latency_ms
            pairs.append(
                (f"{max(ratio, 1 / ratio):.1f}\N{MULTIPLICATION SIGN}", "faster" if ratio >= 1 else "slower")
            )
        if first.accuracy is not None and last.accuracy is not None:
            points = f"{(last.accuracy - first.accuracy) * 100:+.2f}".replace("-", "\N{MINUS SIGN}")
            pairs.append((points, "points of accuracy"))
        pairs.append(("Passed" if self.passed else "Failed", f"verify, {self.cases:,} cases"))
        return tuple(pairs)


def as_tsv(variants: Sequence[Variant]) -> str:
    """The rows as tab-separated text with a heading, full precision, for a spreadsheet."""
    lines = ["\t".join(["Variant", *(c.title for c in COLUMNS)])]
    for variant in variants:
        values = [variant.value(c) for c in COLUMNS]
        lines.append("\t".join([variant.name, *("" if v is None else f"{v:.6g}" for v in values)]))
    return "\n".join(lines) + "\n"


def write_json(result: Result, path: Path) -> None:
    """Writes the result as JSON, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_text(path, json.dumps(result.to_json(), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        Path(temporary).unlink(missing_ok=True)
