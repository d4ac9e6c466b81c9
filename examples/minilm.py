"""MiniLM-L6 (Wang et al. 2020), an encoder as BERT's (Devlin et al. 2019) in plain torch."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sst2 import DATA
from torch import Tensor, nn


class Layer(nn.Module):
    """One encoder layer, norms behind the sums."""

    def __init__(self, hidden: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(hidden, epsilon), nn.LayerNorm(hidden, epsilon)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Takes tokens, float32 (N, length, hidden), and which of them count, bool (N, 1, 1, length)."""
        n, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, length, self.heads, -1).transpose(1, 2)

        attended = nn.functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=mask
        )
        x = self.norm1(x + self.out(attended.transpose(1, 2).flatten(2)))
        y: Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return y


class Encoder(nn.Module):
    """BERT's encoder, the mean over the tokens, and a linear head. Takes ids and mask, int64 (N, length)."""

    def __init__(
        self,
        *,
        layers: int = 6,
        hidden: int = 384,
        heads: int = 12,
        inner: int = 1536,
        vocabulary: int = 30522,
        positions: int = 512,
        classes: int = 2,
        epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, hidden), nn.Embedding(positions, hidden)
        self.types = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, epsilon)
        self.layers = nn.ModuleList(Layer(hidden, heads, inner, epsilon) for _ in range(layers))
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Gives logits, float32 (N, classes)."""
        places = self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.norm(self.words(ids) + places + self.types(torch.zeros_like(ids)))
        keep = mask[:, None, None, :].to(torch.bool)
        for layer in self.layers:
            x = layer(x, keep)
        weight = mask[:, :, None].to(x.dtype)
        pooled = (x * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


_NAMES = {
    "embeddings.LayerNorm": "norm",
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "types",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


def minilm() -> Encoder:
    """MiniLM-L6 with the weights at hand, in eval mode."""
    stored = load_file(DATA / "minilm_sst2" / "model_fp16.safetensors")
    renamed: dict[str, Tensor] = {}
    for name, value in stored.items():
        new = name.removeprefix("bert.").replace("encoder.layer.", "layers.")
        for old, short in _NAMES.items():
            new = new.replace(f"{old}.", f"{short}.")
        renamed[new] = value.float()
    model = Encoder()
    model.load_state_dict({name: renamed[name] for name in model.state_dict()})
    return model.eval()


def save_encoder(model: nn.Module, path: Path) -> None:
    """Writes an encoder's weights as float16 safetensors."""
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)


def load_encoder(path: Path) -> Encoder:
    """An encoder from its weights, in eval mode; what was pruned shows in their shapes."""
    stored = {name: value.float() for name, value in load_file(path).items()}
    model = Encoder()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        if f"layers.{index}.out.weight" not in stored:
            model.layers[index] = Gone()
            continue
        head_width = layer.query.out_features // layer.heads
        layer.heads = stored[f"layers.{index}.query.weight"].shape[0] // head_width
        for name, part in layer.named_children():
            if isinstance(part, nn.Linear):
                outputs, inputs = stored[f"layers.{index}.{name}.weight"].shape
                setattr(layer, name, nn.Linear(inputs, outputs))
    model.load_state_dict(stored)
    return model.eval()


class Gone(nn.Module):
    """Stands where a layer was."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        """Gives the tokens on."""
        return x
