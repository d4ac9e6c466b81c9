"""The INT8 benchmark's own logic: its networks, its files for the peers, its race, its table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tables
from networks import NETWORKS, Network, cost
from peers import PROBE_TERMS, Files, Probe, entries, probe_samples, unsigned_weights, write_files
from race import LEAST_ROUNDS, Times, race, started

from edgewright_device import Runner

PUBLISHED = {  # multiply-accumulates and parameters
    "bert-base": (11_173_625_856, 85_054_464),  # 12 x (4 x 768^2 + 2 x 768 x 3072) x 128, and attention
    "minilm": (6 * (4 * 384**2 + 2 * 384 * 1536) * 128 + 6 * 2 * 128**2 * 384 + 2 * 384, 22_566_146),
    "resnet50": (4_089_184_256, 25_557_032),
    "mobilenetv2": (300_774_272, 3_504_872),
    "resnet8": (12_501_632, 78_186),  # 78,666 with the 480 statistics of batch norm
    "ds-cnn": (2_656_768, 23_756),  # 24,908 with the 1,152 statistics of batch norm
}


def network(name: str) -> Network:
    return next(n for n in NETWORKS if n.name == name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_costs_what_is_published(name: str) -> None:
    assert cost(network(name)) == PUBLISHED[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    chosen = network("ds-cnn")
    folder = tmp_path_factory.mktemp("files")
    return write_files(chosen.module(), {"x": chosen.samples(8)}, folder, chosen.name)


def test_every_peer_runs_the_same_network_and_takes_part_in_the_race(files: Files, tmp_path: Path) -> None:
    with np.load(files.inputs) as archive:
        exact = Runner(files.artifact, backend="reference").run(dict(archive))["y"]
    step = files.artifact.outputs[0].scale
    with started(entries(files, None)) as contestants:
        names = [c.name for c in contestants]
        assert {"ONNX Runtime FP32", "ONNX Runtime u8s8", "ONNX Runtime u8u8", "LiteRT INT8"} < set(names)
        for contestant in contestants:
            found = contestant.save(tmp_path / "outputs.npz")["y"]
            allowed = 20 if "FP32" in contestant.name else 3  # float has no grid; peers round in other ways
            if contestant.name.startswith("Edgewright"):
                allowed = 0
            if contestant.name != "ONNX Runtime u8s8":  # which saturates on CPUs without VNNI
                assert np.abs(found - exact).max() <= (allowed + 0.01) * step, contestant.name
        times = race(contestants, seconds=0)
    assert list(times) == names
    assert all(len(t.rounds) == LEAST_ROUNDS and 0 < t.min_ms <= t.median_ms for t in times.values())


def test_uint8_weights_stand_for_the_same_numbers(files: Files) -> None:
    signed = onnx.load(files.u8s8)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in signed.graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in unsigned_weights(signed).graph.initializer}
    weights = [n for n, v in before.items() if v.dtype == np.int8 and v.ndim > 1]
    assert len(weights) == 10
    for name in weights:
        zero_point = after[f"{name}_zero_point"]
        assert zero_point.dtype == after[name].dtype == np.uint8
        assert (after[name] - zero_point[0].astype(int) == before[name]).all()


def test_the_probe_tells_sums_that_saturate_at_16_bits() -> None:
    weight = Probe().linear.weight.detach().numpy().astype(int) * 127
    x = probe_samples()["vector"][0].astype(int) * 255
    products = (x * weight).reshape(-1, PROBE_TERMS // 2, 2).sum(2)
    exact, saturated = products.sum(1), np.clip(products, -(2**15), 2**15 - 1).sum(1)
    step = (exact.max() - exact.min()) / 255
    assert np.abs(exact - saturated).max() > 10 * step


class Pretender:
    """A contestant that notes when it is called; each call takes 5 ms."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, count: int) -> list[int]:
        self.log.append(self.name)
        return [5_000_000] * count


def test_contestants_take_turns() -> None:
    log: list[str] = []

    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 1.0

    ticks = clock()
    both: list[Any] = [Pretender("a", log), Pretender("b", log)]
    times = race(both, seconds=20, clock=lambda: next(ticks))
    assert log[4:] == ["a", "b"] * ((len(log) - 4) // 2)  # after two calls of each to learn their pace
    assert len(times["a"].rounds) >= 20 - 1
    assert {len(r) for r in times["a"].rounds} == {2}  # 10 ms worth of calls


def test_ratios_are_of_the_same_round() -> None:
    slow, fast = Times(((30, 20), (40, 90))), Times(((10, 15), (20, 25)))
    assert slow.ratios(fast) == [2.0, 2.0]


def test_the_table_says_who_was_best_and_what_was_not_reached() -> None:
    def row(peer: str, ms: float, exact: bool | None) -> dict[str, Any]:
        return {"model": "resnet8", "peer": peer, "min_ms": ms, "median_ms": 2 * ms, "exact": exact}

    result = {
        "command": "make bench-int8",
        "machine": {"cpu": "c", "cores": 2, "memory": "m", "python": "p", "versions": {"numpy": "1"}},
        "rows": [row("Edgewright avx2", 0.2, True), row("A", 0.1, False), row("B FP32", 0.4, None)],
        "claims": [
            {"id": "ratio.resnet8", "value": 0.5, "interval": [0.4, 0.6], "goal": 1.1, "reached": False},
            {"id": "load", "what": "Loading", "unit": "ms", "value": 3, "goal": 20, "reached": True},
        ],
    }
    text = tables.int8(result)
    assert "| A | no | **0.1** (0.2) |" in text
    assert "| Edgewright avx2 | yes | 0.2 (0.4) |" in text
    assert "| B FP32 | float | 0.4 (0.8) |" in text
    assert "0.50x (0.40 to 0.60)" in text
    assert "1.1x: not reached" in text
    assert "| Loading | 3 ms | 20 ms | reached |" in tables.int8_figures(result)
