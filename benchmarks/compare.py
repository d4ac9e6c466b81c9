"""How often `compare` errs, and how soon it finds 5 %. `make bench-compare`.

Simulated runs resample pairs that were recorded here: one call against itself, alone and beside a busy
process, in stretches, so that drifts and bursts stay as they were; half of the runs get more of both by
design. Which of a pair is A's is drawn, as `compare` draws it. A false alarm is a confidence sequence that
excludes equal times after any of 5,000 pairs, with no zone of equivalence to hide in. Real runs are of one
network loaded twice, and of it beside itself with 5 % more to do.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import Claim, write

from edgewright import wilson_interval
from edgewright.latency import paired
from edgewright.paired_latency import ALPHA, LatencyComparison, compare_calls
from edgewright_device import Artifact, Runner
from edgewright_ota import least_hits

RUNS, PAIRS = 2000, 5000
RECORDED = 3000  # pairs, of each network and each condition
EQUIVALENT = 0.02  # `compare`'s own
EFFECT, MOST_PAIRS = 1.05, 250
REAL = 20
Series = npt.NDArray[np.float64]  # (pairs, 2): seconds, or any unit, of the first and the second call


def harsher(series: Series, rng: np.random.Generator) -> Series:
    """The same with what a machine does on a bad day: a clock that wanders, bursts of load, stalls."""
    count = len(series)
    drift = np.exp(np.cumsum(rng.standard_normal(2 * count)) * 0.01).reshape(count, 2)
    bursts = np.repeat(rng.random(-(-count // 50)) < 0.2, 50)[:count, None]
    load = np.where(bursts, 1 + rng.exponential(0.5, (count, 2)), 1.0)
    stalls = np.where(rng.random((count, 2)) < 0.02, 1 + rng.pareto(1.0, (count, 2)), 1.0)
    return series * drift * load * stalls


def stretch(series: Series, count: int, rng: np.random.Generator) -> Series:
    """A run of so many pairs, in stretches of the recording, 500 at most, each from anywhere in it."""
    length = min(500, len(series))
    starts = rng.integers(0, len(series) - length + 1, -(-count // length))
    return np.concatenate([series[s : s + length] for s in starts])[:count]


def log_ratios(series: Series, rng: np.random.Generator, effect: float = 1.0) -> npt.NDArray[np.float64]:
    """B's time over A's, as logarithms; which call was A's is drawn, and B takes `effect` times as long."""
    b_second = rng.random(len(series)) < 0.5
    return np.where(b_second, 1, -1) * np.log(series[:, 1] / series[:, 0]) + math.log(effect)


def thresholds(count: int) -> npt.NDArray[np.int64]:
    """Of how many signs alike each number of pairs up to `count` is in need."""
    return np.array([least_hits(n, ALPHA / 2) for n in range(1, count + 1)])


def first_said(above: npt.NDArray[np.bool_], needed: npt.NDArray[np.int64]) -> int | None:
    """After which pair the signs suffice; None if they never do."""
    said = np.flatnonzero(np.cumsum(above) >= needed[: len(above)])
    return int(said[0]) + 1 if said.size else None


