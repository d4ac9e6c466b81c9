"""Pruning of transformers: heads, the width inside feed-forward layers, and whole layers."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from minilm import Encoder, Layer
from torch import Tensor, nn

from edgewright.attention import Attention
from edgewright.dependencies import Dependencies
from edgewright.depth import Skip, residual_blocks
from edgewright.errors import CompressError
from edgewright.progress import Progress
from edgewright.pruning import prune
from edgewright.recipe import Prune

HEADS = Prune(ratio=0, heads=0.5)


def _encoder(layers: int = 3) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(layers=layers, hidden=24, heads=4, inner=32, vocabulary=50, positions=16).eval()


class _Torch(nn.Module):
    """PyTorch's own encoder under a head, on vectors (N, length, 16)."""

    def __init__(self, *, norm_first: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, dropout=0.0, batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x if self.batch_first else x.transpose(0, 1))
        out: Tensor = self.head(x.mean(1 if self.batch_first else 0))
        return out


def _batches() -> list[tuple[dict[str, Tensor], Tensor]]:
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(1, 50, (16, 8)))
    mask = torch.from_numpy((np.arange(8) < random.integers(3, 9, (16, 1))).astype(np.int64))
    return [({"ids": ids, "mask": mask}, torch.from_numpy(random.integers(0, 2, 16)))]


def _vectors() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 5, 16, generator=generator), torch.arange(8) % 3)]


def _silence(layer: nn.Linear, heads: list[int], size: int) -> None:
    with torch.no_grad():
        for head in heads:
            layer.weight[:, head * size : (head + 1) * size] = 0


def test_heads_that_do_nothing_go_first_and_the_output_stays() -> None:
    model, batches = _encoder(), _batches()
    for layer, heads in zip(model.layers, ([0, 3], [1, 2], [0, 1]), strict=True):
        assert isinstance(layer, Layer)
        _silence(layer.out, heads, 6)
    pruned = prune(model, HEADS, batches[0][0], batches=batches)
    for layer in pruned.get_submodule("layers").children():
        assert isinstance(layer, Layer)
        assert (layer.heads, layer.query.weight.shape, layer.out.weight.shape) == (2, (12, 24), (24, 12))
    torch.testing.assert_close(pruned(**batches[0][0]), model(**batches[0][0]))


def test_ffn_loses_inner_width_and_the_stream_keeps_its_own() -> None:
    batches = _batches()
    pruned = prune(_encoder(), Prune(ratio=0.5, round_to=4), batches[0][0], batches=batches)
    for layer in pruned.get_submodule("layers").children():
        assert isinstance(layer, Layer)
        assert (layer.up.weight.shape, layer.down.weight.shape, layer.heads) == ((16, 24), (24, 16), 4)
    assert pruned.get_submodule("words").weight.shape == (50, 24)


@pytest.mark.parametrize("importance", ["taylor", "hessian", "magnitude"])
def test_global_ranking_takes_heads_where_they_matter_least(importance: str) -> None:
    model, batches = _encoder(), _batches()
    first = model.layers[0]
    assert isinstance(first, Layer)
    with torch.no_grad():
        for layer in (first.query, first.key, first.value, first.out):
            layer.weight[:] *= 0.01
        first.out.weight[:, :] *= 0.01
    how = Prune(ratio=0, heads=0.25, ranking="global", importance=importance, max_ratio=0.9)  # type: ignore[arg-type]
    pruned = prune(model, how, batches[0][0], batches=batches)
    heads = [layer.heads for layer in pruned.get_submodule("layers").children()]
    assert sum(heads) == 9  # type: ignore[arg-type]
    assert importance == "magnitude" or heads[0] == 1


@pytest.mark.parametrize("make", [_Torch, lambda: _Torch(norm_first=True), lambda: _Torch(batch_first=False)])
def test_heads_of_torchs_own_attention_go_and_the_output_stays(make: Callable[[], _Torch]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    batches = _vectors()
    for layer in model.encoder.layers:
        _silence(layer.self_attn.out_proj, [1, 2], 4)
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, HEADS, batches[0][0], batches=batches)
    assert [m.num_heads for m in pruned.modules() if isinstance(m, Attention)] == [2, 2]
    torch.testing.assert_close(pruned(batches[0][0]), model(batches[0][0]))
    pruned.train()(batches[0][0]).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_attention_that_loses_no_head_stays_torchs_own() -> None:
    batches = _vectors()
    pruned = prune(_Torch(), Prune(ratio=0.5), batches[0][0], batches=batches)
    attention = pruned.get_submodule("encoder.layers.0.self_attn")
    assert isinstance(attention, nn.MultiheadAttention)
    assert pruned.get_submodule("encoder.layers.0.linear1").weight.shape == (12, 16)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_computes_what_torchs_does(batch_first: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torchs = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    ours = Attention(torchs)
    x, y = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    hidden = torch.arange(5) >= torch.tensor([[3], [5]])
    seen = torch.randn(3, 5) > 1.5
    for masks in (
        {},
        {"key_padding_mask": hidden},
        {"attn_mask": seen},
        {"attn_mask": torch.randn(8, 3, 5), "key_padding_mask": hidden},
    ):
        if "key_padding_mask" in masks and "attn_mask" in masks:
            masks["key_padding_mask"] = torch.zeros(2, 5).masked_fill(hidden, -torch.inf)
        for need_weights in (True, False):
            a, b = (
                torchs(x, y, y, need_weights=need_weights, **masks),
                ours(x, y, y, need_weights=need_weights, **masks),
            )
            torch.testing.assert_close(a, b)
    a, b = torchs(x[0], y[0], y[0]), ours(x[0], y[0], y[0])
    torch.testing.assert_close(a, b)


class _Fixed(nn.Module):
    """Attention whose output takes the width of its input."""

    def __init__(self, *, named: bool = True, packed: bool = False) -> None:
        super().__init__()
        if named:
            self.n_head = 4
        self.packed = packed
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.end = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1) if self.packed else (self.q(x), self.k(x), self.v(x))
        q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in (q, k, v))
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        y = y.transpose(1, 2).reshape(x.shape)
        out: Tensor = self.end(self.norm(x + self.o(y)).mean(1))
        return out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Fixed(), r"does not run once heads are gone \(attention must reshape"),
        (_Fixed(named=False), r"heads of the attention at 'v|k|q' are not recognised: .* leave out `heads`"),
        (_Fixed(packed=True), r"heads of the attention at 'qkv' are not recognised"),
        (nn.Sequential(nn.Linear(16, 8), nn.Flatten(), nn.Linear(40, 3)), "no attention was found"),
    ],
)
def test_attention_that_is_not_understood_is_refused(model: nn.Module, message: str) -> None:
    how = Prune(ratio=0, heads=0.5, importance="magnitude")
    with pytest.raises(CompressError, match=message):
        prune(model, how, _vectors()[0][0])


