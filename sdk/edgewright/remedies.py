"""Remedies: what may heal a model is tried, from the cheapest on, and measured as verification measures.

Of an artifact, a remedy is a change to the recipe's `[quantize]`: the float model is exported with it into a
temporary folder, and what comes out is judged on the cases of the verification, which calibration did not
see. Of an ONNX file, it is a change to its QDQ graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import tomli_w

from edgewright.calibrate import Method, observe
from edgewright.checks import Check
from edgewright.divergence import Divergence, Run, stock_function
from edgewright.errors import SdkError
from edgewright.exporting import export
from edgewright.graph import onnx_function
from edgewright.progress import OnProgress, Progress
from edgewright.qdq_edits import reduced, regridded, ungridded, unsigned
from edgewright.recipe import Quantize
from edgewright.samples import Samples
from edgewright.value_matching import GridValue, grid_values, integers_bits, on_grids
from edgewright.wiring import initializers
from edgewright_device import Artifact, Runner, RunnerError, Target

if TYPE_CHECKING:
    from torch import nn

METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "entropy")
DEFAULT = Quantize()
_Change = tuple[str, dict[str, Any]]

Judge = Callable[[Run, Run | None], Sequence[Check]]
"""Checks of a function; the second is its definition, where both are to be compared."""


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
        healed: Whether an attempt passed; it is the last of `attempts`, and the cheapest.
        before: The model as it is.
        attempts: In the order in which they were tried, which is that of their cost.
        untried: What would have been tried, in words, where trying was not asked for.
    """

    healed: bool
    before: Attempt
    attempts: tuple[Attempt, ...] = ()
    untried: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A remedy to try: a recipe for an artifact, or what changes a graph.

    Attributes:
        change: In words.
        quantize: The recipe that has it, or comes nearest to it.
        edit: Changes the QDQ graph; None of an artifact.
    """

    change: str
    quantize: Quantize | None = None
    edit: Callable[[], onnx.ModelProto] | None = None


def recipe_text(quantize: Quantize) -> str:
    """A recipe's `[quantize]` as TOML, with what differs from the default."""
    given = {f.name: getattr(quantize, f.name) for f in fields(Quantize)}
    told = {n: v for n, v in given.items() if v != getattr(DEFAULT, n)}
    return tomli_w.dumps({"quantize": {n: list(v) if isinstance(v, tuple) else v for n, v in told.items()}})


def recipe_of(qdq: onnx.ModelProto) -> Quantize:
    """What a QDQ graph says of the recipe that it was made by: the kinds of its integers."""
    constants = initializers(qdq)
    values = on_grids(qdq)
    bits = [integers_bits(constants[v.weight]) for v in values if v.weight in constants]
    wide = any(v.dtype == "int16" for v in values)
    weights: Literal["int8", "int4", "auto"] = (
        "int8" if 4 not in bits else "int4" if set(bits) == {4} else "auto"
    )
    return replace(DEFAULT, weights=weights, activations="mixed" if wide else "uint8")


def recipe_candidates(
    base: Quantize, divergence: Divergence | None, *, min_sqnr_db: float, floats_allowed: bool
) -> list[Candidate]:
    """What to change in a recipe, from what costs nothing on; what fits the cause comes first.

    Args:
        base: The recipe that the artifact was made by.
        divergence: Where its error comes from, if that was found.
        min_sqnr_db: What the outputs must have.
        floats_allowed: Whether the target can run a layer in floating point.
    """
    cause = divergence.cause if divergence is not None else "adds up"
    ranges = [m for m in METHODS if m != base.calibration]
    if cause != "saturates":  # a smaller range is finer, a larger one cuts nothing off
        ranges = [m for m in ("mse", "entropy", "percentile", "minmax") if m in ranges]
    free: list[_Change] = [(f"recalibrate: ranges by {m}", {"calibration": m}) for m in ranges]
    if base.rounding == "nearest":
        free.append(("round weights so that layers keep their results", {"rounding": "gptq"}))
    if base.smooth == "off":
        free.append(("smooth outlier channels into the weights", {"smooth": "search"}))
    if not base.correct_bias:
        free.append(("correct the biases", {"correct_bias": True}))
    if cause == "weights":
        free.sort(key=lambda f: "calibration" in f[1])
    bits: list[_Change] = [("8-bit weights", {"weights": "int8"})] if base.weights != "int8" else []
    wide: list[_Change] = []
    if base.activations != "int16":
        aim = max(base.min_sqnr_db, min_sqnr_db + 10)
        wide = [
            ("16 bits for the values that need them most", {"activations": "auto", "min_sqnr_db": aim}),
            ("16-bit activations", {"activations": "int16"}),
        ]
    last: list[_Change] = []
    if floats_allowed and divergence is not None and divergence.operator in {"Conv", "Gemm", "MatMul"}:
        kept = (*base.keep_float, divergence.layer)
        last = [(f"keep {divergence.layer} in floating point", {"keep_float": kept})]
    if bits and wide:
        last.append(("8-bit weights and 16-bit activations", {"weights": "int8", "activations": "int16"}))
    order = [*free, *bits, *wide, *last]
    return [Candidate(change=words, quantize=replace(base, **change)) for words, change in order]


