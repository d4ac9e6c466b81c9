"""The INT8 benchmark's own logic: its networks, settings, files for the peers, race, claims and tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import int8_tables
import numpy as np
import onnx
import pytest
from judging import depthwise_claims, race_claims, thread_claims
from networks import DEPTHWISE_LAYERS, NETWORKS, Network, cost
from peers import Files, entries, unsigned_weights, write_files, write_float
from probe import PROBE_TERMS, Probe, probe_files, probe_samples, steps_off
from race import LEAST_ROUNDS, Times, race, started
from settings import AVX2_WEIGHTS, WEIGHTS, Setting, settings

from edgewright_device import Runner
from edgewright_kernels import cpu_paths

PUBLISHED = {  # multiply-accumulates and parameters
    "bert-base": (11_173_625_856, 85_054_464),  # 12 x (4 x 768^2 + 2 x 768 x 3072) x 128, and attention
    "minilm": (6 * (4 * 384**2 + 2 * 384 * 1536) * 128 + 6 * 2 * 128**2 * 384 + 2 * 384, 22_566_146),
    "resnet50": (4_089_184_256, 25_557_032),
    "mobilenetv2": (300_774_272, 3_504_872),
    "resnet8": (12_501_632, 78_186),  # 78,666 with the 480 statistics of batch norm
    "ds-cnn": (2_656_768, 23_756),  # 24,908 with the 1,152 statistics of batch norm
    "depthwise-56x56x128": (DEPTHWISE_LAYERS * 9 * 56 * 56 * 128, DEPTHWISE_LAYERS * (9 + 2) * 128),
}
HERE = Setting(name="all", title="", paths=cpu_paths()[:1], quantize=WEIGHTS)


def network(name: str) -> Network:
    return next(n for n in NETWORKS if n.name == name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_costs_what_is_published(name: str) -> None:
    assert cost(network(name)) == PUBLISHED[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    chosen = network("ds-cnn")
    folder = tmp_path_factory.mktemp("files")
    fp32 = folder / "fp32.onnx"
    samples = write_float(chosen.module(), {"x": chosen.samples(8)}, fp32)
    return write_files(fp32, samples, folder / "int8", name=chosen.name, quantize=WEIGHTS)


def test_every_peer_runs_the_same_network_and_takes_part_in_the_race(files: Files, tmp_path: Path) -> None:
    with np.load(files.inputs) as archive:
        exact = Runner(files.artifact, backend="reference").run(dict(archive))["y"]
    step = files.artifact.outputs[0].scale
    with started(entries(files, HERE, None)) as contestants:
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


def test_with_avx2_alone_no_engine_has_more(tmp_path: Path) -> None:
    found = settings(tmp_path)
    if cpu_paths()[0] == "avx2":
        assert [s.name for s in found] == ["avx2"]
    if [s.name for s in found] != ["avx2", "all"]:
        pytest.skip("this CPU cannot hide its instructions, or has nothing to hide")
    alone, whole = found
    assert alone.paths == ("avx2",)
    assert "avx2" not in whole.paths
    weights = {q: probe_files(tmp_path, q) for q in (WEIGHTS, AVX2_WEIGHTS)}
    off, off_safe = (steps_off(weights[q], alone, None) for q in (WEIGHTS, AVX2_WEIGHTS))
    for exact in ("Edgewright avx2", "ONNX Runtime u8u8", "LiteRT INT8"):
        assert off[exact] <= 1.01, exact
    for saturating in ("ONNX Runtime u8s8", "ONNX Runtime dynamic"):  # which use VNNI if they find it
        assert off[saturating] > 10, saturating
    assert off_safe["ONNX Runtime u8s8"] <= 1.01
    assert off["Edgewright avx2"] == off_safe["Edgewright avx2"] == 0


def test_an_engine_that_may_not_start_says_so(files: Files) -> None:
    (broken,) = [e for e in entries(files, HERE, None) if e.name == "ONNX Runtime u8s8"]
    command = tuple(c.replace("u8s8.onnx", "none.onnx") for c in broken.command)
    with (
        pytest.raises(RuntimeError, match="ONNX Runtime u8s8 did not start"),
        started([type(broken)(name=broken.name, command=command)]),
    ):
        pass


def test_between_turns_all_threads_of_a_contestant_stand_still(files: Files) -> None:
    with started(entries(files, HERE, None, threads=2)[:2], cores=2) as contestants:
        for contestant in contestants:
            contestant.run(3)
            tasks = (Path("/proc") / str(contestant.pid) / "task").iterdir()
            states = [(t / "stat").read_text().rpartition(")")[2].split()[0] for t in tasks]
            assert len(states) >= 2
            assert set(states) == {"T"}


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
    """A contestant that notes when it is called; each call takes 5 ms, and a little more the later it is."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, count: int) -> list[int]:
        self.log.append(f"{self.name} {count}")
        return [5_000_000 + i for i in range(count)]


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
    assert log[4:] == ["a 3", "b 3"] * ((len(log) - 4) // 2)  # after two calls of each to learn their pace
    assert len(times["a"].rounds) >= 20 - 1
    assert set(times["a"].rounds) == {(5_000_001, 5_000_002)}  # 10 ms worth of calls, without the first


def test_ratios_are_of_the_same_round() -> None:
    slow, fast = Times(((30, 20), (40, 90))), Times(((10, 15), (20, 25)))
    assert slow.ratios(fast) == [2.0, 2.0]


def times(**ms: float) -> dict[str, Times]:
    """Times of which every round has the same one, by name; "_" stands for a space."""
    return {name.replace("_", " "): Times(((int(1e6 * t),),) * 10) for name, t in ms.items()}


ALONE = Setting(name="avx2", title="AVX2 alone", paths=("avx2",), quantize=AVX2_WEIGHTS)
WHOLE = Setting(name="all", title="all instructions", paths=("avx512vnni",), quantize=WEIGHTS)


def test_goals_are_judged_with_avx2_alone() -> None:
    resnet = network("resnet8")
    ratio, roofline = race_claims(resnet, ALONE, times(Edgewright_avx2=2, A=4, B_FP32=3, roof=1))
    assert (ratio.id, ratio.value, ratio.goal, ratio.reached) == ("ratio.resnet8", 1.5, 1.1, True)
    assert "B FP32, the best peer" in ratio.what
    assert roofline.value == pytest.approx(cost(resnet)[0] / 2 / 2**24)
    (ratio,) = race_claims(resnet, WHOLE, times(Edgewright_avx512vnni=2, A=1))
    assert (ratio.id, ratio.value, ratio.goal, ratio.reached) == ("ratio.resnet8.all", 0.5, None, None)


def test_a_second_thread_is_judged_against_one_in_the_same_race() -> None:
    one = times(x=17)["x"]
    threads, ratio = thread_claims(network("resnet50"), ALONE, one, times(Edgewright_avx2=10, A=12))
    assert (threads.id, threads.value, threads.goal, threads.reached) == ("threads.resnet50", 1.7, 1.8, False)
    assert (ratio.id, ratio.value, ratio.goal) == ("ratio.resnet50.threads2", 1.2, None)


def test_depthwise_is_judged_by_its_slower_size() -> None:
    small, large = (n for n in NETWORKS if n.name.startswith("depthwise"))
    (claim,) = depthwise_claims(
        ALONE, {small: times(Edgewright_avx2=2, A=4), large: times(Edgewright_avx2=4, A=8)}
    )
    assert claim.id == "depthwise.gmacs"
    assert claim.value == pytest.approx(cost(large)[0] / 4e6)
    assert claim.interval == pytest.approx((cost(large)[0] / 4e6, cost(small)[0] / 2e6))
    assert claim.reached is (claim.value >= 40)
    (claim,) = depthwise_claims(WHOLE, {small: times(Edgewright_avx512vnni=2, A=4)})
    assert (claim.id, claim.goal, claim.reached) == ("depthwise.gmacs.all", None, None)


def result() -> dict[str, Any]:
    def row(peer: str, ms: float, exact: bool | None, raced: bool | None, **more: Any) -> dict[str, Any]:
        common = {"model": "resnet8", "instructions": "avx2", "threads": 1}
        return (
            common
            | {"peer": peer, "min_ms": ms, "median_ms": 2 * ms, "exact": exact, "exact_raced": raced}
            | more
        )

    def claim(
        name: str, value: float, goal: float | None = None, reached: bool | None = None
    ) -> dict[str, Any]:
        more = {"what": name, "unit": "ms", "interval": [0.9 * value, 1.1 * value]}
        return {"id": name, "value": value, "goal": goal, "reached": reached} | more

    return {
        "command": "make bench-int8",
        "machine": {"cpu": "c", "cores": 2, "memory": "m", "python": "p", "versions": {"numpy": "1"}},
        "rows": [
            row("Edgewright avx2", 0.2, True, True),
            row("A", 0.1, False, True),
            row("B", 0.3, False, False),
            row("C FP32", 0.4, None, None),
            row("Edgewright avx2", 0.15, True, True, threads=2),
            row("Edgewright avx512vnni", 0.05, True, True, instructions="all"),
            row("A", 0.06, True, True, model="gemm-1x2x3", instructions="all"),
        ],
        "claims": [
            claim("ratio.resnet8", 0.5, 1.1, False),
            claim("ratio.resnet8.all", 1.25),
            claim("threads.resnet8", 1.7, 1.8, False),
            claim("sqnr.resnet8", 30),
            claim("sqnr.resnet8.safe", 28.04),
            claim("load", 3, 20, True),
        ],
    }


def test_the_first_table_says_who_was_best_with_avx2_and_what_was_not_reached() -> None:
    text = int8_tables.whole(result())
    assert "| Edgewright avx2 | yes | 0.2 (0.4) |" in text
    assert "| A | with these weights | **0.1** (0.2) |" in text
    assert "| B | no | 0.3 (0.6) |" in text
    assert "| C FP32 | float | 0.4 (0.8) |" in text
    assert "0.50x (0.45 to 0.55)" in text
    assert "1.1x: not reached" in text
    assert "avx512vnni" not in text
    assert "| signal to quantization noise, dB | | 30.0 |" in text
    assert "| the same with overflow-safe weights | | 28.0 |" in text


def test_the_other_tables_keep_their_settings_apart() -> None:
    whole, threads = int8_tables.whole_all(result()), int8_tables.whole_threads(result())
    assert "| Edgewright avx512vnni | yes | **0.05** |" in whole
    assert "1.25x (1.12 to 1.38)" in whole
    assert "0.1" not in whole.split("Edgewright", maxsplit=1)[0]
    assert "| Edgewright avx2 | yes | **0.15** |" in threads
    assert "1.8x: not reached" in threads
    assert "| A | yes | **0.06** (0.12) |" in int8_tables.gemm(result())
    assert "| load | 3 ms | 20 ms | reached |" in int8_tables.figures(result())


def test_a_setting_that_could_not_be_had_is_said_to_be_missing() -> None:
    found = result()
    found["rows"] = [r for r in found["rows"] if r["instructions"] == "all"]
    assert "No process can be held to AVX2" in int8_tables.whole(found)
