"""A real encoder, where its weights and sentences are at hand: MiniLM-L6 on SST-2, natively."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from minilm import minilm
from sst2 import DATA, sentences, tokens

from edgewright.exporting import export
from edgewright.precision import Activations
from edgewright.recipe import Quantize
from edgewright_device import Runner

LENGTH = 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activations", "flips", "loss"), [("uint8", 0.08, 0.06), ("mixed", 0.025, 0.02), ("int16", 0.01, 0.01)]
)
def test_minilm_runs_natively_to_the_bit_and_keeps_its_predictions(
    activations: Activations, flips: float, loss: float, tmp_path: Path
) -> None:
    if not (DATA / "minilm_sst2").is_dir():
        pytest.skip(f"needs MiniLM's weights and SST-2 in {DATA}")
    model = minilm()
    texts, labels = sentences("test")
    chosen = np.random.default_rng(0).permutation(len(texts))[:600]
    x, labels = tokens([texts[i] for i in chosen], LENGTH), labels[chosen]
    calibration = tokens(sentences("train")[0][:128], LENGTH)
    artifact = export(
        model,
        target="x86-64",
        calibration=calibration,
        out=tmp_path / "minilm.ew",
        quantize=Quantize(activations=activations),
    )
    runner = Runner(artifact)
    name = artifact.outputs[0].name
    got = runner.run(x)[name]
    few = {n: v[:3] for n, v in x.items()}
    assert Runner(artifact, "reference").run(few)[name].tobytes() == got[:3].tobytes()
    with torch.no_grad():
        want = model(*(torch.from_numpy(x[n]) for n in ("ids", "mask"))).numpy()
    assert (got.argmax(1) != want.argmax(1)).mean() < flips
    assert (got.argmax(1) == labels).mean() > (want.argmax(1) == labels).mean() - loss


@pytest.mark.slow
def test_a_short_sentence_has_the_same_bits_in_the_program_for_short_ones(tmp_path: Path) -> None:
    if not (DATA / "minilm_sst2").is_dir():
        pytest.skip(f"needs MiniLM's weights and SST-2 in {DATA}")
    calibration = tokens(sentences("train")[0][:32], LENGTH)
    out = tmp_path / "minilm.ew"
    artifact = export(minilm(), target="x86-64", calibration=calibration, out=out, lengths=(32, LENGTH))
    assert artifact.lengths is not None
    assert artifact.lengths.mask == "mask"
    x = tokens(["a short sentence, and a good one", "bad"], LENGTH)
    short = {n: np.ascontiguousarray(v[:, :20]) for n, v in x.items()}
    runner, name = Runner(artifact), artifact.outputs[0].name
    got = runner.run(short)[name]
    assert got.tobytes() == runner.run(x)[name].tobytes()
    assert got.tobytes() == Runner(artifact, "reference").run(short)[name].tobytes()
