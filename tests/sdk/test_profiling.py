"""The profile: every operator of the program, in its order, with its work."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from edgewright.exporting import export
from edgewright.profiling import OperatorTime, chrome_trace, profile
from edgewright_device import Artifact
from edgewright_kernels import Engine
from sdk.graphs import graph, normal, saved


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("profile")
    nodes: list[Any] = [
        ("Conv", ["x", "w"], "h", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", ["h", "d"], "c", {"group": 8}),
        ("MaxPool", ["c"], "m", {"kernel_shape": [2, 2]}),
        ("Flatten", ["m"], "f", {}),
        ("Gemm", ["f", "v"], "y", {"transB": 1}),
    ]
    constants = {"w": normal(8, 3, 3, 3), "d": normal(8, 1, 3, 3), "v": normal(5, 8)}
    model = graph(nodes, {"x": (3, 8, 8)}, {"y": (5,)}, constants)
    return export(
        saved(model, folder / "m.onnx"), target="x86-64", calibration=normal(50, 3, 8, 8), out=folder / "m.ew"
    )


@pytest.fixture(scope="module")
def times(artifact: Artifact) -> tuple[OperatorTime, ...]:
    return profile(artifact, rounds=3)


def test_operators_come_in_the_order_of_the_program_with_their_work(times: tuple[OperatorTime, ...]) -> None:
    assert [(t.number, t.operator, t.macs) for t in times if t.macs] == [
        (1, "Convolution", 4 * 4 * 8 * 27),
        (2, "Convolution", 2 * 2 * 8 * 9),
        (len(times) - 2, "FullyConnected", 5 * 8),
    ]
    assert [t.number for t in times] == list(range(len(times)))
    assert times[1].shape == "8x8x3 → 4x4x8, 3x3/2x2"
    assert times[2].shape == "4x4x8 → 2x2x8, 3x3, 8 groups"


def test_shares_are_of_the_whole(times: tuple[OperatorTime, ...]) -> None:
    assert all(t.microseconds > 0 for t in times)
    assert sum(t.share for t in times) == pytest.approx(1)
    assert times[1].gmacs_per_s == pytest.approx(times[1].macs / times[1].microseconds / 1e3)


def test_the_trace_has_one_event_after_the_other(times: tuple[OperatorTime, ...]) -> None:
    events = chrome_trace(times)["traceEvents"]
    assert [e["name"] for e in events] == [f"{t.number} {t.operator}" for t in times]
    for before, after in pairwise(events):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])


def test_a_profile_needs_a_round(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="needs a round"):
        profile(artifact, rounds=0)


def test_the_engine_profiles_one_sample_and_checks_it_as_a_run_does(artifact: Artifact) -> None:
    engine = Engine(artifact.read("plan.bin"), artifact.read("weights.safetensors"))
    with pytest.raises(ValueError, match="one sample"):
        engine.profile({"x": normal(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="'x' is missing"):
        engine.profile({})
