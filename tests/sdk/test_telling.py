"""Telling samples: a device that replays them notices a changed weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from torch import nn

from edgewright import telling
from edgewright.digits import Digits
from edgewright.exporting import export
from edgewright.golden import golden_inputs
from edgewright.samples import Samples
from edgewright.telling import telling_samples
from edgewright.weights import byte_ranges
from edgewright_device import Artifact
from edgewright_kernels import Engine
from edgewright_kernels.plan import Plan, decode
from sdk.foreign import inputs, network
from sdk.graphs import mlp, normal, saved


def noticed(artifact: Artifact, feed: Samples, *, by_one: bool, trials: int = 1000) -> float:
    """The share of single weights, drawn from all, whose change shows in some output."""
    random = np.random.default_rng(1)
    plan, weights = artifact.read("plan.bin"), artifact.read("weights.safetensors")
    layers = {n: w for n, w in safetensors.numpy.load(weights).items() if w.dtype == np.int8}
    names, ranges = sorted(layers), byte_ranges(weights)
    sizes = np.array([layers[n].size for n in names])
    expected = Engine(plan, weights).run(feed)
    found = 0
    for _ in range(trials):
        name = names[random.choice(len(names), p=sizes / sizes.sum())]
        at = int(random.integers(layers[name].size))
        old = int(layers[name].reshape(-1)[at])
        other = [v for v in range(-127, 128) if v != old]
        new = (old - 1 if old > 0 else old + 1) if by_one else int(random.choice(other))
        changed = bytearray(weights)
        changed[ranges[name].offset + at] = new & 0xFF
        got = Engine(plan, bytes(changed)).run(feed)
        found += any(got[n].tobytes() != expected[n].tobytes() for n in expected)
    return found / trials


@pytest.fixture(scope="module")
def artifacts(
    compressed: nn.Module, scans: Digits, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Artifact, Samples]]:
    """An artifact of each of two networks, and its samples."""
    folder = tmp_path_factory.mktemp("golden")
    digits = np.concatenate([x.numpy() for x, *_ in scans.data.train])
    made = {}
    for name, net, x in (("digits", compressed, digits), ("cnn", network("cnn"), inputs("cnn", 200))):
        artifact = export(net, target="x86-64", calibration=x, out=folder / f"{name}.ew")
        made[name] = artifact, {artifact.inputs[0].name: x}
    return made


# How many times as many weights changed by one step the chosen eight must notice as the first eight do.
@pytest.mark.parametrize(("name", "times"), [("digits", 1.2), ("cnn", 1.05)])
def test_chosen_samples_notice_more_than_the_first(
    artifacts: dict[str, tuple[Artifact, Samples]], name: str, times: float
) -> None:
    artifact, samples = artifacts[name]
    chosen, first = artifact.golden()[0], golden_inputs(samples)
    assert noticed(artifact, chosen, by_one=True) > times * noticed(artifact, first, by_one=True)
    assert noticed(artifact, chosen, by_one=False) > 0.85


def choose(artifact: Artifact, samples: Samples) -> Samples:
    weights = artifact.read("weights.safetensors")
    plan: Plan = decode(artifact.read("plan.bin"))
    return telling_samples(plan, weights, byte_ranges(weights), samples)


def test_the_choice_is_the_same_each_time_and_of_real_samples(
    artifacts: dict[str, tuple[Artifact, Samples]],
) -> None:
    artifact, samples = artifacts["cnn"]
    (x,), (chosen,) = samples.values(), choose(artifact, samples).values()
    assert chosen.tobytes() == artifact.golden()[0]["x"].tobytes()
    rows = [next(i for i, v in enumerate(x) if v.tobytes() == c.tobytes()) for c in chosen]
    assert len(set(rows)) == 8


@pytest.mark.parametrize(
    "limit", [lambda m: m.setattr(telling, "WORK", 1e6), lambda m: m.setattr(telling, "CANDIDATES", 8)]
)
def test_where_choosing_would_take_long_the_first_samples_serve(
    artifacts: dict[str, tuple[Artifact, Samples]],
    monkeypatch: pytest.MonkeyPatch,
    limit: Callable[[pytest.MonkeyPatch], None],
) -> None:
    artifact, samples = artifacts["cnn"]
    limit(monkeypatch)
    (chosen,) = choose(artifact, samples).values()
    assert np.array_equal(chosen, samples["x"][:8])


def test_a_place_that_only_a_late_sample_drives_is_told_of(tmp_path: Path) -> None:
    """The first 200 samples say nothing of one input; its weights are noticed all the same."""
    x = normal(300, 8)
    x[:200, 5] = 0
    source = saved(mlp(), tmp_path / "mlp.onnx")
    artifact = export(source, target="x86-64", calibration=x, out=tmp_path / "mlp.ew")
    assert artifact.golden()[0]["x"][:, 5].any()
