"""compare: which of two models is faster, what it costs in accuracy, and when that is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.checks import Check
from edgewright.decisions import DecisionComparison, compare_decisions, decisions_of
from edgewright.differences import OutputComparison, compare_outputs
from edgewright.equivalence import loss_check
from edgewright.errors import VerifyError
from edgewright.paired_latency import LatencyComparison, compare_calls, slowdown_check
from edgewright.plain import to_plain
from edgewright.progress import OnProgress, Progress
from edgewright.sides import Arrays, LoadedSide, Outputs, Side, feed_for, load_side
from edgewright_device import Artifact

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` found of B against A.

    Attributes:
        a: One side, for people.
        b: The other.
        size_a_bytes: On disk.
        size_b_bytes: On disk.
        latency: Which is faster.
        outputs: How far what they give differs.
        decisions: Whether they decide alike, and how often rightly; None where the output is no vector of
            classes.
        checks: The bounds that were asked for, each with its verdict.
        batch: Samples in one timed call.
        seed: Of the order of the pairs.
    """

    a: str
    b: str
    size_a_bytes: int
    size_b_bytes: int
    latency: LatencyComparison
    outputs: OutputComparison
    decisions: DecisionComparison | None
    checks: tuple[Check, ...]
    batch: int
    seed: int

    @property
    def held(self) -> bool:
        """Whether every bound that was asked for surely held; True where none was."""
        return all(c.verdict == "passed" for c in self.checks)

    def to_json(self) -> str:
        """As JSON; a number that is none becomes the text "inf", "-inf" or "nan"."""
        data = {"format": FORMAT, "held": self.held, **to_plain(self)}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"


