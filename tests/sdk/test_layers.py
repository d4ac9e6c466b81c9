"""A `.pt2` program comes back as layers: the same bits, and it trains and prunes as the module did."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright import digits
from edgewright.compression import compress
from edgewright.errors import CompressError
from edgewright.layers import layered, load_program
from edgewright.models import save_model, trace
from edgewright.pruning import count_macs, prune
from edgewright.recipe import Finetune, Prune, Recipe
from edgewright.training import evaluate


class Encoder(nn.Module):
    """Two inputs, tokens and a mask; attention written out, a position table, a shared table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16, padding_idx=0)
        self.places = nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16, eps=1e-6)
        self.wide, self.back = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4 + (mask[:, None] - 1) * 100.0
        x = self.norm1(x + self.drop(scores.softmax(-1) @ self.value(x)))
        x = self.norm2(x + self.back(functional.gelu(self.wide(x))))
        out: Tensor = self.head(self.drop((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)))
        return out


class Zoo(nn.Module):
    """One of each kind of layer, two of them used twice, and one weight that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1, dilation=1, groups=2)
        self.same = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.batch = nn.BatchNorm2d(4, affine=False)
        self.line = nn.Conv1d(4, 6, 3)
        self.flat = nn.BatchNorm1d(6)
        self.rms = nn.RMSNorm(6, eps=1e-6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.act(self.norm(self.same(self.first(x)))))
        x = self.flat(self.line(self.batch(self.up(x)).mean(2))).mean(2)
        out: Tensor = self.head(self.head(self.rms(x) * self.scale))
        return out


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_()
        return model.eval()


def _tokens(count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 50, (count, 12), generator=generator)
    return tokens, (torch.arange(12) < torch.randint(3, 12, (count, 1), generator=generator)).float()


def _images(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda count: (torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)),)


MODELS = [
    (digits.Student, _images(1, 8, 8)),
    (digits.Teacher, _images(1, 8, 8)),
    (Encoder, _tokens),
    (Zoo, _images(2, 8, 8)),
]


@pytest.mark.parametrize(("kind", "inputs"), MODELS)
def test_layers_have_the_names_kinds_and_bits_of_the_module(
    kind: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], tmp_path: Path
) -> None:
    model = made(kind)
    save_model(model, inputs(2), tmp_path / "m.pt2")
    again = load_program(tmp_path / "m.pt2")
    with torch.no_grad():
        assert torch.equal(again(*inputs(5)), model(*inputs(5)))
    with_weights = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding, nn.PReLU)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    wanted = {n: str(m) for n, m in model.named_modules() if isinstance(m, (*with_weights, *norms))}
    found = {n: str(m) for n, m in again.named_modules() if isinstance(m, (*with_weights, *norms))}
    assert found == wanted
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(("kind", "inputs"), MODELS)
def test_layers_learn_as_the_module_does(
    kind: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]]
) -> None:
    model = made(kind)
    again = layered(trace(model, inputs(2)))
    gradients: list[dict[str, Tensor | None]] = []
    for each in (model, again):
        each.train()
        with torch.random.fork_rng():
            torch.manual_seed(2)  # dropout draws the same for both
            functional.cross_entropy(each(*inputs(6)), torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]
        found: dict[str, Tensor | None] = {n: p.grad for n, p in each.named_parameters()}
        gradients.append(found | dict(each.named_buffers()))
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        other = gradients[1][name]
        assert value is not None, name
        assert other is not None, name
        assert torch.equal(value, other), name


def test_inputs_have_the_names_of_forward() -> None:
    again = layered(trace(made(Encoder), _tokens(2)))
    tokens, mask = _tokens(3)
    assert torch.equal(again(mask=mask, tokens=tokens), again(tokens, mask))
    student = layered(trace(made(digits.Student), (torch.zeros(2, 1, 8, 8),)))
    assert student(x_NCHW=torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_program_traced_in_train_mode_counts_its_batches_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the batch size is fixed
        program = torch.export.export(digits.Student().train(), (torch.zeros(2, 1, 8, 8),))
    again = layered(program)
    again.train()
    again(torch.rand(2, 1, 8, 8))
    assert int(again.get_buffer("stem.1.num_batches_tracked")) == 1


def test_a_digits_program_prunes_as_its_module_does() -> None:
    model, example = made(digits.Student), torch.zeros(1, 1, 8, 8)
    again = layered(trace(model, (torch.zeros(2, 1, 8, 8),)))
    how = Prune(ratio=0.5, importance="magnitude")
    small, expected = prune(again, how, example), prune(model, how, example)
    assert count_macs(small, example) == count_macs(expected, example) < count_macs(model, example)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(x), expected(x))


class Transformer(nn.Module):
    """Takes float32 (N, 5, 8), gives logits (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 4, 16, dropout=0.1, batch_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x).mean(1))
        return out


def test_a_transformers_program_prunes_its_wide_layers_and_refuses_what_became_a_number() -> None:
    model, inputs = made(Transformer), _images(5, 8)
    again = layered(trace(model, inputs(2)))
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs(4)), model(*inputs(4)))
    how = Prune(ratio=0.5, importance="magnitude")
    small, expected = prune(again, how, inputs(1)), prune(model, how, inputs(1))
    for name in ("layers.0.linear1", "layers.1.linear2"):
        assert torch.equal(small.get_parameter(f"{name}.weight"), expected.get_parameter(f"{name}.weight"))
    with torch.no_grad():
        torch.testing.assert_close(small(*inputs(4)), expected(*inputs(4)))
    with pytest.raises(CompressError, match=r"the heads of the attention at .* are not recognised"):
        prune(again, Prune(ratio=0.25, heads=0.5, importance="magnitude"), inputs(1))


def test_a_program_is_compressed_saved_and_compressed_again(
    scans: digits.Digits, compressed: nn.Module, tmp_path: Path
) -> None:
    save_model(compressed, (scans.x_test[:2],), tmp_path / "small.pt2")
    recipe = Recipe(name="again", prune=Prune(ratio=0.2), finetune=Finetune(epochs=2))
    smaller = compress(tmp_path / "small.pt2", recipe, data=scans.data)
    assert isinstance(smaller, nn.Module)
    test = [(scans.x_test, scans.y_test)]
    assert evaluate(smaller, test) > evaluate(compressed, test) - 0.04
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in compressed.parameters())
    save_model(smaller, (scans.x_test[:2],), tmp_path / "smaller.pt2")
    with torch.no_grad():
        x = torch.from_numpy(scans.x_test[:3])
        assert torch.equal(load_program(tmp_path / "smaller.pt2")(x), smaller(x))


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class _Listed(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return x[0] + x[1]


def test_what_is_no_program_of_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"none\.pt2: there is no such file"):
        load_program(tmp_path / "none.pt2")
    (tmp_path / "damaged.pt2").write_bytes(b"nonsense")
    with pytest.raises(CompressError, match=r"damaged\.pt2: cannot be read as a \.pt2 program"):
        load_program(tmp_path / "damaged.pt2")
    x = torch.zeros(2, 3)
    torch.export.save(torch.export.export(_Pair(), (x,)), tmp_path / "pair.pt2")
    with pytest.raises(CompressError, match=r"pair\.pt2: the program gives several outputs"):
        load_program(tmp_path / "pair.pt2")
    torch.export.save(torch.export.export(_Listed(), ([x, x],)), tmp_path / "list.pt2")
    with pytest.raises(CompressError, match=r"list\.pt2: the program takes lists or tables"):
        load_program(tmp_path / "list.pt2")