def naive_alarm(x: npt.NDArray[np.float64]) -> bool:
    """Whether an ordinary 95 % interval of the mean, looked at after each pair from the tenth, excludes 0."""
    n = np.arange(1, len(x) + 1)
    mean = np.cumsum(x) / n
    variance = np.maximum(np.cumsum(x * x) / n - mean**2, 1e-30) * n / np.maximum(n - 1, 1)
    return bool((np.abs(mean) > 1.96 * np.sqrt(variance / n))[9:].any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A simulated one.

    Attributes:
        recording: Which one it is of.
        harsh: Whether it was made harsher.
        alarm: Whether A against A was ever told apart.
        naive_alarm: Whether an ordinary interval, looked at as often, told them apart.
        pairs: After how many A was called faster than a B that takes 5 % longer; None if it never was.
        wrong: Whether before that B was called faster, or equivalent.
    """

    recording: int
    harsh: bool
    alarm: bool
    naive_alarm: bool
    pairs: int | None
    wrong: bool


def simulate(recordings: Sequence[Series], runs: int, pairs: int, seed: int) -> list[Run]:
    """Runs of A against A, and of A against a B that takes 5 % longer, the recordings in turn."""
    needed = thresholds(pairs)
    edge = math.log1p(EQUIVALENT)
    found = []
    for number in range(runs):
        rng = np.random.default_rng((seed, number))
        round_, recording = divmod(number, len(recordings))
        series = stretch(recordings[recording], pairs, rng)
        if harsh := bool(round_ % 2):
            series = harsher(series, rng)
        x = log_ratios(series, rng)
        slower = x + math.log(EFFECT)
        said = first_said(slower > edge, needed)
        low, high = first_said(slower > -edge, needed), first_said(slower < edge, needed)
        others = (first_said(slower < -edge, needed), max(low, high) if low and high else None)
        found.append(
            Run(
                recording=recording,
                harsh=harsh,
                alarm=any(first_said(side, needed) for side in (x > 0, x < 0)),
                naive_alarm=naive_alarm(x),
                pairs=said,
                wrong=any(other is not None and other < (said or pairs + 1) for other in others),
            )
        )
    return found


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that computes half of the time, in turns of 50 ms, meanwhile."""
    code = "from time import *\nwhile 1:\n end = time() + 0.05\n while time() < end: pass\n sleep(0.05)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def recorded(call: Callable[[], object], count: int) -> Series:
    """Pairs of a call with itself: which came first is what `paired` drew, which here makes no difference."""
    with closing(paired(call, call, draw=random.Random(0))) as pairs:
        return np.array(list(islice(pairs, count)), np.float64)


def spinning(call: Callable[[], object], share: float) -> Callable[[], object]:
    """The call, and then a wait for so large a share of its median time, where the CPU was its own."""
    wait_ns = round(share * float(np.median(recorded(call, 200))))

    def longer() -> None:
        call()
        end = time.perf_counter_ns() + wait_ns
        while time.perf_counter_ns() < end:
            pass

    return longer


def networks(folder: Path) -> dict[str, Callable[[], Callable[[], object]]]:
    """Calls of edge networks in the native engine, by name; each is loaded anew when it is asked for."""
    import architectures
    import torch

    import edgewright as ew

    torch.set_num_threads(1)
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ResNet8": (architectures.resnet8, (3, 32, 32)),
        "MobileNetV2": (architectures.mobilenetv2, (3, 224, 224)),
    }
    found: dict[str, Callable[[], Callable[[], object]]] = {}
    for name, (make, shape) in shapes.items():
        torch.manual_seed(0)
        model = make().train()
        x = torch.randn(16, *shape)
        with torch.no_grad():
            for _ in range(3):
                model(x)
        artifact = ew.export(
            model.eval(), target="x86-avx2", calibration=x.numpy(), out=folder / f"{name}.ew"
        )
        found[name] = partial(loaded, artifact)
    return found


def loaded(artifact: Artifact) -> Callable[[], object]:
    """A call of one sample."""
    runner = Runner(artifact)
    feed = {name: np.ascontiguousarray(value[:1]) for name, value in artifact.golden()[0].items()}
    return lambda: runner.run(feed)


