"""Remedies: what may heal a model is tried, from the cheapest on, and measured as verification measures.

Of an artifact, a remedy is a change to the recipe's `[quantize]`: the float model is exported with it into a
temporary folder, and what comes out is judged on the cases of the verification, which calibration did not
see. Of an ONNX file, it is a change to its QDQ graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import tomli_w

from edgewright.checks import Check
from edgewright.divergence import Run, stock_function
from edgewright.durable import write_whole
from edgewright.errors import SdkError
from edgewright.exporting import export
from edgewright.graph import onnx_function
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Quantize
from edgewright.remedy_candidates import DEFAULT, Candidate
from edgewright_device import Artifact, Runner, RunnerError, Target, write_artifact

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a remedy gave.

    Attributes:
        run: As the engine computes it.
        exact: Its definition, where the two are to be compared.
        made: A QDQ graph of an ONNX file; of an artifact an artifact, which is there while it is looked at.
        size_bytes: Of all files.
    """

    run: Run
    exact: Run | None
    made: onnx.ModelProto | Artifact
    size_bytes: int

    def write(self, path: Path) -> None:
        """Keeps it: as an ONNX file, or as an artifact that is named after its place."""
        if isinstance(self.made, onnx.ModelProto):
            write_whole(path, self.made.SerializeToString())
            return
        write_artifact(
            path,
            name=path.name.removesuffix(".ew"),
            producer=self.made.producer,
            targets=self.made.targets,
            inputs=self.made.inputs,
            outputs=self.made.outputs,
            files={name: self.made.read(name) for name in self.made.files},
            parts=self.made.parts,
            lengths=self.made.lengths,
        )


Judge = Callable[[Tried], Sequence[Check]]
"""The checks that what a remedy gave must pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One remedy that was tried.

    Attributes:
        change: In words.
        recipe: The `[quantize]` of a recipe that has it, as TOML; empty where none can say it.
        size_bytes: Of all files that came out; 0 where nothing did.
        checks: The checks that had failed, again.
        error: Why nothing came out.
    """

    change: str
    recipe: str
    size_bytes: int
    checks: tuple[Check, ...] = ()
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether there were checks, and each passed."""
        return bool(self.checks) and all(c.verdict == "passed" for c in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What heals a model, as far as was found.

    Attributes:
        before: The model as it is.
        attempts: In the order in which they were tried, which is that of their cost.
        chosen: Which of them is recommended, from 0: the cheapest that passed, and of several that cost the
            same the one with most signal to noise; None where none passed.
        untried: What would have been tried, in words, where trying was not asked for.
    """

    before: Attempt
    attempts: tuple[Attempt, ...] = ()
    chosen: int | None = None
    untried: tuple[str, ...] = ()

    @property
    def recommended(self) -> Attempt | None:
        """The attempt that is recommended; None where none passed."""
        return None if self.chosen is None else self.attempts[self.chosen]


def recipe_text(quantize: Quantize) -> str:
    """A recipe's `[quantize]` as TOML, with what differs from the default."""
    given = {f.name: getattr(quantize, f.name) for f in fields(Quantize)}
    told = {n: v for n, v in given.items() if v != getattr(DEFAULT, n)}
    return tomli_w.dumps({"quantize": {n: list(v) if isinstance(v, tuple) else v for n, v in told.items()}})


def try_remedies(
    candidates: Sequence[Candidate],
    before: Attempt,
    judge: Judge,
    *,
    model: nn.Module | Path,
    calibration: Any,
    target: str,
    out: Path | None,
    report: OnProgress,
) -> Remedy:
    """Tries one after the other until one passes, and those that are to be compared in any case.

    Args:
        candidates: The cheapest first.
        before: What is to be healed.
        judge: Gives the checks that must pass.
        model: The float model, for recipes.
        calibration: Samples to choose grids by, as for `export`.
        target: What will run an artifact.
        out: Where to write what the recommended one gave; nowhere if None.
        report: Told of progress; an exception it raises ends the trial.
    """
    attempts: list[Attempt] = []
    chosen, best = None, (False, 0.0)
    for number, candidate in enumerate(candidates):
        if chosen is not None and not candidate.compared:
            break
        report(Progress(step="remedies", done=number, total=len(candidates)))
        text = recipe_text(candidate.quantize) if candidate.quantize is not None else ""
        try:
            with _made(candidate, model, calibration, target) as tried:
                attempt = Attempt(
                    change=candidate.change,
                    recipe=text,
                    size_bytes=tried.size_bytes,
                    checks=tuple(judge(tried)),
                )
                worth = (not candidate.slower, _least_db(attempt.checks))
                if attempt.passed and (chosen is None or worth > best):
                    chosen, best = number, worth
                    if out is not None:
                        tried.write(out)
        except (SdkError, RunnerError) as failed:
            attempt = Attempt(change=candidate.change, recipe=text, size_bytes=0, error=str(failed))
        attempts.append(attempt)
    report(Progress(step="remedies", done=len(candidates), total=len(candidates)))
    return Remedy(before=before, attempts=tuple(attempts), chosen=chosen)


def _least_db(checks: Sequence[Check]) -> float:
    return next((c.value for c in checks if c.name == "sqnr"), 0.0)


@contextmanager
def _made(candidate: Candidate, model: nn.Module | Path, calibration: Any, target: str) -> Iterator[Tried]:
    """What a remedy gives, while it is there."""
    if candidate.edit is not None:
        graph = candidate.edit()
        exact = onnx_function(graph)
        yield Tried(run=stock_function(graph), exact=exact, made=graph, size_bytes=graph.ByteSize())
        return
    with tempfile.TemporaryDirectory(prefix="edgewright-remedy-") as folder:
        made = export(
            model,
            target=target,
            calibration=calibration,
            out=Path(folder) / "tried.ew",
            quantize=candidate.quantize,
        )
        run = Runner(made, backend="native" if made.native else "onnxruntime").run
        yield Tried(run=run, exact=None, made=made, size_bytes=size_of(made))


def size_of(artifact: Artifact) -> int:
    """Bytes of an artifact's files."""
    return sum(f.size_bytes for f in artifact.files.values())


def takes_floats(target: str) -> bool:
    """Whether a target can run layers in floating point."""
    return "onnxruntime" in Target.load(target).backends
