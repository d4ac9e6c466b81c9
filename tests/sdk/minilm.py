"""A real encoder for tests: MiniLM-L6 (Wang et al. 2020), fine-tuned on SST-2, where its data is at hand.

The encoder is BERT's (Devlin et al. 2019), written in plain torch; the tokens are BERT's WordPiece, lower
case.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(os.environ.get("EDGEWRIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))


class Layer(nn.Module):
    """One encoder layer, norms behind the sums."""

    def __init__(self, hidden: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(hidden, epsilon), nn.LayerNorm(hidden, epsilon)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, hidden = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, length, self.heads, -1).transpose(1, 2)

        attended = nn.functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=mask
        )
        x = self.norm1(x + self.out(attended.transpose(1, 2).reshape(n, length, hidden)))
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
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])) + self.types(torch.zeros_like(ids))
        x = self.norm(x)
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


def sentences(part: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Sentences and labels of SST-2's train, dev or test part, as at hand."""
    with (DATA / "sst2" / f"{part}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [r[0] for r in rows], np.array([int(r[1]) for r in rows])


def tokens(texts: Sequence[str], length: int) -> dict[str, npt.NDArray[np.int64]]:
    """Token numbers and mask, int64 (texts, length), of BERT's WordPiece."""
    lines = (DATA / "minilm_sst2" / "vocab.txt").read_text("utf-8").splitlines()
    vocabulary = {word: number for number, word in enumerate(lines)}
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        pieces = [p for word in _words(text) for p in _pieces(word, vocabulary)][: length - 2]
        numbers = [vocabulary[p] for p in ("[CLS]", *pieces, "[SEP]")]
        ids[row, : len(numbers)] = numbers
        mask[row, : len(numbers)] = 1
    return {"ids": ids, "mask": mask}


def _words(text: str) -> Iterator[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    word = ""
    for c in plain:
        mark = unicodedata.category(c).startswith("P") or (
            c.isascii() and not c.isalnum() and not c.isspace()
        )
        if c.isspace() or mark:
            if word:
                yield word
            word = ""
            if mark:
                yield c
        else:
            word += c
    if word:
        yield word


def _pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """The longest pieces first, left to right."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        end = len(word)
        while end > start and ("##" if start else "") + word[start:end] not in vocabulary:
            end -= 1
        if end == start:
            return ["[UNK]"]
        pieces.append(("##" if start else "") + word[start:end])
        start = end
    return pieces
