"""Golden vectors: what an artifact gives for its first samples, and how well ONNX Runtime must repeat it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.graph import onnx_function
from edgewright.parts import GraphPart
from edgewright.samples import Samples
from edgewright_kernels import Engine
from edgewright_kernels.plan import encode

GOLDEN_SAMPLES = 8
GOLDEN_BYTES = 24 << 20  # of inputs, and of what passes between parts; outputs come on top

# How far a part of ONNX Runtime may lie from its golden results on a device, as a share of the largest: what
# its own optimizations change here, eight times over, and never less than float32 sums differ by their order.
LEAST_TOLERANCE = 1e-4
MOST_TOLERANCE = 0.05
MARGIN = 8

Run = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


def golden_inputs(samples: Samples, one_bytes: int | None = None) -> Samples:
    """The first samples, as many as golden.npz has room for with their outputs.

    Args:
        samples: By input name.
        one_bytes: What one sample takes, where its inputs are not all.
    """
    one = one_bytes or sum(value[:1].nbytes for value in samples.values())
    return {n: v[: max(1, min(GOLDEN_SAMPLES, GOLDEN_BYTES // one))] for n, v in samples.items()}


def golden_of_parts(
    parts: Sequence[GraphPart], weights: bytes, samples: Samples
) -> tuple[Samples, Samples, list[float]]:
    """Runs a model in parts on its first samples.

    Args:
        parts: In order.
        weights: The bytes of weights.safetensors.
        samples: By input name.

    Returns:
        The inputs; every value that a part gives, by name; and the tolerance of each part, 0.0 for a program.

    Raises:
        ExportError: ONNX Runtime cannot run a part, or gives other results with its optimizations.
        KernelError: The native engine refuses a program.
    """
    runs = [_native(p, weights) if p.plan is not None else onnx_function(p.model) for p in parts]
    one = _chain(parts, runs, {n: v[:1] for n, v in samples.items()})
    inputs = golden_inputs(samples, sum(v.nbytes for v in one.values()))
    values = _chain(parts, runs, inputs)
    tolerances = [0.0 if p.plan is not None else _tolerance(p, values) for p in parts]
    return inputs, {n: v for n, v in values.items() if n not in inputs}, tolerances


def _native(part: GraphPart, weights: bytes) -> Run:
    assert part.plan is not None
    return Engine(encode(part.plan), weights).run


def _chain(parts: Sequence[GraphPart], runs: Sequence[Run], inputs: Samples) -> Samples:
    values = dict(inputs)
    for part, run in zip(parts, runs, strict=True):
        given = run({n: values[n] for n in part.inputs})
        values |= {n: np.ascontiguousarray(given[n]) for n in part.outputs}
    return values


def _tolerance(part: GraphPart, values: Samples) -> float:
    """What ONNX Runtime's optimizations change in a part's results, with a margin."""
    got = _optimized(part.model)({n: values[n] for n in part.inputs})
    changed = 0.0
    for name in part.outputs:
        want = values[name]
        if not np.isfinite(want).all():
            raise ExportError(f"value {name!r}: ONNX Runtime gives NaN or infinity on the first samples")
        largest = float(np.abs(want).max())
        changed = max(changed, float(np.abs(got[name] - want).max()) / (largest or 1.0))
    if changed > MOST_TOLERANCE:
        names = ", ".join(sorted({f.operator for f in part.fallbacks}))
        raise ExportError(
            f"ONNX Runtime's results for {names} differ by {changed:.2g} of the largest with its own "
            "optimizations, so no device could check them"
        )
    return float(min(MOST_TOLERANCE, max(LEAST_TOLERANCE, MARGIN * changed)))


def _optimized(model: onnx.ModelProto) -> Run:
    """The part as a device runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))
