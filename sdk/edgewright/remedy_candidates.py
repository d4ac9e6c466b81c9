"""What may heal a model, in the order of its cost: other recipes for an artifact, edits of a QDQ graph.

Of a graph that overflows in 16 bits, three edits are compared, though the first may pass: two change weights
and cost nothing when the model runs, one changes no number and takes a slower kernel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from edgewright.calibrate import Method, Observed, observe
from edgewright.divergence import Divergence
from edgewright.exporting import export
from edgewright.graph import read_onnx
from edgewright.qdq_edits import fitted, named_as, reduced, regridded, ungridded, unsigned
from edgewright.recipe import Quantize
from edgewright.samples import Samples
from edgewright.value_matching import GridValue, grid_values, integers_bits, on_grids
from edgewright.wiring import initializers

if TYPE_CHECKING:
    from torch import nn

METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "entropy")
DEFAULT = Quantize()
ANY_TARGET = "x86-64"  # of files that are made anew; one that has ONNX Runtime
FITTED = "weights fitted pair by pair"
_Change = tuple[str, dict[str, Any]]
_Edit = Callable[[], onnx.ModelProto]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A remedy to try: a recipe for an artifact, or what changes a graph.

    Attributes:
        change: In words.
        quantize: The recipe that has it, or comes nearest to it.
        edit: Gives the changed QDQ graph; None of an artifact.
        compared: Whether it is tried though another passed.
        slower: Whether the model takes longer with it: of several that pass, one that does not is preferred.
    """

    change: str
    quantize: Quantize | None = None
    edit: _Edit | None = None
    compared: bool = False
    slower: bool = False


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
    *,
    narrow: bool,
    model: nn.Module | Path,
) -> list[Candidate]:
    """What to change in a QDQ graph, the cheapest first.

    Args:
        qdq: With its constants inside.
        floats: The float model's graph, where there is one.
        divergences: What was found.
        calibration: The float model's inputs by name, (samples, ...).
        narrow: Whether sums can overflow in 16 bits, or a kernel gave something else than the graph.
        model: The float model, to export anew.
    """
    cause = next((d for d in divergences if d.kind == "quantization"), None)
    grids = [] if cause is None or floats is None else _of_grids(qdq, floats, cause, calibration)
    if not narrow:
        return grids
    # Where the grids are to blame as well, weights that are safe to add are not enough.
    safe = [
        replace(c, change=f"{c.change}, and {FITTED}", edit=_after(c.edit))
        for c in grids
        if c.edit is not None
    ]
    return [*(safe or _of_sums(qdq)), *([] if floats is None else [_anew(qdq, model, calibration)])]


def _of_sums(qdq: onnx.ModelProto) -> list[Candidate]:
    """Edits after which no sum of two products leaves 16 bits."""
    return [
        Candidate(
            change=f"{FITTED} (as overflow_safe)",
            quantize=replace(DEFAULT, overflow_safe="pairs"),
            edit=lambda: fitted(qdq),
            compared=True,
        ),
        Candidate(
            change="weights of 7 bits (as reduce_range)",
            edit=lambda: reduced(qdq),
            compared=True,
        ),
        Candidate(
            change="U8U8: the same numbers in uint8, a slower kernel",
            edit=lambda: unsigned(qdq),
            compared=True,
            slower=True,
        ),
    ]


def _after(edit: _Edit) -> _Edit:
    return lambda: fitted(edit())


def _anew(qdq: onnx.ModelProto, model: nn.Module | Path, calibration: Samples) -> Candidate:
    """The float model quantized by this SDK, with weights that are safe to add."""
    quantize = replace(DEFAULT, overflow_safe="pairs")

    def exported() -> onnx.ModelProto:
        with tempfile.TemporaryDirectory(prefix="edgewright-remedy-") as folder:
            made = export(
                model,
                target=ANY_TARGET,
                calibration=calibration,
                out=Path(folder) / "tried.ew",
                quantize=quantize,
                backend="onnxruntime",
            )
            return named_as(read_onnx(made.path / "model.onnx"), qdq)

    change = 'the float model exported anew with overflow_safe = "pairs"'
    return Candidate(change=change, quantize=quantize, edit=exported)


def _of_grids(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, cause: Divergence, calibration: Samples
) -> list[Candidate]:
    """Other ranges, 16 bits, or no grid, for the value that diverges; for all, where none stands out."""
    values = [v for v in grid_values(qdq, floats) if v.expected and v.read]
    named = [v for v in values if v.expected == cause.value and cause.cause != "adds up"] or values

    @cache
    def observed() -> dict[str, Observed]:
        return observe(floats, [v.expected for v in named], calibration)

    def on(method: Method, dtype: Any) -> _Edit:
        def edit() -> onnx.ModelProto:
            grids = {v.quantized: observed()[v.expected].grid(method, 99.99, dtype) for v in named}
            return regridded(qdq, grids, values)

        return edit

    found: list[Candidate] = []
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


def _without_grid(qdq: onnx.ModelProto, floats: onnx.ModelProto, value: GridValue) -> _Edit:
    return lambda: ungridded(qdq, floats, value)