def file_candidates(
    qdq: onnx.ModelProto,
    floats: onnx.ModelProto | None,
    divergences: Sequence[Divergence],
    calibration: Samples,
) -> list[Candidate]:
    """What to change in a QDQ graph, the cheapest first.

    Args:
        qdq: With its constants inside.
        floats: The float model's graph, where there is one.
        divergences: What was found.
        calibration: The float model's inputs by name, (samples, ...).
    """
    found: list[Candidate] = []
    if any(d.kind == "kernel" for d in divergences):
        found.append(
            Candidate(
                change="weights and activations as uint8 (U8U8): the same numbers, added in 32 bits",
                edit=lambda: unsigned(qdq),
            )
        )
        found.append(
            Candidate(
                change="weights of 7 bits (reduce_range): no sum of two products leaves 16 bits",
                quantize=replace(DEFAULT, overflow_safe="pairs"),
                edit=lambda: reduced(qdq),
            )
        )
    cause = next((d for d in divergences if d.kind == "quantization"), None)
    if cause is None or floats is None:
        return found
    values = [v for v in grid_values(qdq, floats) if v.expected and v.read]
    named = [v for v in values if v.expected == cause.value and cause.cause != "adds up"] or values
    observed = observe(floats, [v.expected for v in named], calibration)

    def on(method: Method, dtype: Any) -> Callable[[], onnx.ModelProto]:
        grids = {v.quantized: observed[v.expected].grid(method, 99.99, dtype) for v in named}
        return lambda: regridded(qdq, grids, values)

    where = cause.value if len(named) == 1 else "all values"
    methods = METHODS if cause.cause == "saturates" else ("mse", "entropy", "percentile", "minmax")
    for method in methods:
        change, recipe = f"recalibrate {where}: range by {method}", replace(DEFAULT, calibration=method)
        found.append(Candidate(change=change, quantize=recipe, edit=on(method, "uint8")))
    wide = replace(DEFAULT, activations="auto")
    found.append(Candidate(change=f"16 bits for {where}", quantize=wide, edit=on("minmax", "int16")))
    if len(named) == 1:
        kept = replace(DEFAULT, keep_float=(cause.layer,)) if named[0].weight else None
        edit = _without_grid(qdq, floats, named[0])
        found.append(Candidate(change=f"keep {cause.layer} in floating point", quantize=kept, edit=edit))
    return found


def _without_grid(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, value: GridValue
) -> Callable[[], onnx.ModelProto]:
    return lambda: ungridded(qdq, floats, value)


def try_remedies(
    candidates: Sequence[Candidate],
    before: Attempt,
    judge: Judge,
    *,
    model: nn.Module | Path,
    calibration: Any,
    target: str,
    report: OnProgress,
) -> Remedy:
    """Tries one after the other until one passes.

    Args:
        candidates: The cheapest first.
        before: What is to be healed.
        judge: Gives the checks that must pass.
        model: The float model, for recipes.
        calibration: Samples to choose grids by, as for `export`.
        target: What will run an artifact.
        report: Told of progress; an exception it raises ends the trial.
    """
    attempts: list[Attempt] = []
    for number, candidate in enumerate(candidates):
        report(Progress(step="remedies", done=number, total=len(candidates)))
        text = recipe_text(candidate.quantize) if candidate.quantize is not None else ""
        size, error = 0, ""
        checks: tuple[Check, ...] = ()
        try:
            with _made(candidate, model, calibration, target) as (run, exact, size_bytes):
                size, checks = size_bytes, tuple(judge(run, exact))
        except (SdkError, RunnerError) as failed:
            error = str(failed)
        attempts.append(
            Attempt(change=candidate.change, recipe=text, size_bytes=size, checks=checks, error=error)
        )
        if attempts[-1].passed:
            break
    report(Progress(step="remedies", done=len(candidates), total=len(candidates)))
    healed = bool(attempts) and attempts[-1].passed
    return Remedy(healed=healed, before=before, attempts=tuple(attempts))


@contextmanager
def _made(
    candidate: Candidate, model: nn.Module | Path, calibration: Any, target: str
) -> Iterator[tuple[Run, Run | None, int]]:
    """What a remedy gives, while it is there: the engine's function, its definition, bytes."""
    if candidate.edit is not None:
        graph = candidate.edit()
        yield stock_function(graph), onnx_function(graph), graph.ByteSize()
        return
    with tempfile.TemporaryDirectory(prefix="edgewright-remedy-") as folder:
        made = export(
            model,
            target=target,
            calibration=calibration,
            out=Path(folder) / "tried.ew",
            quantize=candidate.quantize,
        )
        yield Runner(made, backend="native" if made.native else "onnxruntime").run, None, size_of(made)


def size_of(artifact: Artifact) -> int:
    """Bytes of an artifact's files."""
    return sum(f.size_bytes for f in artifact.files.values())


def takes_floats(target: str) -> bool:
    """Whether a target can run layers in floating point."""
    return "onnxruntime" in Target.load(target).backends
