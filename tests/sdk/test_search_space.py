"""`[search]` in a recipe: read, written, and refused where the recipe could not have it."""

from __future__ import annotations

import pytest

from edgewright.errors import RecipeError
from edgewright.recipe import Recipe
from edgewright.search_space import Range

TEXT = """
name = "m"

[search.prune]
ratio = { low = 0.1, high = 0.5, step = 0.1 }
importance = ["taylor", "magnitude"]

[search.finetune]
epochs = { low = 2, high = 8 }
learning_rate = { low = 1e-4, high = 1e-2, log = true }

[search.distill]
"""


def test_it_is_written_as_it_was_read() -> None:
    recipe = Recipe.from_toml(TEXT)
    assert recipe.search is not None
    assert recipe.search.sections["prune"] == {
        "ratio": Range(low=0.1, high=0.5, step=0.1),
        "importance": ("taylor", "magnitude"),
    }
    assert recipe.search.sections["distill"] == {}
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert hash(recipe) == hash(Recipe.from_toml(TEXT))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[search.pruen]\nratio = [0.1]", r"search: there is no section 'pruen'; did you mean 'prune'"),
        ("[search.prune]\nration = [0.1]", r"search\.prune: unknown key 'ration'; did you mean 'ratio'"),
        ("[search.prune]\nratio = [0.1, 1.5]", r"search\.prune\.ratio: 1\.5 is out of range"),
        ("[search.prune]\nratio = { low = 0.1, high = 1.5 }", r"search\.prune\.ratio: 1\.5 is out of range"),
        ("[search.prune]\nimportance = ['luck']", r"search\.prune\.importance: 'luck' is not one of"),
        ("[search.finetune]\nepochs = { low = 1.5, high = 3 }", r"epochs: 1\.5 is not a whole number"),
        ("[search.finetune]\nepochs = { low = 1, high = 3, step = 0.5 }", r"epochs: 1\.5 is not a whole"),
        ("[search.prune]\nratio = { low = 0.5, high = 0.1 }", r"\[search\]: prune\.ratio: .* below high"),
        ("[search.prune]\nratio = { low = 0.5 }", r"prune\.ratio: a range has low and high"),
        ("[search.prune]\nratio = { low = 0, high = 0.5, log = true }", r"needs low above 0, and no step"),
        ("[search.prune]\nratio = 0.5", r"prune\.ratio: write a list of choices"),
        ("[search.prune]\nratio = []", r"prune\.ratio: choices are a list"),
        ("[search.prune]\nratio = [0.1, 0.1]", r"a choice is there twice"),
        ("[search]\ntrials = 4", r"write \[search\.trials\] and the keys"),
        ("search = 3", "search: 3 is not"),
    ],
)
def test_what_a_recipe_could_not_have_is_refused_by_its_place(lines: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml(f'name = "m"\n{lines}\n')


def test_a_range_is_walked_evenly_or_by_factors() -> None:
    assert [Range(low=2, high=8).at(part, whole=True) for part in (0, 0.5, 1)] == [2, 5, 8]
    assert Range(low=1e-4, high=1e-2, log=True).at(0.5, whole=False) == pytest.approx(1e-3)
    assert Range(low=0.1, high=0.55, step=0.1).at(0.74, whole=False) == pytest.approx(0.4)
