"""Batches of sentences, as the encoder's example trains on them."""

from __future__ import annotations

import numpy as np
import torch
from sst2 import Sentences


def _sentences(count: int = 50, length: int = 12) -> Sentences:
    random = np.random.default_rng(0)
    mask = (np.arange(length) < random.integers(2, length, (count, 1))).astype(np.int64)
    inputs = {
        "ids": torch.from_numpy(mask * np.arange(1, count + 1)[:, None]),
        "mask": torch.from_numpy(mask),
    }
    return Sentences(inputs=inputs, labels=torch.arange(count), size=8)


def test_every_sentence_comes_once_in_an_epoch_with_its_label_and_all_its_tokens() -> None:
    batches = _sentences()
    seen = []
    for inputs, labels in batches.epoch(torch.Generator().manual_seed(1)):
        assert torch.equal(inputs["ids"][:, 0], labels + 1)
        assert torch.equal(inputs["mask"].sum(1), batches.inputs["mask"][labels].sum(1))  # type: ignore[call-overload,index]
        assert inputs["mask"].sum(1).max() == inputs["mask"].shape[1]
        seen += labels.tolist()
    assert sorted(seen) == list(range(50))


def test_an_epoch_is_another_each_time_and_computes_little_padding() -> None:
    batches, generator = _sentences(), torch.Generator().manual_seed(1)
    first, second = ([labels.tolist() for _, labels in batches.epoch(generator)] for _ in range(2))
    assert first != second
    tokens = sum(inputs["mask"].numel() for inputs, _ in batches.epoch(generator))
    plain = sum(inputs["mask"].numel() for inputs, _ in batches)
    words = int(batches.inputs["mask"].sum())  # type: ignore[call-overload,index]
    assert tokens - words < 0.5 * (plain - words)
