"""Latency: every contestant once in each round, only the calls timed, the garbage collector held."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgewright.errors import ExportError
from edgewright.latency import Latency, measure, onnx_call
from sdk.graphs import graph, mlp, normal, saved


class Clock:
    """Nanoseconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def taking(self, durations_ms: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.now_ns += round(next(durations_ms) * 1e6)

        return call


def test_calls_take_turns_round_by_round() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    measure(calls, rounds=3, warmup=2)
    assert "".join(order) == "abc" * 5


def test_each_call_is_told_its_own_time_without_the_warmup() -> None:
    clock = Clock()
    calls = {
        "falling": clock.taking(iter([100.0, 100.0, 5.0, 4.0, 3.0, 2.0])),
        "steady": clock.taking(iter([0.5] * 6)),
    }
    assert measure(calls, rounds=4, warmup=2, clock=clock) == {
        "falling": Latency(min_ms=2.0, median_ms=3.5, rounds=4),
        "steady": Latency(min_ms=0.5, median_ms=0.5, rounds=4),
    }


def test_a_real_clock_gives_positive_times_in_order() -> None:
    found = measure({"sum": lambda: sum(range(1000))}, rounds=9, warmup=0)
    assert found.keys() == {"sum"}
    assert 0 < found["sum"].min_ms <= found["sum"].median_ms
    assert found["sum"].rounds == 9


@pytest.mark.parametrize(
    ("calls", "rounds", "warmup"), [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, -1, 5), ({"a": int}, 5, -1)]
)
def test_nothing_to_time_is_refused(calls: dict[str, Callable[[], object]], rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="a call and a round at least"):
        measure(calls, rounds=rounds, warmup=warmup)


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def collecting(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_the_collector_is_held_and_then_as_before(collecting: bool) -> None:
    seen: list[bool] = []
    measure({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=1)
    assert seen == [False] * 3
    assert gc.isenabled() == collecting


def test_a_call_that_fails_gives_the_collector_back(collecting: bool) -> None:
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: 1 // 0}, rounds=2)
    assert gc.isenabled() == collecting


# ONNX Runtime


def test_a_float_model_runs_on_inputs_in_the_graphs_order(tmp_path: Path) -> None:
    model = graph([("Sub", ["b", "a"], "y", {})], {"b": (4,), "a": (4,)}, {"y": (4,)})
    b, a = normal(3, 4, seed=1), normal(3, 4, seed=2)
    call = onnx_call(saved(model, tmp_path / "m.onnx"), [b, a], threads=2)
    np.testing.assert_array_equal(call(), [b - a])


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"nonsense")
    for name in ("none.onnx", "damaged.onnx"):
        with pytest.raises(ExportError, match=rf"{name}: ONNX Runtime cannot load it"):
            onnx_call(tmp_path / name, [normal(1, 8)])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "takes 1 inputs, 0 are given"),
        ([normal(1, 8)] * 2, "takes 1 inputs, 2 are given"),
        ([normal(1, 7)], "cannot run it on these inputs"),
        ([normal(1, 8).astype(np.float64)], "cannot run it on these inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_any_timing(
    tmp_path: Path, inputs: list[np.ndarray], message: str
) -> None:
    with pytest.raises(ExportError, match=rf"m\.onnx: .*{message}"):
        onnx_call(saved(mlp(), tmp_path / "m.onnx"), inputs)
