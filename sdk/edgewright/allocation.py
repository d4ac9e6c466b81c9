"""Where 16 bits go under "auto": to the values whose rounding costs most, until the outputs are good enough.

Each value is put on its grid of uint8 alone, once where sums, norms and pools read it and once where layers
and functions do, as 16 bits are nearly free to the first and cost multiplications to the second. Noise of
different values adds up nearly; so what gains most for its cost is widened first, and a search over how many
finds the least that holds, measured on the quantized graph itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.graph import onnx_function
from edgewright.noise import BATCH, Noise
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import Quantized
from edgewright.recipe import Quantize
from edgewright.samples import Samples
from edgewright.seams import is_layer
from edgewright.statistics import sqnr_db
from edgewright.wiring import Wiring

PROBED = 32  # samples on which each value is tried alone
MEASURED = 64  # samples on which a choice is measured
NAMED = 12  # values named in a note

Make = Callable[[Mapping[str, bool]], Quantized]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One value, for some of its readers.

    Attributes:
        value: Its name.
        deep: For layers and functions; else for sums, norms and pools.
        noise: What its grid of uint8 adds to the outputs, over their square.
        macs: Multiplications that would have 16 bits.
    """

    value: str
    deep: bool
    noise: float
    macs: int


def allocated(
    graph: onnx.ModelProto,
    samples: Samples,
    settings: Quantize,
    keep_float: frozenset[str],
    make: Make,
    report: OnProgress,
) -> Quantized:
    """The graph quantized with as few values of int16 as reach `settings.min_sqnr_db`.

    Args:
        graph: A normalized float graph.
        samples: Its inputs by name, (samples, ...).
        settings: A recipe's part.
        keep_float: Nodes that stay in floating point.
        make: Quantizes the graph with the values that are int16, and whether layers read them so too.
        report: Told of progress, and of what was widened.

    Raises:
        ExportError: Not even int16 everywhere reaches it; the best is named.
    """
    some = {n: v[:MEASURED] for n, v in samples.items()}
    exact = _outputs(graph, some)
    aim = settings.min_sqnr_db
    quantized = make({})
    reached = least = _sqnr_db(exact, _outputs(quantized.model, some))
    steps: list[Step] = []
    chosen: Sequence[Step] = ()
    if reached < aim:
        steps = _steps(graph, quantized, samples, keep_float, report)
        chosen = steps
        quantized = make(_widened(steps))
        reached = _sqnr_db(exact, _outputs(quantized.model, some))
        if reached < aim:
            raise ExportError(
                f"activations = 'auto': the outputs reach {reached:.1f} dB with int16 wherever the engine "
                f"has it, {least:.1f} dB with uint8, not {aim:g} dB; lower min_sqnr_db, or keep layers in "
                "floating point (keep_float)"
            )
        low, high = 0, len(steps)  # `low` steps are too few, `high` are enough
        while high - low > 1:
            middle = (low + high) // 2
            tried = make(_widened(steps[:middle]))
            found = _sqnr_db(exact, _outputs(tried.model, some))
            report(Progress(step="allocate", done=1, total=1, metrics={"int16": middle, "sqnr_db": found}))
            if found >= aim:
                high, quantized, chosen, reached = middle, tried, steps[:middle], found
            else:
                low = middle
    report(Progress(step="allocate", done=1, total=1, note=_described(graph, chosen, steps, least, reached)))
    return quantized


def _described(
    graph: onnx.ModelProto, chosen: Sequence[Step], steps: Sequence[Step], before: float, after: float
) -> str:
    if not chosen:
        return f"int16: none needed; uint8 has {after:.1f} dB on the calibration samples"
    macs = layer_macs(graph)
    share = sum(s.macs for s in chosen) / max(sum(macs.values()), 1)
    names = list(_widened(chosen))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"int16: {len(names)} of {len(_widened(steps))} values ({', '.join(names[:NAMED])}{more}), "
        f"{before:.1f} to {after:.1f} dB on the calibration samples, {share:.0%} of the multiplications of "
        "layers with 16 bits"
    )


def layer_macs(graph: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of each layer for one sample, by the name of its node."""
    wiring = Wiring(graph)
    shapes = wiring.infer(1)[0]
    found: dict[str, int] = {}
    for node in wiring.nodes:
        if not is_layer(node, wiring):
            continue
        weight = wiring.constants[node.input[1]]
        outputs = len(weight) if node.op_type != "MatMul" else weight.shape[1]
        found[node.name] = math.prod(shapes.get(node.output[0], (0,))) * (weight.size // outputs)
    return found


def _steps(
    graph: onnx.ModelProto,
    quantized: Quantized,
    samples: Samples,
    keep_float: frozenset[str],
    report: OnProgress,
) -> list[Step]:
    """All that could be widened, what gains most for its cost first."""
    noise = Noise(graph, quantized, {n: v[:PROBED] for n, v in samples.items()}, keep_float)
    wiring = Wiring(graph)
    macs, readers = layer_macs(graph), wiring.readers()
    shapes = wiring.infer(1)[0]
    steps: list[Step] = []
    for done, name in enumerate(noise.values, 1):
        kinds = set(noise.readers_deep(name)) or {False}
        for deep in sorted(kinds) if noise.widenable(name) else ():
            outputs = noise.of_value(name, sums=not deep, layers=deep)
            cost = sum(macs.get(n.name, 0) for n in readers.get(name, [])) if deep else 0
            steps.append(Step(value=name, deep=deep, noise=noise.error(outputs), macs=cost))
        report(Progress(step="probe", done=done, total=len(noise.values)))
    # What is no multiplication costs as much as one for each element.
    return sorted(steps, key=lambda s: s.noise / (s.macs + math.prod(shapes.get(s.value, ()))), reverse=True)


def _widened(steps: Sequence[Step]) -> dict[str, bool]:
    widened: dict[str, bool] = {}
    for step in steps:
        widened[step.value] = widened.get(step.value, False) or step.deep
    return widened


def _outputs(model: onnx.ModelProto, samples: Samples) -> dict[str, npt.NDArray[Any]]:
    run = onnx_function(model)
    count = len(next(iter(samples.values())))
    parts = [run({n: v[i : i + BATCH] for n, v in samples.items()}) for i in range(0, count, BATCH)]
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _sqnr_db(exact: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]]) -> float:
    """The least over the outputs, dB."""
    return min(sqnr_db(exact[n], found[n]) for n in exact)
