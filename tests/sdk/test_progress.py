"""How long a job will still take, over all of its steps."""

from __future__ import annotations

import pytest

from edgewright.progress import Progress, Remaining


def _estimates(shares: dict[str, float], reports: list[tuple[float, Progress]]) -> list[float | None]:
    """What is said at each report, which comes at so many seconds."""
    now, seen = [0.0], list[Progress]()
    tell = Remaining(seen.append, shares, clock=lambda: now[0])
    for at, report in reports:
        now[0] = at
        tell(report)
    return [each.remaining_s for each in seen]


def _at(step: str, done: int, total: int = 10, begun: int = 0) -> Progress:
    return Progress(step=step, done=done, total=total, begun=begun)


def test_the_rest_of_this_step_and_all_that_follow_are_counted() -> None:
    said = _estimates(
        {"distill": 3, "prune": 1, "finetune": 2},
        [
            (6, _at("distill", 2)),
            (30, _at("distill", 10)),
            (40, _at("prune", 1, 1)),
            (50, _at("finetune", 5)),
        ],
    )
    assert said == pytest.approx([24 + 30, 30, 20, 10])


def test_a_step_slower_than_its_share_is_seen() -> None:
    said = _estimates({"a": 1, "b": 1}, [(10, _at("a", 10)), (50, _at("b", 5))])
    assert said == pytest.approx([10, 40])


def test_what_was_done_before_this_run_does_not_make_it_look_fast() -> None:
    said = _estimates(
        {"a": 1, "b": 2}, [(0, _at("a", 10, begun=10)), (4, _at("b", 6, begun=5)), (8, _at("b", 7, begun=5))]
    )
    assert said == pytest.approx([None, 16, 12])


def test_what_nobody_knows_is_not_said() -> None:
    assert _estimates({"a": 1, "b": 2}, [(5, _at("a", 0)), (6, _at("a", 1))]) == [None, 54 + 120]


def test_a_step_that_was_not_planned_counts_while_it_runs() -> None:
    said = _estimates({"a": 1, "b": 1}, [(10, _at("a", 10)), (20, _at("extra", 5)), (30, _at("b", 5))])
    assert said == pytest.approx([10, 10 + 10, 10])
