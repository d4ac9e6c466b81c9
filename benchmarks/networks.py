"""The networks of the INT8 benchmark, with seeded random weights.

Time does not depend on what the weights are as long as no activation vanishes or overflows, so none of them
is trained: convolutions start as He et al. 2015 (arXiv:1502.01852) say, and the statistics of each batch norm
are those of seeded random inputs, which leaves every activation with a spread of about one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from architectures import (
    SelfAttention,
    SentenceClassifier,
    bert_base,
    depthwise,
    ds_cnn,
    linear,
    mobilenetv2,
    resnet8,
    resnet50,
)
from safetensors.torch import load_file
from torch import nn

STATISTICS_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network to measure.

    Attributes:
        name: As in the tables.
        title: For people.
        make: Gives the module, its weights not yet drawn.
        input_shape: Of one sample.
        must: Ratio to the best peer that has to be reached, or None.
        aim: Ratio that is aimed at, or None.
        whole: Not single operators.
        words: How many words the input's indices choose from; 0 for an input of float32.
        weights: A safetensors file with trained weights, or None.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    must: float | None = None
    aim: float | None = None
    whole: bool = True
    words: int = 0
    weights: Path | None = None

    def module(self, seed: int = 0) -> nn.Module:
        """The module, trained, or its weights and statistics drawn from the seed."""
        torch.manual_seed(seed)
        module = self.make()
        if self.weights is not None:
            module.load_state_dict({n: w.float() for n, w in load_file(self.weights).items()})
            return module.eval()
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        _set_statistics(module, torch.from_numpy(self.samples(STATISTICS_SAMPLES, seed=seed + 1)))
        return module.eval()

    def samples(self, count: int, seed: int = 0) -> npt.NDArray[Any]:
        """Random inputs, (count, *input_shape): float32 of mean 0 and spread 1, or int64 indices."""
        random = np.random.default_rng(seed)
        if self.words:
            return random.integers(0, self.words, (count, *self.input_shape), np.int64)
        return random.standard_normal((count, *self.input_shape), np.float32)


def _set_statistics(module: nn.Module, samples: torch.Tensor) -> None:
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what it sees
    module.train()
    with torch.no_grad():
        module(samples)


def cost(network: Network) -> tuple[int, int]:
    """Multiply-accumulates for one sample, and parameters.

    Products of convolutions, linear layers and matrix products of activations are counted; additions of
    biases, batch norm, activations and pools are not.
    """
    with torch.device("meta"):  # shapes alone
        module, sample = (
            network.make(),
            torch.zeros(2, *network.input_shape, dtype=torch.int64 if network.words else torch.float32),
        )
    macs = 0

    def count(part: nn.Module, _: object, result: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(part, nn.Conv2d | nn.Linear):
            macs += result[0].numel() * part.weight[0].numel()
        elif isinstance(part, SelfAttention):
            tokens, width = result.shape[1:]
            macs += 2 * tokens * tokens * width

    for part in module.modules():
        part.register_forward_hook(count)
    with torch.no_grad():
        module(sample)
    return macs, sum(p.numel() for p in module.parameters())


IMAGE = (3, 224, 224)
TOKENS = 128
DEPTHWISE_LAYERS = 32
MINILM = Path(__file__).resolve().parents[2] / "shared" / "data" / "minilm_sst2" / "model_fp16.safetensors"
NETWORKS = (
    Network(
        name="bert-base",
        title=f"BERT-base shape, {TOKENS} tokens",
        make=bert_base,
        input_shape=(TOKENS, 768),
        must=1.1,
        aim=1.28,
    ),
    Network(name="resnet50", title="ResNet-50", make=resnet50, input_shape=IMAGE, must=1.0, aim=1.2),
    Network(name="mobilenetv2", title="MobileNetV2", make=mobilenetv2, input_shape=IMAGE, must=1.4, aim=1.65),
    Network(name="resnet8", title="ResNet8", make=resnet8, input_shape=(3, 32, 32), must=1.1, aim=1.33),
    Network(name="ds-cnn", title="DS-CNN", make=ds_cnn, input_shape=(1, 49, 10), must=1.4, aim=1.6),
    # What follows has no goal of its own.
    Network(
        name="minilm",
        title=f"MiniLM-L6, {TOKENS} tokens",
        make=SentenceClassifier,
        input_shape=(TOKENS,),
        words=30522,
        weights=MINILM,
    ),
    *(
        Network(
            name=f"gemm-{TOKENS}x{k}x{n}",
            title=f"GEMM {TOKENS}x{k}x{n}",
            make=linear(k, n),
            whole=False,
            input_shape=(TOKENS, k),
        )
        for k, n in ((768, 768), (768, 3072), (3072, 768))
    ),
    # Many in a row, so that the conversion from and to float32 at either end weighs little.
    *(
        Network(
            name=f"depthwise-{size}x{size}x{channels}",
            title=f"{DEPTHWISE_LAYERS} depthwise 3x3 convolutions, {size}x{size}x{channels}",
            make=depthwise(channels, DEPTHWISE_LAYERS),
            whole=False,
            input_shape=(channels, size, size),
        )
        for size, channels in ((56, 128), (112, 32))
    ),
)
