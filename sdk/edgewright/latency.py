"""Latency: paired and interleaved, so that a noisy machine disturbs all contestants alike."""

from __future__ import annotations

import gc
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgewright.errors import ExportError

TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one call.

    Attributes:
        min_ms: The fastest, ms.
        median_ms: The middle one, ms.
        rounds: How many were timed.
    """

    min_ms: float
    median_ms: float
    rounds: int


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 200,
    warmup: int = 20,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Latency]:
    """Times calls in turn, round by round, with the garbage collector held.

    Args:
        calls: What to time, by name.
        rounds: Timed rounds; each calls everything once.
        warmup: Rounds before them that are not timed.
        clock: Nanoseconds, never running back.

    Raises:
        ValueError: Nothing to time, no round, or a warm-up below zero.
    """
    if not calls or rounds < 1 or warmup < 0:
        raise ValueError("measure needs a call and a round at least, and no warm-up below zero")
    times: dict[str, list[int]] = {name: [] for name in calls}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(warmup + rounds):
            for name, call in calls.items():
                start = clock()
                call()
                stop = clock()
                if index >= warmup:
                    times[name].append(stop - start)
    finally:
        if was_enabled:
            gc.enable()
    return {
        name: Latency(min_ms=min(t) / 1e6, median_ms=statistics.median(t) / 1e6, rounds=rounds)
        for name, t in times.items()
    }


def context_switches() -> int:
    """How often the system took a CPU from this process for another one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    draw: random.Random,
    warmup: int = 20,
    clock: Callable[[], int] = time.perf_counter_ns,
    switches: Callable[[], int] = context_switches,
) -> Generator[tuple[int, int]]:
    """Times two calls, pair by pair, as long as it is asked; the garbage collector is held meanwhile.

    Which one comes first is drawn anew for each pair. So where both take equally long, either is the slower
    of a pair with the same chance, whatever came before and however the machine drifts. A call during which
    the system took the CPU away is timed again, up to `TRIES` times: its time is that of another program.

    Args:
        a: One call.
        b: The other.
        draw: Draws the orders.
        warmup: Pairs before that are not timed.
        clock: Nanoseconds, never running back.
        switches: Rises when the CPU is taken away.

    Yields:
        Nanoseconds of `a` and of `b`.
    """

    def timed(call: Callable[[], object]) -> int:
        fastest = sys.maxsize
        for _ in range(TRIES):
            before = switches()
            start = clock()
            call()
            took = clock() - start
            if switches() == before:
                return took
            fastest = min(fastest, took)
        return fastest

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(warmup):
            a()
            b()
        while True:
            if draw.random() < 0.5:
                of_a = timed(a)
                yield of_a, timed(b)
            else:
                of_b = timed(b)
                yield timed(a), of_b
    finally:
        if was_enabled:
            gc.enable()


def onnx_call(
    path: Path,
    inputs: Sequence[npt.NDArray[Any]] | Mapping[str, npt.NDArray[Any]],
    *,
    threads: int = 1,
) -> Callable[[], list[npt.NDArray[Any]]]:
    """One call of an `.onnx` file, float or QDQ, in ONNX Runtime with its fastest kernels.

    Those for QDQ graphs may saturate on x86 without VNNI; the backend "onnxruntime" of Runner has them exact.

    Args:
        path: The file.
        inputs: In the graph's order, or by name.
        threads: Threads that share the call.

    Returns:
        What runs it and gives its outputs, in the graph's order.

    Raises:
        ExportError: ONNX Runtime cannot load the file, or run it on these inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise ExportError(f"{path}: ONNX Runtime cannot load it ({error})") from error
    names = [i.name for i in session.get_inputs()]
    if len(names) != len(inputs):
        raise ExportError(f"{path}: takes {len(names)} inputs, {len(inputs)} are given")
    feed = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
    try:
        session.run(None, feed)
    except Exception as error:  # as above
        raise ExportError(f"{path}: ONNX Runtime cannot run it on these inputs ({error})") from error

    def call() -> list[npt.NDArray[Any]]:
        outputs: list[npt.NDArray[Any]] = session.run(None, feed)
        return outputs

    return call
