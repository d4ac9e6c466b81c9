"""A teacher of 120 million parameters and a student of 8 million, on SST-2. `make bench-large_teacher`.

Both are BERT's encoder (examples/minilm.py), from random weights: the teacher learns from the labels, and the
student from the labels alone, from the teacher's outputs, and from the relations between its queries, keys
and values too. It needs an accelerator: minutes on one, days without. A test takes one step of it anywhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Claim, write
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from minilm import Encoder
from sst2 import sentences, tokens

from edgewright import Data, Distill, LayerLoss, Training, distill, evaluate, train, wilson_interval

LENGTH, BATCH = 48, 64
TEACHING = Training(epochs=3, learning_rate=1e-4)
LEARNING = Training(epochs=3, learning_rate=1e-3)
LOGITS = Distill(epochs=3, learning_rate=1e-3, temperature=2.0)
RELATIONS = Distill(
    epochs=3,
    learning_rate=1e-3,
    temperature=2.0,
    mask="mask",
    layers=tuple(
        LayerLoss(student=f"layers.3.{part}", teacher=f"layers.11.{part}", loss="self_attention", heads=12)
        for part in ("query", "key", "value")
    ),
)


def large() -> Encoder:
    """The teacher, untrained: 120,697,346 parameters."""
    return Encoder(layers=12, hidden=768, heads=12, inner=3712)


def small() -> Encoder:
    """The student, untrained: 8,133,378 parameters."""
    return Encoder(layers=4, hidden=192, heads=3, inner=1024)


def initialise(model: Encoder) -> None:
    """Gives it BERT's initial weights (Devlin et al. 2019): normal, with a deviation of 0.02."""
    for each in model.modules():
        if isinstance(each, nn.Linear | nn.Embedding):
            nn.init.normal_(each.weight, std=0.02)


def main() -> None:
    """Trains, distils and records."""
    if not torch.cuda.is_available():
        sys.exit("large_teacher needs an accelerator; tests/benchmarks/test_large_teacher.py takes one step")
    torch.set_float32_matmul_precision("high")  # TensorFloat-32
    (x, y), (x_dev, y_dev), (x_test, y_test) = (
        (tokens(texts, LENGTH), labels) for texts, labels in map(sentences, ("train", "dev", "test"))
    )
    data = Data.from_arrays(x, y, x_dev, y_dev, batch_size=BATCH)
    test = Data.from_arrays(x_test, y_test, x_test, y_test, batch_size=BATCH).validation
    torch.manual_seed(0)
    teacher, student = large(), small()
    for model in (teacher, student):
        initialise(model)
        model.cuda()
    rows: list[dict[str, Any]] = []

    def measured(name: str, start: nn.Module, work: Callable[[], nn.Module]) -> nn.Module:
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        made = work()
        rows.append(
            {
                "model": name,
                "parameters": sum(each.numel() for each in start.parameters()),
                "seconds": time.perf_counter() - began,
                "peak_bytes": torch.cuda.max_memory_allocated(),
                "dev": evaluate(made, data.validation),
                "test": evaluate(made, test),
                "rows": len(y_test),
            }
        )
        print(rows[-1], flush=True)
        return made

    taught = measured("teacher", teacher, lambda: train(teacher, data, TEACHING))
    measured("labels", student, lambda: train(student, data, LEARNING))
    measured("logits", student, lambda: distill(student, taught, data, LOGITS))
    measured("logits and relations", student, lambda: distill(student, taught, data, RELATIONS))
    print(write("large_teacher", claims(rows), rows, ("numpy", "torch")))


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """What each model gets right on the test part, with its 95 % interval."""
    return [
        Claim(
            id=f"accuracy.{row['model'].replace(' ', '_')}",
            what=f"test accuracy: {row['model']}; 95 % interval",
            value=row["test"],
            unit="",
            interval=wilson_interval(round(row["test"] * row["rows"]), row["rows"]),
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
