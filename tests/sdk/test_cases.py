"""Generated cases: of five kinds, within the calibrated range, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgewright.cases import NOISE, STRATA, Cases, beyond_range, generate
from edgewright_device import Port
from sdk.graphs import normal


def port(name: str, shape: tuple[int, ...], low: float = -2.0, high: float = 3.0) -> Port:
    return Port(
        name=name,
        shape=(None, *shape),
        dtype="float32",
        scale=1.0,
        zero_point=0,
        minimum=float(np.float32(low)),
        maximum=float(np.float32(high)),
    )


PORTS = (port("image", (2, 5, 6)), port("vector", (4,), -0.1, 0.1), port("constant", (3,), 0.7, 0.7))
SAMPLES = {"image": normal(50, 2, 5, 6), "vector": normal(50, 4), "constant": normal(50, 3)}


@pytest.mark.parametrize("count", [20, 21, 99, 1000])
def test_strata_add_up_to_the_count_in_their_shares(count: int) -> None:
    cases = generate(PORTS, SAMPLES, count, 0)
    counts = Counter(cases.strata.tolist())
    assert len(cases) == sum(counts.values()) == count
    assert set(counts) == set(STRATA)
    for kind, share in STRATA.items():
        assert abs(counts[kind] - count * share / 100) <= 5
    assert all(len(v) == count for v in cases.inputs.values())


def test_every_case_lies_within_the_range_of_its_port() -> None:
    cases = generate(PORTS, SAMPLES, 500, 3)
    for p in PORTS:
        values = cases.inputs[p.name]
        assert values.dtype == np.float32
        assert values.shape[1:] == p.shape[1:]
        assert values.min() >= p.minimum
        assert values.max() <= p.maximum


def same(a: Cases, b: Cases) -> bool:
    return all(a.inputs[n].tobytes() == b.inputs[n].tobytes() for n in a.inputs)


def test_the_seed_fixes_the_cases() -> None:
    assert same(generate(PORTS, SAMPLES, 100, 7), generate(PORTS, SAMPLES, 100, 7))
    assert not same(generate(PORTS, SAMPLES, 100, 7), generate(PORTS, SAMPLES, 100, 8))
    assert same(beyond_range(PORTS, SAMPLES, 20, 7), beyond_range(PORTS, SAMPLES, 20, 7))
    assert not same(beyond_range(PORTS, SAMPLES, 20, 7), beyond_range(PORTS, SAMPLES, 20, 8))


def test_samples_are_left_alone() -> None:
    before = {n: v.copy() for n, v in SAMPLES.items()}
    generate(PORTS, SAMPLES, 200, 0)
    beyond_range(PORTS, SAMPLES, 50, 0)
    for name, value in SAMPLES.items():
        np.testing.assert_array_equal(value, before[name])


def test_each_kind_is_what_it_says() -> None:
    wide = (port("image", (2, 5, 6), -100, 100),)
    samples = {"image": SAMPLES["image"]}
    cases = generate(wide, samples, 400, 1)
    values = {kind: cases.inputs["image"][cases.strata == kind] for kind in STRATA}
    known = {row.tobytes() for row in samples["image"]}
    assert {row.tobytes() for row in values["sample"]} == known  # 160 draws of 50; each is there
    distances = np.abs(values["noise"][:, None] - samples["image"][None]).max(axis=(2, 3, 4)).min(axis=1)
    assert (distances <= NOISE * 200 + 1e-4).all()
    assert (distances > 0).all()
    for row in values["shift"]:
        assert np.isin(np.sort(row, axis=None), np.sort(samples["image"], axis=None)).all()
        assert row.tobytes() not in known
    low, high = samples["image"].min(), samples["image"].max()
    assert (values["between"] >= low).all()
    assert (values["between"] <= high).all()
    touching = [np.isclose(np.abs(row).max(), 100) or np.ptp(row) == 0 for row in values["edge"]]
    assert all(touching)


def test_few_samples_are_each_used_before_any_is_used_again() -> None:
    cases = generate(PORTS[:1], {"image": SAMPLES["image"]}, 100, 0)
    rows = [row.tobytes() for row in cases.inputs["image"][cases.strata == "sample"]]
    assert len(set(rows)) == len(rows) == 40


def test_one_constant_sample_is_enough() -> None:
    cases = generate(PORTS[:1], {"image": np.zeros((1, 2, 5, 6), np.float32)}, 50, 0)
    assert np.isfinite(cases.inputs["image"]).all()


def test_beyond_the_range_there_is_all_that_must_not_break_an_engine() -> None:
    values = beyond_range(PORTS, SAMPLES, 50, 0).inputs["image"]
    assert np.isnan(values).any()
    assert np.isinf(values).any()
    assert (values > 1e29).any()
    assert (np.abs(values[np.isfinite(values)]) > 10).any()