def main() -> None:
    rows: list[dict[str, Any]] = []
    recordings: list[Series] = []
    alike: list[LatencyComparison] = []
    slower: list[LatencyComparison] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, load in networks(Path(folder)).items():
            for machine in ("as it is", "beside a busy process"):
                with busy_neighbour() if machine != "as it is" else nullcontext():
                    series = recorded(load(), RECORDED)
                recordings.append(series)
                rows.append({"network": name, "machine": machine, **spread(series)})
                print(rows[-1], flush=True)
            for seed in range(REAL):
                alike.append(compare_calls(load(), load(), seed=seed))
                slower.append(compare_calls(load(), spinning(load(), EFFECT - 1), seed=seed))
            for real in (alike, slower):
                print(name, [(r.verdict, r.pairs) for r in real[-REAL:]], flush=True)
    runs = simulate(recordings, RUNS, PAIRS, seed=0)
    for index, row in enumerate(list(rows)):
        for harsh in (False, True):
            of_it = [r for r in runs if (r.recording, r.harsh) == (index, harsh)]
            pairs = [r.pairs or PAIRS for r in of_it]
            rows.append(
                {
                    "network": row["network"],
                    "machine": row["machine"] + (", made harsher" if harsh else ""),
                    "simulated_runs": len(of_it),
                    "false_alarms": sum(r.alarm for r in of_it),
                    "false_alarms_of_an_ordinary_interval": sum(r.naive_alarm for r in of_it),
                    "median_pairs_for_5_percent": float(np.median(pairs)),
                    "p95_pairs_for_5_percent": float(np.percentile(pairs, 95)),
                    "wrong_about_5_percent": sum(r.wrong for r in of_it),
                }
            )
            print(rows[-1])
    claims = [*simulated_claims(runs), *real_claims(alike, slower)]
    for claim in claims:
        print(f"{claim.id}: {claim.value:.4g} {claim.unit} {claim.interval} reached: {claim.reached}")
    print(write("compare", claims, rows, ("numpy", "torch", "edgewright")))


def spread(series: Series) -> dict[str, float]:
    """What a recording is like."""
    x = np.log(series[:, 1] / series[:, 0])
    low, high = np.percentile(x, [25, 75])
    return {
        "median_ms": float(np.median(series)) / 1e6,
        "half_interquartile_percent": 50 * float(high - low),
        "standard_deviation_percent": 100 * float(x.std()),
        "load": os.getloadavg()[0],
    }


def simulated_claims(runs: Sequence[Run]) -> list[Claim]:
    alarms = sum(r.alarm for r in runs)
    low, high = wilson_interval(alarms, len(runs))
    as_recorded = [r.pairs or PAIRS for r in runs if not r.harsh]
    median, tail = np.percentile(as_recorded, [50, 95])
    return [
        Claim(
            id="aa_false_alarms",
            what=f"A against A, {len(runs):,} simulated runs of {PAIRS:,} pairs, looked at after each: how "
            "many ever exclude equal times; interval: 95 %, Wilson",
            value=alarms / len(runs),
            unit="of the runs",
            interval=(low, high),
            goal=ALPHA,
            reached=high <= ALPHA,
        ),
        Claim(
            id="pairs_for_5_percent",
            what="pairs until `compare` calls a B that takes 5 % longer the slower one, pairs as recorded: "
            f"95th percentile of {len(as_recorded):,} simulated runs; interval: median and 95th percentile",
            value=float(tail),
            unit="pairs",
            interval=(float(median), float(tail)),
            goal=MOST_PAIRS,
            reached=bool(tail <= MOST_PAIRS),
        ),
    ]


def real_claims(alike: Sequence[LatencyComparison], slower: Sequence[LatencyComparison]) -> list[Claim]:
    false = sum(r.verdict.endswith("faster") for r in alike)
    pairs = [r.pairs for r in slower]
    right = sum(r.verdict == "A is faster" for r in slower)
    tail = float(np.percentile(pairs, 95))
    return [
        Claim(
            id="aa_false_alarms.real",
            what=f"how many of {len(alike)} real runs of a network loaded twice call one the faster; "
            "interval: 95 %, Wilson",
            value=false / len(alike),
            unit="of the runs",
            interval=wilson_interval(false, len(alike)),
            goal=ALPHA,
            reached=false / len(alike) <= ALPHA,
        ),
        Claim(
            id="pairs_for_5_percent.real",
            what=f"the same in {len(pairs)} real runs, of which {right} were right: 95th percentile; "
            "interval: fewest and most",
            value=tail,
            unit="pairs",
            interval=(min(pairs), max(pairs)),
            goal=MOST_PAIRS,
            reached=tail <= MOST_PAIRS and right == len(pairs),
        ),
    ]


if __name__ == "__main__":
    main()
