"""The example of the sentence encoder: what it keeps on disk, and its recipe."""

from pathlib import Path

import pytest
import torch
from minilm import Encoder, load_encoder, save_encoder
from sentence_encoder import LENGTHS, RECIPE, by_length

from edgewright.compression import steps_of
from edgewright.pruning import prune
from edgewright.recipe import Prune, Recipe


def test_a_recipe_may_say_how_to_learn_from_a_teacher_without_a_step_before_pruning() -> None:
    recipe = Recipe.from_toml(RECIPE)
    assert recipe.distill is not None
    assert steps_of(recipe) == ("prune", "finetune")


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_pruned_encoder_comes_back_from_its_file(tmp_path: Path, blocks: int) -> None:
    torch.manual_seed(0)
    model = Encoder(vocabulary=30522, positions=512).half().float().eval()
    inputs = {"ids": torch.randint(0, 1000, (2, 8)), "mask": torch.ones(2, 8, dtype=torch.int64)}
    batches = [(inputs, torch.tensor([0, 1]))]
    how = Prune(ratio=0.5, heads=0.5, blocks=blocks, importance="magnitude")
    small = prune(model, how, inputs, batches=batches)
    save_encoder(small, tmp_path / "small.safetensors")
    with torch.no_grad():
        again = load_encoder(tmp_path / "small.safetensors")(**inputs)
        assert torch.equal(again, small(**inputs))


def test_each_sentence_runs_in_the_shortest_program_that_holds_it() -> None:
    counts = torch.tensor([3, 16, 17, 64, 128])
    mask = (torch.arange(128) < counts[:, None]).long().numpy()
    assert [rows.tolist() for rows in by_length({"ids": mask, "mask": mask})] == [[0, 1], [2], [3], [4]]
    assert LENGTHS == (16, 32, 64, 128)
