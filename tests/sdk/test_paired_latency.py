"""Paired latency: the right verdict, soon, and no wrong one for what a machine does meanwhile."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from edgewright.latency import paired
from edgewright.paired_latency import compare_calls, slowdown_check
from edgewright.progress import Progress


class Machine:
    """Time that passes as calls say; what `compare_calls` measures with it is exact."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        self.now_ns = 0
        self.rng = np.random.default_rng(seed)
        defaults = paired.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "clock", lambda: self.now_ns)
        monkeypatch.setitem(defaults, "switches", lambda: 0)

    def call(self, microseconds: float) -> Callable[[], None]:
        def run() -> None:
            noise = np.exp(0.02 * self.rng.standard_t(2))  # heavy tails: no variance
            self.now_ns += int(1000 * microseconds * noise)

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_5_percent_is_found_within_250_pairs_either_way(machine: Machine) -> None:
    slower = compare_calls(machine.call(100), machine.call(105))
    faster = compare_calls(machine.call(105), machine.call(100))
    assert (slower.verdict, faster.verdict) == ("A is faster", "B is faster")
    assert max(slower.pairs, faster.pairs) <= 250
    assert slower.interval[0] <= 1.05 <= slower.interval[1]
    assert slower.interval[0] > 1.02


def test_equal_calls_are_equivalent(machine: Machine) -> None:
    found = compare_calls(machine.call(100), machine.call(100))
    assert found.verdict == "equivalent"
    assert 1 / 1.02 <= found.interval[0] <= 1 <= found.interval[1] <= 1.02


def test_a_budget_too_small_says_about_how_many_more_pairs_it_takes(machine: Machine) -> None:
    found = compare_calls(machine.call(100), machine.call(103.5), max_pairs=20)
    assert found.verdict == "cannot tell"
    assert found.pairs == 20
    assert found.pairs_needed is not None
    assert 10 < found.pairs_needed < 2000


def test_what_lies_on_the_edge_of_equal_is_not_told(machine: Machine) -> None:
    found = compare_calls(machine.call(100), machine.call(102), max_pairs=300)
    assert found.verdict == "cannot tell"


def test_a_bound_on_the_slowdown_ends_the_measuring_when_it_is_decided(machine: Machine) -> None:
    kept = slowdown_check(compare_calls(machine.call(100), machine.call(101), max_slowdown=0.05), 0.05)
    assert kept.verdict == "passed"
    broken = slowdown_check(compare_calls(machine.call(100), machine.call(120), max_slowdown=0.05), 0.05)
    assert broken.verdict == "failed"
    assert "bench --profile" in broken.remedy
    unknown = slowdown_check(
        compare_calls(machine.call(100), machine.call(104.9), max_slowdown=0.05, max_pairs=20), 0.05
    )
    assert unknown.verdict == "cannot tell"
    assert "--max-pairs" in unknown.remedy


def test_a_second_call_that_finds_warm_caches_does_not_look_faster(machine: Machine) -> None:
    turn = 0

    def run() -> None:
        nonlocal turn
        turn += 1
        machine.now_ns += 100_000 if turn % 2 else 80_000

    found = compare_calls(run, run, max_pairs=400)
    assert found.verdict == "cannot tell"  # the ratio is 0.8 or 1.25, as the order falls


def test_the_order_is_drawn_and_the_times_go_to_their_own_call() -> None:
    clock = iter(range(10**6))
    seen: list[str] = []
    pairs = paired(
        lambda: seen.append("a"),
        lambda: seen.append("b"),
        draw=random.Random(1),
        warmup=2,
        clock=lambda: next(clock),
        switches=lambda: 0,
    )
    found = list(islice(pairs, 40))
    pairs.close()
    assert len(found) == 40
    assert "".join(seen[:4]) == "abab"
    orders = {"".join(seen[i : i + 2]) for i in range(4, len(seen), 2)}
    assert orders == {"ab", "ba"}


def test_a_call_from_which_the_cpu_was_taken_is_timed_again() -> None:
    now_ns, taken, tries = 0, 0, 0

    def disturbed() -> None:
        nonlocal now_ns, taken, tries
        tries += 1
        now_ns += 500 if tries % 3 else 100
        taken += 1 if tries % 3 else 0

    def other() -> None:
        nonlocal now_ns
        now_ns += 200

    pairs = paired(
        disturbed, other, draw=random.Random(0), warmup=0, clock=lambda: now_ns, switches=lambda: taken
    )
    assert list(islice(pairs, 5)) == [(100, 200)] * 5
    pairs.close()
    always = paired(
        other,
        other,
        draw=random.Random(0),
        warmup=0,
        clock=lambda: now_ns,
        switches=iter(range(999)).__next__,
    )
    assert next(always) == (200, 200)
    always.close()


def test_the_collector_is_held_meanwhile_and_then_as_before() -> None:
    held: list[bool] = []
    compare_calls(lambda: held.append(gc.isenabled()), int, max_pairs=10)
    assert not any(held)
    assert gc.isenabled()


def test_progress_is_told_and_can_cancel(machine: Machine) -> None:
    def stop(report: Progress) -> None:
        assert (report.step, report.done, report.total) == ("compare: latency", 20, 2000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_calls(machine.call(100), machine.call(102), progress=stop)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "wrong", [{"equivalent": 0}, {"equivalent": 1}, {"max_slowdown": -0.1}, {"max_pairs": 9}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        compare_calls(int, int, **wrong)  # type: ignore[arg-type]
