"""The modules of the INT8 benchmark's networks, in the shapes of their papers, weights not yet drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Residual networks: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; the stride is the 3x3's, as in most implementations."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *_conv_norm(channels, width, 1), nn.ReLU(),
            *_conv_norm(width, width, 3, stride=stride), nn.ReLU(),
            *_conv_norm(width, out, 1),
        )  # fmt: skip
        changes = stride != 1 or channels != out
        self.shortcut = (
            nn.Sequential(*_conv_norm(channels, out, 1, stride=stride)) if changes else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 for 1,000 classes."""
    layers: list[nn.Module] = [*_conv_norm(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class SmallResidual(nn.Module):
    """Two 3x3 convolutions and a shortcut; padding falls where TensorFlow's "same" puts it."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_same(channels, out, stride), nn.ReLU(), *_same(out, out, 1))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet8() -> nn.Module:
    """ResNet8 for CIFAR-10, the image classifier of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597)."""
    return nn.Sequential(
        *_same(3, 16, 1), nn.ReLU(),
        SmallResidual(16, 16, 1), SmallResidual(16, 32, 2), SmallResidual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


# MobileNetV2: Sandler et al. 2018, arXiv:1801.04381, width 1.0.


class InvertedResidual(nn.Module):
    """Widen by 1x1, 3x3 depthwise, narrow by 1x1."""

    def __init__(self, channels: int, out: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = channels * widen
        first = [*_conv_norm(channels, wide, 1), nn.ReLU6()] if widen > 1 else []
        self.body = nn.Sequential(
            *first,
            *_conv_norm(wide, wide, 3, stride=stride, groups=wide), nn.ReLU6(),
            *_conv_norm(wide, out, 1),
        )  # fmt: skip
        self.adds = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.adds else y


def mobilenetv2() -> nn.Module:
    """MobileNetV2 for 1,000 classes."""
    layers: list[nn.Module] = [*_conv_norm(3, 32, 3, stride=2), nn.ReLU6()]
    channels = 32
    stages = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    for widen, out, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, out, stride if block == 0 else 1, widen))
            channels = out
    return nn.Sequential(
        *layers, *_conv_norm(channels, 1280, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000),
    )  # fmt: skip


def ds_cnn() -> nn.Module:
    """DS-CNN for 12 keywords, of MLPerf Tiny, after Zhang et al. 2017, "Hello Edge", arXiv:1711.07128."""
    layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2), nn.BatchNorm2d(64)]
    for _ in range(4):
        layers += [nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


# The encoder of BERT: Devlin et al. 2019, arXiv:1810.04805; its layers as Vaswani et al. 2017 give them.


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence with itself; no mask, for every token counts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, width = x.shape[1:]
        each = width // self.heads

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(-1, tokens, self.heads, each).transpose(1, 2)

        scores = split(self.query(x)) @ split(self.key(x)).transpose(2, 3) * each**-0.5
        mixed = torch.softmax(scores, -1) @ split(self.value(x))
        y: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return y


class EncoderLayer(nn.Module):
    """Attention and a two-layer network, each added to its input and then normalized."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_1(x + self.attention(x))
        y: torch.Tensor = self.norm_2(x + self.second(functional.gelu(self.first(x))))
        return y


def bert_base() -> nn.Module:
    """The 12 encoder layers of BERT-base: hidden states in, hidden states out."""
    return nn.Sequential(*(EncoderLayer(768, 12, 3072) for _ in range(12)))


class SentenceClassifier(nn.Module):
    """MiniLM-L6-H384 (Wang et al. 2020, arXiv:2002.10957) with a head on the mean over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30522, 384), nn.Embedding(512, 384)
        self.kinds = nn.Embedding(2, 384)
        self.norm = nn.LayerNorm(384, eps=1e-12)
        self.layers = nn.Sequential(*(EncoderLayer(384, 12, 1536) for _ in range(6)))
        self.head = nn.Linear(384, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = self.positions.weight[: tokens.shape[1]] + self.kinds.weight[0]
        x = self.layers(self.norm(self.words(tokens) + places))
        y: torch.Tensor = self.head(x.mean(1))
        return y

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights under their own names, or under those of the file of BERT."""
        return super().load_state_dict({_own_name(n): w for n, w in state.items()}, strict, assign)


_OWN_NAMES = (
    ("bert.embeddings.LayerNorm", "norm"),
    ("bert.embeddings.word_embeddings", "words"),
    ("bert.embeddings.position_embeddings", "positions"),
    ("bert.embeddings.token_type_embeddings", "kinds"),
    ("bert.encoder.layer", "layers"),
    ("attention.output.LayerNorm", "norm_1"),
    ("attention.output.dense", "attention.out"),
    ("attention.self", "attention"),
    ("intermediate.dense", "first"),
    ("output.LayerNorm", "norm_2"),
    ("output.dense", "second"),
)


def _own_name(name: str) -> str:
    for theirs, ours in _OWN_NAMES:
        name = name.replace(theirs, ours)
    return name


# Single operators.


def linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    """One matrix product, with its bias."""
    return lambda: nn.Linear(inputs, outputs)


def depthwise(channels: int, count: int) -> Callable[[], nn.Module]:
    """So many 3x3 depthwise convolutions one after another, as MobileNetV2 has them."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(count):
            layers += [*_conv_norm(channels, channels, 3, groups=channels), nn.ReLU6()]
        return nn.Sequential(*layers)

    return make


def _conv_norm(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Sequence[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out)


def _same(channels: int, out: int, stride: int) -> Sequence[nn.Module]:
    if stride == 1:
        return nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)
    # For an even size and a stride of two, "same" pads one row below and one column on the right.
    return nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, out, 3, stride), nn.BatchNorm2d(out)
