"""The simulation of `make bench-compare`, small."""

from __future__ import annotations

import compare
import numpy as np


def test_few_false_alarms_under_any_number_of_looks_and_5_percent_found_in_time() -> None:
    rng = np.random.default_rng(0)
    machine = 100 * np.exp(0.02 * rng.standard_t(2, (3000, 2)))
    machine[:, 1] *= 0.99  # the second of a pair finds warmer caches, on this one
    runs = compare.simulate([machine, np.sort(machine, axis=0)], 60, 600, seed=0)
    assert sum(r.alarm for r in runs) <= 3
    assert sum(r.naive_alarm for r in runs) > 12  # an ordinary interval, looked at as often
    assert sum(r.wrong for r in runs) <= 3
    plain = [r.pairs for r in runs if not r.harsh and r.recording == 0]
    assert all(p is not None and p <= 250 for p in plain)


def test_signs_decide_as_the_product_does() -> None:
    from edgewright_ota import MedianSequence

    rng = np.random.default_rng(1)
    x = rng.normal(0.02, 0.03, 200)
    needed = compare.thresholds(200)
    sequence = MedianSequence()
    first = None
    for value in x:
        sequence.add(value)
        if first is None and sequence.interval()[0] > 0:
            first = sequence.count
    assert first == compare.first_said(x > 0, needed)
