"""The example's encoder on disk, whole and pruned, and its recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from minilm import Encoder, Layer, load_encoder, save_encoder
from sentence_encoder import RECIPE, by_length

from edgewright.compression import steps_of
from edgewright.depth import remove_block
from edgewright.pruning import prune
from edgewright.recipe import Prune, Recipe


def test_a_pruned_encoder_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Encoder().eval()
    ids, mask = torch.randint(1, 30522, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    inputs = {"ids": ids, "mask": mask}
    pruned = prune(whole, Prune(heads=0.5, ratio=0.75, importance="magnitude"), inputs)
    remove_block(pruned, "layers.4")
    pruned.half().float()  # what a file keeps
    save_encoder(pruned, tmp_path / "student.safetensors")
    back = load_encoder(tmp_path / "student.safetensors")
    first = back.layers[0]
    assert isinstance(first, Layer)
    assert (first.heads, first.up.out_features) == (6, 384)
    with torch.no_grad():
        assert torch.equal(back(**inputs), pruned(**inputs))


def test_each_sentence_runs_in_the_shortest_program_that_holds_it() -> None:
    mask = (np.arange(128) < np.array([[128], [16], [17], [3]])).astype(np.int64)
    assert [rows.tolist() for rows in by_length({"mask": mask})] == [[1, 3], [2], [], [0]]


def test_the_recipe_prunes_and_then_learns_from_what_was() -> None:
    assert steps_of(Recipe.from_toml(RECIPE)) == ("prune", "finetune")
