"""Where an artifact's time goes: each operator of its integer program, timed alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device import Artifact, Runner, RunnerError
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import (
    Convolution,
    FullyConnected,
    MatMul,
    Op,
    Plan,
    TransposedConvolution,
    decode,
    tensor_inputs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """The time of one operator, in the fastest of all runs.

    Attributes:
        number: Its place in the program, or in all of them together.
        operator: Its kind, such as "Convolution"; "onnxruntime" for all that ONNX Runtime runs of one part.
        output: Name of the tensor it writes.
        shape: Shapes read and written, and the window.
        start_us: When it began, counted from the start of the run.
        microseconds: How long it took.
        share: Of the whole run, 0..1.
        macs: Multiply-accumulates; 0 where it has none.
        read: Values read, weights aside; 0 for what ONNX Runtime runs.
        written: Values written; 0 for what ONNX Runtime runs.
    """

    number: int
    operator: str
    output: str
    shape: str
    start_us: float
    microseconds: float
    share: float
    macs: int
    read: int
    written: int

    @property
    def gmacs_per_s(self) -> float:
        """10^9 multiply-accumulates a second."""
        return self.macs / self.microseconds / 1e3 if self.microseconds else 0.0


def profile(
    artifact: Artifact, *, rounds: int = 100, warmup: int = 10, threads: int = 1
) -> tuple[OperatorTime, ...]:
    """Runs one golden sample many times on the native engine and times each operator.

    Of a model in parts, those of ONNX Runtime are timed as wholes.

    Reading the clock costs some 30 ns for each operator, which `edgewright bench` without a profile does not
    pay. Each operator's time is its fastest of all rounds, so their sum can lie below the fastest whole run.

    Args:
        artifact: With an integer program.
        rounds: Timed runs.
        warmup: Runs before them that are not timed.
        threads: Threads that share a run, as Runner's.

    Raises:
        ValueError: No round, or a number of threads that is not allowed.
        ArtifactError: The artifact has no integer program.
        RunnerError: The engine refuses the program.
    """
    if rounds < 1:
        raise ValueError("a profile needs a round at least")
    values = {name: np.ascontiguousarray(value[:1]) for name, value in artifact.golden_values().items()}
    rows: list[_Row] = []
    if not artifact.parts:
        rows += _program_rows(artifact, "plan.bin", values, rounds, warmup, threads)
    for place, part in enumerate(artifact.parts):
        if part.native:
            given = {n: values[n] for n in part.inputs}
            rows += _program_rows(artifact, part.file, given, rounds, warmup, threads)
        else:
            rows.append(
                _Row("onnxruntime", ", ".join(part.outputs), ", ".join(part.operators), 0, 0, 0, place, 0.0)
            )
    if artifact.parts:
        times = _part_times(artifact, values, rounds, warmup, threads)
        rows = [r if r.place is None else replace(r, microseconds=times[r.place]) for r in rows]
    ends = np.cumsum([r.microseconds for r in rows])
    return tuple(
        OperatorTime(
            number=number,
            operator=row.operator,
            output=row.output,
            shape=row.shape,
            start_us=float(end - row.microseconds),
            microseconds=float(row.microseconds),
            share=float(row.microseconds / ends[-1]),
            macs=row.macs,
            read=row.read,
            written=row.written,
        )
        for number, (row, end) in enumerate(zip(rows, ends, strict=True))
    )


@dataclass(frozen=True, slots=True)
class _Row:
    operator: str
    output: str
    shape: str
    macs: int
    read: int
    written: int
    place: int | None  # of a part of ONNX Runtime
    microseconds: float


def _program_rows(
    artifact: Artifact,
    file: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    rounds: int,
    warmup: int,
    threads: int,
) -> list[_Row]:
    data = artifact.read(file)
    try:
        plan = decode(data)
        engine = Engine(data, artifact.read("weights.safetensors"), threads=threads)
    except KernelError as error:
        raise RunnerError(f"{artifact.path}: {error}") from error
    feed = {plan.tensors[n].name: inputs[plan.tensors[n].name] for n in plan.inputs}
    times = [engine.profile(feed) for _ in range(warmup + rounds)][warmup:]
    fastest = np.min(np.array(times, np.int64).reshape(rounds, -1), axis=0) / 1e3
    return [
        _Row(
            type(op).__name__,
            plan.tensors[op.y].name,
            _shape(plan, op),
            operator_macs(plan, op),
            sum(plan.tensors[number].elements for number in tensor_inputs(op)),
            plan.tensors[op.y].elements,
            None,
            float(own),
        )
        for op, own in zip(plan.ops, fastest, strict=True)
    ]


def _part_times(
    artifact: Artifact, values: Mapping[str, npt.NDArray[Any]], rounds: int, warmup: int, threads: int
) -> list[float]:
    """Microseconds of each part, in the fastest of all runs."""
    runner = Runner(artifact, threads=threads)
    times: list[list[float]] = []
    for _ in range(warmup + rounds):
        times.append([])
        start = time.perf_counter()
        for _ in runner.run_parts(values):
            times[-1].append(1e6 * (time.perf_counter() - start))
            start = time.perf_counter()
    return [float(t) for t in np.min(times[warmup:], axis=0)]


def operator_macs(plan: Plan, op: Op) -> int:
    """Multiply-accumulates of an operator for one sample; padding counts, as is usual."""
    written = plan.tensors[op.y].shape
    if isinstance(op, MatMul):
        return math.prod(written) * plan.tensors[op.a].shape[-1]
    if isinstance(op, FullyConnected):
        return math.prod(written) * plan.tensors[op.x].shape[-1]
    if isinstance(op, Convolution):
        return math.prod(written) * (plan.tensors[op.x].shape[-1] // op.groups) * op.window.taps
    if isinstance(op, TransposedConvolution):
        return plan.tensors[op.x].elements * (written[-1] // op.groups) * op.window.taps
    return 0


def _shape(plan: Plan, op: Op) -> str:
    read = [plan.tensors[number].shape for number in tensor_inputs(op)]
    text = f"{', '.join(map(_sizes, read))} → {_sizes(plan.tensors[op.y].shape)}"
    window = getattr(op, "window", None)
    if window is not None:
        stride = f"/{_sizes(window.stride)}" if set(window.stride) != {1} else ""
        text += f", {_sizes(window.kernel)}{stride}"
    groups = getattr(op, "groups", 1)
    return text + (f", {groups} groups" if groups > 1 else "")


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def chrome_trace(times: Sequence[OperatorTime]) -> dict[str, Any]:
    """The profile as a trace that chrome://tracing and Perfetto open.

    Format: the JSON object form of the Trace Event Format, complete events ("ph": "X"), microseconds.
    """
    events = [
        {
            "name": f"{t.number} {t.operator}",
            "cat": t.operator,
            "ph": "X",
            "ts": t.start_us,
            "dur": t.microseconds,
            "pid": 0,
            "tid": 0,
            "args": {"output": t.output, "shape": t.shape, "gmacs_per_s": round(t.gmacs_per_s, 2)},
        }
        for t in times
    ]
    return {"traceEvents": events, "displayTimeUnit": "ns"}
