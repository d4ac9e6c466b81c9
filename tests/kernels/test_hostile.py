"""Plans that the fuzzer made, and both readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright_kernels import Engine, PlanError, UnsupportedError, cpu_paths
from kernels.readers import ACCEPTED, DAMAGED, UNSUPPORTED, Pair, difference, read_case

CASES = sorted((Path(__file__).parents[1] / "hostile" / "plans").glob("*.case"))


def test_there_are_many_and_they_are_small() -> None:
    assert len(CASES) > 80
    assert sum(case.stat().st_size for case in CASES) < 200_000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_both_readers_say_the_same_of_it(case: Path) -> None:
    plan, weights = read_case(case)
    for cpu in cpu_paths():
        try:
            Engine(plan, weights, cpu=cpu)
            verdict, message = ACCEPTED, ""
        except (PlanError, UnsupportedError) as error:
            verdict, message = UNSUPPORTED if isinstance(error, UnsupportedError) else DAMAGED, str(error)
        assert difference(Pair(verdict=verdict, plan=plan, weights=weights, message=message)) is None
