"""A sentence encoder made small: MiniLM-L6 on SST-2, pruned, taught by its former self, put into integers.

    python examples/sentence_encoder.py                  # most of an hour on two cores
    python examples/sentence_encoder.py --device cuda    # a few minutes
    python examples/sentence_encoder.py --quick          # a few minutes: few sentences, so less accuracy

What is done stands in sentence_encoder.toml beside this file; docs/guides/sentence-encoder.md tells about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from minilm import load_encoder, minilm, save_encoder
from sst2 import Sentences, sentences, tokens

import edgewright as ew
from edgewright.fidelity import Fidelity, described, fidelity, outputs_of

RECIPE = Path(__file__).with_suffix(".toml")
LENGTHS = (16, 32, 64, 128)  # of the integer programs: a sentence runs in the shortest that holds it
TRAINED_LENGTH = 64  # tokens; of the training sentences, no more than a few are longer
HELD_OUT = 6_000  # training sentences for validation
CALIBRATED = 64  # sentences
BATCH = 64
QUICK = 2_048
MARGIN = 0.01  # of the float model's accuracy may be lost

Logits = npt.NDArray[np.float32]


def data(*, quick: bool = False) -> ew.Data:
    """SST-2's train part, but for some sentences that are kept for validation."""
    texts, labels = sentences("train")
    order = np.random.default_rng(0).permutation(len(texts))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    if quick:
        held, rest = held[: QUICK // 4], rest[:QUICK]

    def batches(chosen: npt.NDArray[np.int64]) -> Sentences:
        arrays = tokens([texts[i] for i in chosen], TRAINED_LENGTH)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Sentences(inputs=inputs, labels=torch.from_numpy(labels[chosen]), size=BATCH)

    return ew.Data(train=batches(rest), validation=batches(held))


def student(
    recipe: ew.Recipe,
    given: ew.Data,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: ew.OnProgress | None = None,
) -> torch.nn.Module:
    """MiniLM-L6, pruned as the recipe says and taught by MiniLM-L6 itself; it comes back on the CPU."""
    teacher = minilm().to(device)
    for part in (teacher.words, teacher.places, teacher.types):
        part.requires_grad_(False)  # most words are rare here, and would only drift
    small = ew.compress(
        teacher, recipe, data=given, teacher=teacher, checkpoint=checkpoint, progress=progress
    )
    return small.cpu()


def to_integers(
    model: torch.nn.Module, recipe: ew.Recipe, out: Path, *, progress: ew.OnProgress | None = None
) -> ew.Artifact:
    """The model as an artifact, with a program for each of LENGTHS."""
    texts = sentences("train")[0]
    chosen = np.random.default_rng(0).permutation(len(texts))[:CALIBRATED]
    return ew.export(
        model,
        target="x86-64",
        calibration=tokens([texts[i] for i in chosen], LENGTHS[-1]),
        out=out,
        quantize=recipe.quantize,
        lengths=LENGTHS,
        progress=progress,
    )


def by_length(inputs: Mapping[str, npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
    """The rows that fit each of LENGTHS and none shorter, in that order."""
    counts = inputs["mask"].sum(1)
    fits = np.searchsorted(LENGTHS, counts)
    return [np.flatnonzero(fits == place) for place in range(len(LENGTHS))]


def logits(model: torch.nn.Module | ew.Artifact, inputs: Mapping[str, npt.NDArray[np.int64]]) -> Logits:
    """Outputs, (sentences, classes), of a float model, or of an artifact on the native engine."""
    found: dict[int, Logits] = {}
    runner = ew.Runner(model, "native") if isinstance(model, ew.Artifact) else None
    for length, rows in zip(LENGTHS, by_length(inputs), strict=True):
        if not len(rows):
            continue
        cut = {name: np.ascontiguousarray(array[rows, :length]) for name, array in inputs.items()}
        if runner is not None:
            (out,) = runner.run(cut).values()
        else:
            assert isinstance(model, torch.nn.Module)
            parts = {name: torch.from_numpy(array) for name, array in cut.items()}
            whole = Sentences(inputs=parts, labels=torch.zeros(len(rows), dtype=torch.int64), size=BATCH)
            out, _ = outputs_of(model, whole)
        found.update(zip(rows.tolist(), out, strict=True))
    return np.stack([found[row] for row in range(len(found))])


def kept(
    models: Sequence[torch.nn.Module | ew.Artifact], part: str, rows: int | None = None
) -> list[Fidelity]:
    """What each model kept of the first one, on a part of SST-2 or on its first rows."""
    texts, labels = sentences(part)
    inputs = tokens(texts[:rows], LENGTHS[-1])
    first, *others = (logits(model, inputs) for model in models)
    return [fidelity(first, out, labels[:rows]) for out in others]


def tell(report: ew.Progress) -> None:
    """One line where something was measured, or is done."""
    metrics: Mapping[str, Any] = report.metrics
    if report.done == report.total or "accuracy" in metrics:
        numbers = ", ".join(f"{name} {value:,.4g}" for name, value in metrics.items())
        print(f"{report.step} {report.done}/{report.total} {numbers}{report.note}", flush=True)


def main() -> None:
    """The whole trip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little data, one epoch, less accuracy")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--student", type=Path, help="take this trained student; made there if missing")
    parser.add_argument("--out", type=Path, default=Path("out/sentence-encoder"))
    options = parser.parse_args()
    recipe = ew.Recipe.from_toml(options.recipe)
    if options.quick and recipe.prune is not None and recipe.finetune is not None:
        recipe = replace(
            recipe, prune=replace(recipe.prune, batches=4), finetune=replace(recipe.finetune, epochs=1)
        )
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.student or options.out / "student.safetensors"
    if not place.is_file():
        checkpoint = options.out / "checkpoint"
        made = student(
            recipe, data(quick=options.quick), device=options.device, checkpoint=checkpoint, progress=tell
        )
        save_encoder(made, place)
    small = load_encoder(place)
    artifact = to_integers(small, recipe, options.out / "sentence-encoder.ew", progress=tell)
    print(f"{place}\n{artifact.path}")
    rows = QUICK // 4 if options.quick else None
    for part in ("dev", "test"):
        in_float, in_integers = kept((minilm(), small, artifact), part, rows)
        print(f"{part}, pruned, float: {described(in_float)}")
        print(f"{part}, in integers:   {described(in_integers)}")
        loses = in_integers.loses_less_than(MARGIN * in_integers.reference_accuracy)
        answer = {True: "yes", False: "no", None: "these samples cannot tell"}[loses]
        print(f"{part}, 99 % of the accuracy kept, with 97.5 % confidence: {answer}")


if __name__ == "__main__":
    main()