def compare(
    a: Side | Artifact | str | os.PathLike[str],
    b: Side | Artifact | str | os.PathLike[str],
    *,
    data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    reference: nn.Module | str | os.PathLike[str] | None = None,
    batch: int = 1,
    equivalent: float = 0.02,
    max_slowdown: float | None = None,
    margin: float | None = None,
    max_pairs: int = 2000,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Comparison:
    """Compares two models, or one in two configurations, on this machine.

    Latency is measured in pairs, one call of each, in an order that is drawn for each pair. The datum is the
    logarithm of a pair's ratio; the confidence sequence is that of its median, by signs, so it holds at every
    look, whatever outliers, drifts and load there are. Measuring ends once the question is decided: that of
    `max_slowdown`, if it is asked, else which is faster, or neither.

    Args:
        a: What there is: an artifact or its path, an `.onnx` file for stock ONNX Runtime, or a `Side`.
        b: What may take its place.
        data: Samples, by input name, or one array; the golden inputs of an artifact if left out.
        labels: Class numbers of the samples, (samples,).
        reference: The float model, to count agreement with.
        batch: Samples in a timed call.
        equivalent: Ratio less 1 that counts as equal, above 0; 0.02 is 2 %.
        max_slowdown: How much slower B may be: 0.02 is 2 %.
        margin: Accuracy, 0..1, that B may lose against A; on labels, and on agreement with the reference.
        max_pairs: When to give up.
        seed: Draws the orders.
        progress: Called as the work goes on.

    Raises:
        VerifyError: The two do not take the same inputs or give the same outputs, or data does not fit.
        ArtifactError: A side is not an artifact.
        RunnerError: A side cannot be run here.
        ExportError: A file cannot be run by ONNX Runtime.
        ValueError: A number that makes no sense; or a margin with neither labels nor reference.
    """
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it must be between 0 and 1")
    if margin is not None and labels is None and reference is None:
        raise ValueError("a margin on accuracy needs labels, or a reference to agree with")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 at least")
    report = progress or (lambda _: None)
    sides = [load_side(_side(s)) for s in (a, b)]
    samples = _samples(sides, data)
    right = _labels(labels, samples)
    outputs = [_all_outputs(s, feed_for(s, samples), report) for s in sides]
    checks: list[Check] = []
    differences = compare_outputs(*outputs, scales=_common(sides))
    decisions = None
    if (of_a := decisions_of(outputs[0])) is not None and (of_b := decisions_of(outputs[1])) is not None:
        wanted = None if reference is None else _reference_decisions(reference, list(samples.values()))
        decisions = compare_decisions(of_a, of_b, labels=right, reference=wanted)
    if margin is not None:
        checks += _margins(decisions, margin)
    latency = compare_calls(
        *(_call(s, samples, batch) for s in sides),
        equivalent=equivalent,
        max_slowdown=max_slowdown,
        max_pairs=max_pairs,
        seed=seed,
        progress=progress,
    )
    if max_slowdown is not None:
        checks.append(slowdown_check(latency, max_slowdown))
    return Comparison(
        a=sides[0].title,
        b=sides[1].title,
        size_a_bytes=sides[0].size_bytes,
        size_b_bytes=sides[1].size_bytes,
        latency=latency,
        outputs=differences,
        decisions=decisions,
        checks=tuple(checks),
        batch=batch,
        seed=seed,
    )


def _margins(decisions: DecisionComparison | None, margin: float) -> list[Check]:
    if decisions is None:
        raise VerifyError("a margin on accuracy is for classifiers: one output, (samples, classes)")
    named = (("accuracy", "accuracy that B loses against A"),)
    checks = []
    for name, what in (*named, ("agreement", "agreement with the reference that B loses against A")):
        score = decisions.accuracy if name == "accuracy" else decisions.agreement
        if score is not None:
            remedy = (
                "keep A, or recalibrate B, or give its sensitive layers more bits (`edgewright sensitivity`)"
            )
            checks.append(
                loss_check(name, what, score.gained, score.lost, decisions.samples, margin, remedy=remedy)
            )
    return checks


def _call(loaded: LoadedSide, samples: Arrays, batch: int) -> Callable[[], Outputs]:
    feed = feed_for(loaded, samples, batch)
    feed = {n: np.resize(v, (batch, *v.shape[1:])) for n, v in feed.items()}
    return lambda: loaded.run(feed)


def _side(given: Side | Artifact | str | os.PathLike[str]) -> Side:
    if isinstance(given, Side):
        return given
    return Side(path=given.path if isinstance(given, Artifact) else Path(given))


def _samples(sides: list[LoadedSide], data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None) -> Arrays:
    """Samples by the first side's names, in its order.

    Raises:
        VerifyError: There are none, or they are not alike in number.
    """
    if data is None:
        first = next((s for s in sides if s.example is not None), None)
        if first is None or first.example is None:
            raise VerifyError("two .onnx files carry no samples; give some as data (--data FILE.npz)")
        return first.example
    if isinstance(data, Mapping):
        given = {str(n): np.asarray(v) for n, v in data.items()}
    else:
        given = {sides[0].inputs[0]: np.asarray(data)}
    known = next((s.inputs for s in sides if set(s.inputs) == given.keys()), None)
    if known is None and len(given) > 1:
        raise VerifyError(f"data is for inputs {sorted(given)}; the models take {sorted(sides[0].inputs)}")
    arrays = {n: given[n] for n in known or given}
    lengths = {len(v) if v.ndim else 0 for v in arrays.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise VerifyError(
            f"data must hold as many samples for each input, one at least, not {sorted(lengths)}"
        )
    return {
        n: v.astype(np.float32) if v.dtype.kind == "f" else v.astype(np.int64) if v.dtype.kind in "iu" else v
        for n, v in arrays.items()
    }


def _labels(labels: npt.ArrayLike | None, samples: Arrays) -> npt.NDArray[Any] | None:
    if labels is None:
        return None
    found, count = np.asarray(labels), len(next(iter(samples.values())))
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise VerifyError(f"labels of shape {found.shape}, {found.dtype}: {count} class numbers are needed")
    return found


def _all_outputs(loaded: LoadedSide, feed: Arrays, report: OnProgress) -> Outputs:
    count = len(next(iter(feed.values())))
    parts: list[Outputs] = []
    for start in range(0, count, BATCH):
        some = {n: np.ascontiguousarray(v[start : start + BATCH]) for n, v in feed.items()}
        try:
            parts.append(loaded.run(some))
        except ValueError as error:
            raise VerifyError(f"{loaded.side.path}: the data does not fit it: {error}") from None
        report(Progress(step="compare: outputs", done=min(start + BATCH, count), total=count))
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _common(sides: list[LoadedSide]) -> tuple[float, ...]:
    """Steps of the outputs' grids: A's, or B's where A has none."""
    return sides[0].scales or sides[1].scales


def _reference_decisions(
    reference: nn.Module | str | os.PathLike[str], inputs: list[npt.NDArray[Any]]
) -> npt.NDArray[np.int64]:
    from edgewright.errors import ExportError
    from edgewright.graph import float_function

    source = Path(reference) if isinstance(reference, str | os.PathLike) else reference
    try:
        function = float_function(source)
        count = len(inputs[0])
        parts = [function([x[i : i + BATCH] for x in inputs]) for i in range(0, count, BATCH)]
    except ExportError as error:
        raise VerifyError(f"the reference cannot be run: {error}") from error
    except Exception as error:  # a model may raise anything
        raise VerifyError(f"the reference does not take these inputs: {error}") from error
    found = decisions_of([np.concatenate(each) for each in zip(*parts, strict=True)])
    if found is None:
        raise VerifyError("the reference does not give one vector of classes for a sample")
    return found
