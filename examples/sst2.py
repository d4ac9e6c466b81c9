"""SST-2, sentences about films with their sentiment (Socher et al. 2013), as BERT's tokens.

The tokens are those of BERT's WordPiece, lower case (Devlin et al. 2019).
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgewright.data import Batches

DATA = Path(os.environ.get("EDGEWRIGHT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


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


class Sentences(Batches):
    """Batches of token numbers and masks, each cut to its longest sentence.

    `epoch` puts sentences of like length together, so that little is computed for padding.
    """

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for inputs, labels in super().__iter__():
            yield _cut(inputs), labels

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Yields every sentence once, in batches drawn from `generator`."""
        assert isinstance(self.inputs, Mapping)
        lengths = self.inputs["mask"].sum(1)
        order = torch.randperm(len(lengths), generator=generator)
        order = order[lengths[order].argsort(stable=True)]  # by length, and by chance among equals
        batches = torch.split(order, self.size)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            chosen = batches[index]
            yield _cut({n: v[chosen] for n, v in self.inputs.items()}), self.labels[chosen]


def _cut(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    longest = int(inputs["mask"].sum(1).max())
    return {name: value[:, :longest] for name, value in inputs.items()}
