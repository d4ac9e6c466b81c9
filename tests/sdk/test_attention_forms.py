"""Attention is found in what torch exports, written as one node, and read back as what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgewright.attention_forms import ATTENTION_OPSET, fuse_attention
from edgewright.exporting import export
from edgewright.float_onnx import export_onnx
from edgewright.graph import float_graph, onnx_function
from edgewright.normalform import normalize
from edgewright.verification import verify

TOKENS, WIDTH, HEADS = 6, 16, 4


class Attention(nn.Module):
    """Self-attention whose scores are changed as `score` says."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            p(x).view(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for p in self.project[:3]
        )
        weights = self.score(query, key).softmax(-1)
        out: Tensor = self.project[3]((weights @ value).transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return out


class Library(nn.Module):
    """torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return out


def scaled(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)


def scaled_before(query: Tensor, key: Tensor) -> Tensor:
    return (query * 0.7) @ (key * 0.5).transpose(-1, -2)


def masked(query: Tensor, key: Tensor) -> Tensor:
    return scaled(query, key) + torch.triu(torch.full((TOKENS, TOKENS), -1e4), 1)


def squared(query: Tensor, key: Tensor) -> Tensor:
    return scaled(query, key) ** 2


def module(score: Callable[[Tensor, Tensor], Tensor] | None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (Library() if score is None else Attention(score)).eval()


X = np.random.default_rng(0).standard_normal((40, TOKENS, WIDTH), np.float32)


@pytest.mark.parametrize("score", [scaled, scaled_before, masked, None])
def test_attention_becomes_one_node_and_the_same_function(
    score: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    before = float_graph(module(score), (X[:2],))
    after, found = fuse_attention(before)
    assert found == 1
    kinds = [n.op_type for n in after.graph.node]
    assert kinds.count("Attention") == 1
    assert "Softmax" not in kinds
    assert after.opset_import[0].version == ATTENTION_OPSET
    onnx.checker.check_model(after, full_check=True)
    name = before.graph.input[0].name
    want, got = onnx_function(before)({name: X})["y"], onnx_function(after)({name: X})["y"]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_what_is_not_attention_stays() -> None:
    before = float_graph(module(squared), (X[:2],))
    after, found = fuse_attention(before)
    assert found == 0
    assert after is before


@pytest.mark.parametrize("score", [scaled, masked])
def test_one_node_is_spelled_out_again(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    before = float_graph(module(score), (X[:2],))
    back = normalize(fuse_attention(before)[0])
    kinds = sorted("Mul" if n.op_type == "Div" else n.op_type for n in before.graph.node)
    assert sorted(n.op_type for n in back.graph.node) == kinds
    name = before.graph.input[0].name
    np.testing.assert_allclose(
        onnx_function(back)({name: X})["y"], onnx_function(before)({name: X})["y"], atol=2e-6
    )


def test_an_optimized_file_runs_natively(tmp_path: Path) -> None:
    written = export_onnx(module(scaled), tmp_path / "a.onnx", example_inputs=(X[:2],), optimize=True)
    assert written.attentions == 1
    assert written.nodes < written.nodes_before
    artifact = export(written.path, target="x86-64", calibration=X, out=tmp_path / "a.ew")
    assert artifact.native
    assert not artifact.parts
    assert verify(artifact, reference=written.path, data=X, cases=100).sqnr_db > 20


def test_an_older_opset_keeps_attention_spelled_out(tmp_path: Path) -> None:
    written = export_onnx(
        module(scaled), tmp_path / "a.onnx", example_inputs=(X[:2],), optimize=True, opset=20
    )
    assert written.attentions == 0
    assert onnx.load(str(written.path)).opset_import[0].version == 20
    with pytest.raises(ValueError, match="the least is 20"):
        export_onnx(module(scaled), tmp_path / "b.onnx", example_inputs=(X[:2],), optimize=True, opset=17)