class _Miscounted(Layer):
    """Splits its heads by a number that is not the attribute's."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads, self.heads = self.heads, 2
        y = super().forward(x, mask)
        self.heads = heads
        return y


def test_heads_that_are_split_by_another_number_are_found_out() -> None:
    model = _encoder(2)
    for layer in model.layers:
        layer.__class__ = _Miscounted
    with pytest.raises(CompressError, match="does not compute what it did with them silenced"):
        prune(model, Prune(ratio=0, heads=0.5, importance="magnitude"), _batches()[0][0])


def test_layers_that_do_nothing_go_first_and_the_output_stays() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 16), *(_Residual(16) for _ in range(4)), nn.Flatten(), nn.Linear(80, 3)
        ).eval()
    with torch.no_grad():
        assert isinstance(model[6], nn.Linear)
        model[6].weight *= 20
        for index in (2, 3):
            for each in model.get_submodule(f"{index}.inner.2").parameters():
                each.zero_()
    reports: list[Progress] = []
    x = _vectors()[0][0]
    batches = [(x, model(x).argmax(1))]  # which it is sure of
    pruned = prune(model, Prune(ratio=0, blocks=2), batches[0][0], batches=batches, progress=reports.append)
    assert [n for n, m in pruned.named_modules() if isinstance(m, Skip)] == ["2", "3"]
    torch.testing.assert_close(pruned(batches[0][0]), model(batches[0][0]))
    assert [(r.done, r.total) for r in reports] == [(1, 2), (2, 2)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 8), nn.ReLU(inplace=True), nn.Linear(8, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


class _Plain(_Residual):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_blocks_are_those_with_a_path_past_their_weights() -> None:
    model = nn.Sequential(_Residual(16), _Plain(16), nn.Sequential(_Residual(16), _Residual(16)))
    assert residual_blocks(model.eval(), torch.zeros(1, 5, 16)) == ["0", "2.0", "2.1"]
    assert residual_blocks(_encoder(), _batches()[0][0]) == ["layers.0", "layers.1", "layers.2"]


def test_a_block_into_which_other_code_looks_stays() -> None:
    assert residual_blocks(_Torch().eval(), torch.zeros(1, 5, 16)) == ["encoder.layers.1"]


def test_more_blocks_than_there_are_is_an_error_that_says_how_many() -> None:
    batches = _batches()
    with pytest.raises(CompressError, match=r"cannot remove 4 residual blocks: only 3 were found"):
        prune(_encoder(), Prune(ratio=0, blocks=4), batches[0][0], batches=batches)


def test_all_at_once_in_rounds_is_the_same_every_time() -> None:
    batches, how = _batches(), Prune(ratio=0.5, heads=0.5, blocks=1, steps=2, ranking="global")
    first, second = (prune(_encoder(), how, batches[0][0], batches=batches) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    first(**batches[0][0]).sum().backward()


def test_shared_weights_stay_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 16)
            self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 16)
            self.up2, self.down2 = nn.Linear(16, 12), nn.Linear(12, 16)
            self.up2.weight = self.up.weight
            self.up3, self.down3 = nn.Linear(16, 12), nn.Linear(12, 16)
            self.end = nn.Linear(16, 20, bias=False)
            self.end.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            for up, down in ((self.up, self.down), (self.up2, self.down2), (self.up3, self.down3)):
                x = x + down(torch.relu(up(x)))
            out: Tensor = self.end(x.mean(1))
            return out

    pruned = prune(Tied(), Prune(ratio=0.5, importance="magnitude"), torch.zeros(1, 4, dtype=torch.int64))
    widths = {n: tuple(m.weight.shape) for n, m in pruned.named_modules() if isinstance(m, nn.Linear)}
    assert widths["up3"] == (6, 16)
    assert widths["up"] == widths["up2"] == (12, 16)
    assert widths["end"] == (20, 16)


def test_groups_of_the_encoder() -> None:
    model = _encoder(1)
    graph = Dependencies(model, _batches()[0][0])
    assert {(g.first_units, g.size) for g in graph.groups} == {(4, 6), (32, 1)}
