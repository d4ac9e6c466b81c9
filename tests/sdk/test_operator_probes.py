"""Operators by themselves: healthy ones pass; each fault of lowering or of the engine is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgewright import operator_probes
from edgewright.exporting import export
from edgewright.operator_probes import alone, kernel_check, probe_checks, steps_check
from edgewright_device import Artifact
from edgewright_kernels import Engine
from edgewright_kernels.plan import Add, Convolution, FullyConnected, Plan, Quantize, decode
from sdk.foreign import float_file, inputs


@pytest.fixture(scope="module", params=["mlp", "cnn", "encoder"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    graph = float_file(name, folder / f"{name}.onnx")
    return export(graph, target="x86-avx2", calibration={"x": inputs(name, 64)}, out=folder / f"{name}.ew")


def opened(artifact: Artifact) -> tuple[Plan, bytes, onnx.ModelProto, dict[str, Any]]:
    graph = onnx.load(artifact.path / "model.onnx")
    plan = decode(artifact.read("plan.bin"))
    return plan, artifact.read("weights.safetensors"), graph, {"x": inputs(artifact.name, 16, seed=1)}


def changed(plan: Plan, kind: type, change: Callable[[Any], Any]) -> tuple[Plan, str]:
    """A plan in which the last operator of a kind is another, and the name of what it gives."""
    at = max((i for i, op in enumerate(plan.ops) if isinstance(op, kind)), default=None)
    if at is None:
        pytest.skip(f"has no {kind.__name__}")
    ops = (*plan.ops[:at], change(plan.ops[at]), *plan.ops[at + 1 :])
    return replace(plan, ops=ops), plan.tensors[plan.ops[at].y].name


def rescaled(op: Any, **parts: Callable[[Any], Any]) -> Any:
    new = {n: change(getattr(op.rescale, n)) for n, change in parts.items()}
    return replace(op, rescale=replace(op.rescale, **new))


def test_a_healthy_artifact_passes(artifact: Artifact) -> None:
    _, _, graph, samples = opened(artifact)
    checks = probe_checks(artifact, graph, samples)
    assert [(c.name, c.verdict) for c in checks] == [("engine", "passed"), ("lowering", "passed")]


def test_nearly_every_operator_is_held_to_the_graph(artifact: Artifact) -> None:
    plan, weights, graph, samples = opened(artifact)
    seen = {s.value for s in operator_probes.steps(plan, weights, graph, samples)}
    sums = {plan.tensors[op.y].name for op in plan.ops if isinstance(op, operator_probes.SUMS)}
    assert sums <= seen


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (FullyConnected, lambda op: rescaled(op, multiplier=lambda m: m // 17 * 16)),
        (FullyConnected, lambda op: rescaled(op, shift=lambda s: s + (np.arange(len(s)) == 0))),
        (FullyConnected, lambda op: replace(op, bias=None)),
        (Convolution, lambda op: rescaled(op, high=lambda _: 100)),
        (Convolution, lambda op: replace(op, window=replace(op.window, padding=(0, 1, 2, 1)))),
        (Add, lambda op: replace(op, b=op.a)),
        (
            Quantize,
            lambda op: replace(op, order=(2, 1, 0)) if len(op.order) == 3 else pytest.skip("no image"),
        ),
    ],
    ids=["multipliers", "one shift", "no bias", "clamp", "padding", "stale operand", "turned image"],
)
def test_a_fault_of_lowering_is_found_and_named(
    artifact: Artifact, kind: type, change: Callable[[Any], Any]
) -> None:
    plan, weights, graph, samples = opened(artifact)
    if kind is Quantize and artifact.name != "cnn":
        pytest.skip("no image")
    wrong, value = changed(plan, kind, change)
    check = steps_check({"plan.bin": wrong}, weights, graph, samples)
    assert check.verdict == "failed"
    assert repr(value) in check.what


def test_a_zero_point_that_the_graph_has_not_is_found(artifact: Artifact) -> None:
    plan, weights, graph, samples = opened(artifact)
    one = plan.tensors[next(op.y for op in plan.ops if isinstance(op, FullyConnected))]
    zero = one.zero_point + 1 if one.zero_point < 255 else one.zero_point - 1
    # Moves keep a grid, so what lies on the same one goes with it.
    grid = (one.scale, one.zero_point)
    tensors = [replace(t, zero_point=zero) if (t.scale, t.zero_point) == grid else t for t in plan.tensors]
    check = steps_check({"plan.bin": replace(plan, tensors=tuple(tensors))}, weights, graph, samples)
    assert check.verdict == "failed"


def test_an_engine_that_is_wrong_only_at_the_largest_sums_is_found(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, weights, _, _ = opened(artifact)
    run = Engine.run

    def saturating(self: Engine, feed: Any) -> Any:
        given = run(self, feed)
        for value in given.values():
            value[value > 0.97 * value.max(initial=0)] *= np.float32(0.97)
        return given

    monkeypatch.setattr(Engine, "run", saturating)
    check = kernel_check({"plan.bin": plan}, weights)
    assert check.verdict == "failed"
    assert "giving" in check.what


def test_an_operator_alone_computes_what_it_computes_among_others(artifact: Artifact) -> None:
    from edgewright_kernels import reference
    from edgewright_kernels.plan import encode

    plan, weights, _, samples = opened(artifact)
    traced = reference.trace(plan, weights, samples)
    for at in range(len(plan.ops)):
        if (one := alone(plan, at)) is None:
            continue
        steps = {n: traced[t.name].astype(np.int64) - t.zero_point for n, t in one.reads}
        feed = {n: (steps[n] * t.scale).astype(np.float32) for n, t in one.reads}
        (given,) = Engine(encode(one.plan), weights).run(feed).values()
        there = reference.dequantize(traced[one.gives.name], one.gives)
        np.testing.assert_array_equal(given, there)


def test_extremes_are_the_same_each_time(artifact: Artifact, tmp_path: Path) -> None:
    del tmp_path
    plan, weights, _, _ = opened(artifact)
    assert kernel_check({"plan.bin": plan}, weights) == kernel_check({"plan.bin": plan}, weights)
