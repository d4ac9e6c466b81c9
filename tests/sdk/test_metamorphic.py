"""Metamorphic relations: each finds the model that breaks it, and none a model that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright.exporting import export
from edgewright.graph import float_function
from edgewright.metamorphic import (
    FLOAT_DB,
    behind_the_mask,
    determinism,
    exactly,
    mask_invariance,
    padding_invariance,
    relations,
    within,
)
from edgewright.subject import Arrays, of_artifact, of_onnx
from edgewright.token_cases import TokenLayout
from edgewright_device import Port
from sdk.graphs import graph, mlp, normal, saved
from sdk.test_cases import TOKENS, sentences

X = normal(40, 8)


def verdicts(path: Path, x: Any, reference: Any = None) -> dict[str, str]:
    subject = of_onnx(path, x)
    samples = x if isinstance(x, dict) else {subject.inputs[0].name: x}
    return {c.name: c.verdict for c in relations(subject, reference or subject.run, samples)}


def test_an_artifact_keeps_every_relation_bit_for_bit(tmp_path: Path) -> None:
    source = saved(mlp(), tmp_path / "mlp.onnx")
    artifact = export(source, target="x86-64", calibration=X, out=tmp_path / "mlp.ew")
    subject = of_artifact(artifact)
    checks = relations(subject, subject.run, {"x": X})
    assert [c.name for c in checks] == ["batch", "order", "repeat", "threads"]
    assert {(c.verdict, c.unit, c.value) for c in checks} == {("passed", "values", 0)}


def test_a_float_file_keeps_every_relation(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path / "mlp.onnx")
    assert verdicts(path, X) == dict.fromkeys(("batch", "order", "repeat"), "passed")


def test_statistics_of_the_batch_are_found(tmp_path: Path) -> None:
    """Batch norm left in training mode: its mean and variance are those of the batch."""
    nodes: list[Any] = [
        ("ReduceMean", ["x", "zero"], "m", {"keepdims": 1}),
        ("Sub", ["x", "m"], "c", {}),
        ("Gemm", ["c", "w"], "y", {"transB": 1}),
    ]
    constants = {"w": normal(4, 8), "zero": np.array([0], np.int64)}
    path = saved(graph(nodes, {"x": (8,)}, {"y": (4,)}, constants), tmp_path / "net.onnx")
    assert verdicts(path, X) == {"batch": "failed", "order": "passed", "repeat": "passed"}


def test_neighbours_in_the_batch_are_found(tmp_path: Path) -> None:
    """A sum along the batch in place of the features."""
    nodes: list[Any] = [("CumSum", ["x", "axis"], "c", {}), ("Gemm", ["c", "w"], "y", {"transB": 1})]
    constants = {"w": normal(4, 8), "axis": np.array(0, np.int64)}
    path = saved(graph(nodes, {"x": (8,)}, {"y": (4,)}, constants), tmp_path / "net.onnx")
    assert verdicts(path, X) == {"batch": "failed", "order": "failed", "repeat": "passed"}


def test_a_run_that_is_not_the_same_again_is_found() -> None:
    random = np.random.default_rng(0)

    def run(inputs: Any) -> Arrays:
        noise = 1e-6 * random.random((len(inputs["x"]), 4), np.float32)
        return {"y": inputs["x"][:, :4] + noise.astype(np.float32)}

    check = determinism(run, {"x": X}, run({"x": X}))
    assert check.verdict == "failed"
    assert check.value > 0


# Masks and padding


class Pooled(nn.Module):
    """Embeddings, attention, and a mean over the tokens; the mask may be left out of either."""

    def __init__(self, *, attends: bool = True, pools: bool = True, places: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.q, self.k, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.attends, self.pools, self.places = attends, pools, places

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.table(ids)
        scores = self.q(h) @ self.k(h).transpose(1, 2) / 4
        if self.attends:
            scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
        h = h + scores.softmax(-1) @ h
        if self.places:
            each: Tensor = self.head(h)
            return each
        kept = mask[..., None].float() if self.pools else torch.ones_like(h[..., :1])
        one: Tensor = self.head((h * kept).sum(1) / kept.sum(1))
        return one


def seeded(**how: bool) -> Pooled:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pooled(**how).eval()


def running(net: nn.Module) -> Callable[[Any], Arrays]:
    function = float_function(net)
    return lambda x: {"y": function([x["ids"], x["mask"]])[0]}


def tokens() -> tuple[Arrays, TokenLayout, tuple[Port, ...]]:
    samples = {n: v for n, v in sentences(24).items() if n != "types"}
    return samples, TokenLayout.of(TOKENS[:2], samples), TOKENS[:2]


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "passed"),
        ({"places": True}, "passed"),
        ({"attends": False}, "failed"),
        ({"pools": False}, "failed"),
        ({"attends": False, "places": True}, "failed"),
    ],
)
def test_what_a_mask_does_not_hide_is_found(how: dict[str, bool], verdict: str) -> None:
    samples, layout, _ = tokens()
    assert mask_invariance(running(seeded(**how)), samples, layout, within(FLOAT_DB)).verdict == verdict


def test_only_what_lies_behind_the_mask_is_replaced() -> None:
    samples, layout, _ = tokens()
    one, other, kept = behind_the_mask(samples, layout)
    assert np.array_equal(one["mask"], other["mask"])
    assert np.array_equal(one["mask"] == 1, kept)
    assert np.array_equal(one["ids"][kept], other["ids"][kept])
    assert np.mean(one["ids"][~kept] != other["ids"][~kept]) > 0.5
    assert other["ids"].max() <= 99


def test_padding_that_counts_is_found() -> None:
    samples, _, _ = tokens()
    axes = {"ids": 1, "mask": 1}
    for how, verdict in ({}, "passed"), ({"places": True}, "passed"), ({"pools": False}, "failed"):
        check = padding_invariance(running(seeded(**how)), samples, "mask", axes, 5, within(FLOAT_DB))
        assert check.verdict == verdict
        assert "5 padded to 12" in check.what


@pytest.mark.parametrize("hides", [True, False])
def test_a_model_that_does_not_hide_what_is_masked_is_not_asked_to(tmp_path: Path, hides: bool) -> None:
    samples, _, _ = tokens()
    net = seeded(pools=hides)
    artifact = export(net, target="x86-64", calibration=samples, out=tmp_path / "net.ew")
    ids, mask = (p.name for p in artifact.inputs)
    reference = running(net)
    checks = relations(
        of_artifact(artifact),
        lambda x: reference({"ids": x[ids], "mask": x[mask]}),
        {ids: samples["ids"], mask: samples["mask"]},
    )
    assert {c.name for c in checks} >= {"batch", "order", "repeat", "threads"}
    assert ("mask" in {c.name for c in checks}) == hides
    assert all(c.verdict == "passed" for c in checks), checks


def test_bits_are_compared_as_bits() -> None:
    wanted = {"y": np.array([[0.0, 1.0]], np.float32)}
    got = {"y": np.array([[-0.0, 1.0]], np.float32)}
    assert exactly("n", "w", wanted, got).verdict == "failed"
    assert within(60)("n", "w", wanted, got).verdict == "passed"
