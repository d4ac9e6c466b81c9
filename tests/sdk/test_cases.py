"""Generated cases: of seven kinds, within the calibrated range, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from edgewright.cases import (
    FIRST_BATCHES,
    NOISE,
    STRATA,
    Cases,
    beyond_range,
    generate,
    outside,
    range_check,
    swept_lengths,
)
from edgewright.token_cases import TokenLayout, in_order
from edgewright_device import Lengths, Port
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
SCORES = SAMPLES["image"].reshape(50, -1)[:30, :3]  # of the first 30, three classes
DRIVERS = np.array([4, 4, 7])


@pytest.mark.parametrize("count", [20, 21, 99, 1000])
def test_strata_add_up_to_the_count_in_their_shares(count: int) -> None:
    cases = generate(PORTS, SAMPLES, count, 0, scores=SCORES, drivers=DRIVERS)
    counts = Counter(cases.strata.tolist())
    assert len(cases) == sum(counts.values()) == count
    assert set(counts) == set(STRATA)
    for kind, share in STRATA.items():
        assert abs(counts[kind] - count * share / 100) <= 6
    assert all(len(v) == count for v in cases.inputs.values())


def test_what_nothing_is_known_for_is_left_out() -> None:
    assert set(generate(PORTS, SAMPLES, 100, 0).strata) == set(STRATA) - {"inner", "boundary"}
    alike = np.tile(SCORES[:1], (30, 1))
    assert "boundary" not in generate(PORTS, SAMPLES, 100, 0, scores=alike).strata


def test_every_case_lies_within_the_range_of_its_port() -> None:
    cases = generate(PORTS, SAMPLES, 500, 3, scores=SCORES, drivers=DRIVERS)
    assert not outside(cases.inputs, cases.bounds).any()
    assert range_check(0).verdict == "passed"
    for p in PORTS:
        values = cases.inputs[p.name]
        assert values.dtype == np.float32
        assert values.shape[1:] == p.shape[1:]
        assert values.min() >= p.minimum
        assert values.max() <= p.maximum


@pytest.mark.parametrize("value", [3.001, -2.001, np.nan, np.inf])
def test_one_value_beyond_the_range_is_found(value: float) -> None:
    cases = generate(PORTS, SAMPLES, 30, 3)
    inputs = {n: v.copy() for n, v in cases.inputs.items()}
    inputs["image"][17, 1, 4, 5] = value
    assert np.flatnonzero(outside(inputs, cases.bounds)).tolist() == [17]
    assert range_check(1).verdict == "failed"
    assert "real samples" in range_check(1).remedy


@pytest.mark.parametrize("size", [1, 2, 13, 200, 400])
def test_the_seed_fixes_each_case_whatever_the_batch(size: int) -> None:
    cases = generate(PORTS, SAMPLES, 200, 5, scores=SCORES, drivers=DRIVERS)
    whole = cases.inputs
    for start in range(0, 200, size):
        for name, values in cases.batch(start, start + size).items():
            assert values.tobytes() == whole[name][start : start + size].tobytes()
    batches = [b for chunk in cases.chunks(size) for b in chunk]
    for name, values in whole.items():
        assert np.concatenate([b[name] for b in batches]).tobytes() == values.tobytes()
    some = np.array([150, 3, 199, 77])
    for name, values in cases.chosen(some).chosen(np.array([2, 0])).inputs.items():
        assert values.tobytes() == whole[name][[199, 150]].tobytes()


def test_all_cases_are_run_in_batches_of_one_two_odd_and_large_sizes() -> None:
    cases = generate(PORTS, SAMPLES, 113, 0)
    sizes = [len(b["image"]) for chunk in cases.chunks(50) for b in chunk]
    assert sizes == [*FIRST_BATCHES, 50, 50]
    assert sum(len(b["image"]) for chunk in cases.chunks(1000) for b in chunk) == 113
    assert [len(b["image"]) for chunk in cases.chosen(np.arange(2)).chunks(1) for b in chunk] == [1, 1]


def test_large_cases_are_drawn_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.cases.CHUNK_VALUES", 300)
    cases = generate(PORTS[:1], {"image": SAMPLES["image"]}, 40, 0)
    drawn = [[len(b["image"]) for b in chunk] for chunk in cases.chunks(4)]
    assert max(map(sum, drawn)) <= 5  # of 60 values each
    assert sum(map(sum, drawn)) == 40


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
    cases = generate(wide, samples, 400, 1, drivers=DRIVERS)
    values = {kind: cases.inputs["image"][cases.strata == kind] for kind in STRATA}
    known = {row.tobytes() for row in samples["image"]}
    assert {row.tobytes() for row in values["sample"]} == known  # 160 draws of 50; each is there
    distances = np.abs(values["noise"][:, None] - samples["image"][None]).max(axis=(2, 3, 4)).min(axis=1)
    assert (distances <= NOISE * 200 + 1e-4).all()
    assert (distances > 0).all()
    for row in values["shift"]:  # of noise no axis is smooth
        assert any(np.ptp(row / x) < 1e-3 and 0.8 <= (row / x).mean() <= 1 for x in samples["image"])
    low, high = samples["image"].min(), samples["image"].max()
    assert (values["between"] >= low).all()
    assert (values["between"] <= high).all()
    for row in values["inner"]:
        stretches = [(row - row.mean()) / (d - d.mean()) for d in samples["image"][[4, 7]]]
        assert any(np.ptp(s) < 1e-2 and 1 <= s.mean() <= 1.5 for s in stretches)
    touching = [np.isclose(np.abs(row).max(), 100) or np.ptp(row) == 0 for row in values["edge"]]
    assert all(touching)


def test_samples_are_moved_along_axes_on_which_neighbours_are_alike() -> None:
    rows = np.cumsum(normal(20, 1, 30, 8), axis=2)  # smooth from row to row, not from column to column
    wide = port("image", (1, 30, 8), -100, 100)
    cases = generate((wide,), {"image": rows}, 200, 0)
    moved = {x.tobytes() for x in (np.concatenate([r[:, :1], r[:, :-1]], 1) for r in rows)}
    moved |= {x.tobytes() for x in (np.concatenate([r[:, 1:], r[:, -1:]], 1) for r in rows)}
    shifted = cases.inputs["image"][cases.strata == "shift"]
    assert len(shifted) == 20
    assert all(row.tobytes() in moved for row in shifted)


def test_few_samples_are_each_used_before_any_is_used_again() -> None:
    cases = generate(PORTS[:1], {"image": SAMPLES["image"]}, 100, 0)
    rows = [row.tobytes() for row in cases.inputs["image"][cases.strata == "sample"]]
    assert len(set(rows)) == len(rows) == 45


def test_one_constant_sample_is_enough() -> None:
    cases = generate(PORTS[:1], {"image": np.zeros((1, 2, 5, 6), np.float32)}, 50, 0)
    assert np.isfinite(cases.inputs["image"]).all()


def test_beyond_the_range_there_is_all_that_must_not_break_an_engine() -> None:
    values = beyond_range(PORTS, SAMPLES, 50, 0).inputs["image"]
    assert np.isnan(values).any()
    assert np.isinf(values).any()
    assert (values > 1e29).any()
    assert (np.abs(values[np.isfinite(values)]) > 10).any()


# Between classes


def linear(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return inputs.reshape(len(inputs), -1)[:, :3]


def margins(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    ordered = np.sort(scores, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def test_boundary_cases_lie_where_two_classes_are_near_one_another() -> None:
    wide = (port("image", (2, 5, 6), -100, 100),)
    images = SAMPLES["image"]
    cases = generate(wide, {"image": images}, 1000, 2, scores=linear(images[:30]))
    at = cases.inputs["image"][cases.strata == "boundary"]
    known = {row.tobytes() for row in images}
    mixtures = np.array([row.tobytes() not in known for row in at])
    # The model is a line, so that two classes are equal where they should be; a third may lie above both.
    assert np.median(margins(linear(at[mixtures]))) < 1e-5
    narrow = margins(linear(at[~mixtures]))
    assert len(narrow) == len({row.tobytes() for row in at[~mixtures]}) == 7
    assert narrow.max() <= np.sort(margins(linear(images[:30])))[6]


def test_mixtures_are_of_two_classes_where_they_are_known() -> None:
    ports, images = (port("v", (2,), -10, 10),), np.array([[1, 0], [2, 0], [0, 1], [0, 3]], np.float32)
    cases = generate(ports, {"v": images}, 400, 0, scores=images)
    between = cases.inputs["v"][cases.strata == "between"]
    assert (between > 0).all()  # of one class alone, one of the two would be 0


# Tokens


def sentences(count: int = 40, length: int = 12, masked: bool = True) -> dict[str, npt.NDArray[np.int64]]:
    """[CLS] = 1, words of 10 to 99, [SEP] = 2, then padding of 0."""
    random = np.random.default_rng(0)
    ends = random.integers(3, length + 1, count) if masked else np.full(count, length)
    ids = random.integers(10, 100, (count, length))
    mask = (np.arange(length) < ends[:, None]).astype(np.int64)
    ids[:, 0] = 1
    ids[np.arange(count), ends - 1] = 2
    return {"ids": ids * mask, "mask": mask, "types": np.zeros_like(mask)}


def token_port(name: str, maximum: int) -> Port:
    return Port(
        name=name, shape=(None, 12), dtype="int64", scale=0.0, zero_point=0, minimum=0, maximum=maximum
    )


TOKENS = (token_port("ids", 99), token_port("mask", 1), token_port("types", 1))


@pytest.mark.parametrize("masked", [True, False])
def test_sentences_stay_sentences(masked: bool) -> None:
    samples = sentences(masked=masked)
    cases = generate(TOKENS, samples, 600, 0, scores=SCORES[:, :2])
    ids, mask = cases.inputs["ids"], cases.inputs["mask"]
    assert set(cases.strata) == set(STRATA) - {"inner"}
    assert in_order(mask).all()
    assert (ids[:, 0] == 1).all()
    assert (ids[np.arange(600), mask.sum(1) - 1] == 2).all()
    assert (ids[mask == 0] == 0).all()
    assert (cases.inputs["types"] == 0).all()
    inner = ids.copy()
    inner[:, 0] = 10
    inner[np.arange(600), mask.sum(1) - 1] = 10
    words = inner[(mask == 1) & (cases.strata != "edge")[:, None]]
    assert words.min() >= 10  # no end and no padding came inside
    assert not outside(cases.inputs, cases.bounds).any()
    lengths = mask[cases.strata == "edge"].sum(1)
    assert lengths.min() == 3
    assert lengths.max() == 12
    for kind in ("between", "noise", "shift", "edge"):
        known = {row.tobytes() for row in samples["ids"]}
        changed = [row.tobytes() not in known for row in ids[cases.strata == kind]]
        assert np.mean(changed) > 0.2, kind


def test_a_sequence_without_a_mask_may_change_all_through() -> None:
    samples = {"ids": np.random.default_rng(0).integers(0, 50, (40, 12))}
    assert TokenLayout.of(TOKENS[:1], samples).mask is None
    ids = generate(TOKENS[:1], samples, 400, 0).inputs["ids"]
    assert ids.min() >= 0
    assert ids.max() <= 99


def test_numbers_that_calibration_did_not_see_are_taken_from_samples() -> None:
    samples = {"ids": np.random.default_rng(0).integers(90, 120, (40, 12))}
    cases = generate(TOKENS[:1], samples, 200, 0)
    assert cases.bounds["ids"] == (0.0, float(samples["ids"].max()))
    assert not outside(cases.inputs, cases.bounds).any()


def test_lengths_are_swept_with_those_that_are_padded() -> None:
    assert swept_lengths(None) == ()
    assert swept_lengths(Lengths(sizes=(8, 16, 32), mask=None)) == (8, 16)
    assert swept_lengths(Lengths(sizes=(8, 16, 32), mask="mask")) == (1, 7, 8, 15, 16, 31)
