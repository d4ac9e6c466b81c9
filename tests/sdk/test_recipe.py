import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgewright.errors import RecipeError
from edgewright.recipe import Distill, Finetune, LayerLoss, Progressive, Prune, Qat, Quantize, Recipe

LAYERS = (
    LayerLoss(student="a.0", teacher="b"),
    LayerLoss(student="c", teacher="d", loss="self_attention", weight=0.5, heads=12),
)
FULL = Recipe(
    name="every part, with “quotes” and \\ in its name",
    seed=7,
    distill=Distill(
        epochs=3, temperature=2.5, mask="mask", layers=LAYERS, progressive=Progressive(until=0.3)
    ),
    prune=Prune(ratio=0.5, importance="magnitude", round_to=8, steps=2),
    finetune=Finetune(label_smoothing=0.1),
    quantize=Quantize(calibration="percentile", percentile=99.9),
)


@pytest.mark.parametrize("recipe", [FULL, Recipe(name="bare")], ids=["full", "bare"])
def test_toml_gives_back_an_equal_recipe(recipe: Recipe, tmp_path: Path) -> None:
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe
    assert Recipe.from_toml(str(path)) == recipe


def test_absent_section_is_a_step_not_taken_and_an_empty_one_is_taken() -> None:
    recipe = Recipe.from_toml('name = "x"\n[prune]\n')
    assert recipe.prune == Prune()
    assert recipe.distill is None
    assert recipe.finetune is None


def test_whole_number_serves_as_a_float() -> None:
    temperature = Recipe.from_toml('name = "x"\n[distill]\ntemperature = 3').distill
    assert temperature is not None
    assert repr(temperature.temperature) == "3.0"


def test_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nmae = "x"', r"recipe: unknown key 'nmae'; did you mean 'name'\?"),
        ('name = "x"\n[distil]', r"recipe: unknown section 'distil'; did you mean 'distill'\?"),
        (
            'name = "x"\n[prune]\nrattio = 0.3',
            r"recipe, \[prune\]: unknown key 'rattio'; did you mean 'ratio'\?",
        ),
        ('name = "x"\n[prune]\nzzz = 1', r"\[prune\]: unknown key 'zzz'; known here: ratio, heads"),
        ('name = "x"\n[prune]\nratio = "30 %"', r"\[prune\]: ratio: '30 %' is not a number"),
        ('name = "x"\n[prune]\nratio = true', r"\[prune\]: ratio: True is not a number"),
        ('name = "x"\n[prune]\nratio = nan', r"\[prune\]: ratio: nan is not a finite number"),
        (
            'name = "x"\n[prune]\nratio = 1.0',
            r"\[prune\]: ratio: 1.0 is out of range; it must be at least 0 and below 1",
        ),
        ('name = "x"\n[prune]\nsteps = 2.0', r"\[prune\]: steps: 2.0 is not a whole number"),
        ('name = "x"\n[prune]\nsteps = 0', r"\[prune\]: steps: 0 is out of range; it must be at least 1"),
        ('name = "x"\n[prune]\nimportance = "l1"', r"importance: 'l1' is not one of 'taylor', 'hessian',"),
        ('name = "x"\n[prune]\nimportance = [1]', r"importance: \[1\] is not one of"),
        ('name = "x"\n[quantize]\nweight_bits = 4', r"\[quantize\]: .*'?weight_bits"),
        ('name = "x"\n[quantize]\ncalibration = "best"', r"\[quantize\]: calibration: 'best' is not one of"),
        ('name = "x"\n[quantize]\npercentile = 101', r"percentile: 101.0 is out of range"),
        (
            'name = "x"\n[distill]\nlayers = ["a"]',
            r"'layers' is a list of sections: write \[\[distill.layers",
        ),
        (
            'name = "x"\n[[distill.layers]]\nstudent = "a"',
            r"\[\[distill.layers\]\]: key 'teacher' is missing",
        ),
        (
            'name = "x"\n[[distill.layers]]\nstudent = "a"\nteacher = "b"\nloss = "fsp"',
            r"\[\[distill.layers\]\]: loss: 'fsp' is not one of 'hint', 'attention'",
        ),
        (
            'name = "x"\n[distill.progressive]\ninherit = 1',
            r"\[distill.progressive\]: inherit: 1 is not true",
        ),
        (
            'name = "x"\n[distill.progressive]\nuntl = 1',
            r"\[distill.progressive\]: unknown key 'untl'; did you",
        ),
        (
            'name = "x"\n[distill]\nprogressive = true',
            r"'progressive' is a section: write \[distill.progressive",
        ),
        ('name = "x"\n[qat]\n[quantize]\nrounding = "gptq"', r"quantize\.rounding: with \[qat\]"),
        ('name = "x"\n[finetune]\nalpha = 1', r"\[finetune\]: unknown key 'alpha'"),
        ('name = "x"\nprune = 0.3', r"'prune' is a section: write \[prune\]"),
        ('name = "x"\nseed = -1', r"recipe: seed: -1 is out of range"),
        ('name = " "', r"name: is empty"),
        ("name = 3", r"name: 3 is not a text"),
        ("seed = 1", r"key 'name' is missing"),
        ("name = ", r"recipe: not valid TOML: Invalid value"),
    ],
)
def test_bad_recipe_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml(text)


def test_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "x"\n[quantize]\ncalibraton = "mse"\n')
    with pytest.raises(RecipeError, match=r"mine\.toml, \[quantize\]: unknown key 'calibraton'"):
        Recipe.from_toml(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["absent", "not UTF-8"])
def test_unreadable_file_is_a_recipe_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml: cannot read this recipe"):
        Recipe.from_toml(str(path))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Prune, {"ratio": 2}),
        (Distill, {"temperature": 0}),
        (Distill, {"layers": (1,)}),
        (Finetune, {"epochs": 0}),
        (Recipe, {"name": 1}),
    ],
)
def test_bad_value_in_code_is_a_value_error(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**values)


def test_what_is_for_trained_float_models_is_not_for_training_on_integers() -> None:
    with pytest.raises(ValueError, match="leave out equalize, correct_bias; training takes their place"):
        Recipe(name="both", qat=Qat(), quantize=Quantize(equalize=True, correct_bias=True))


def test_a_text_is_not_a_list_of_layers() -> None:
    with pytest.raises(RecipeError, match="keep_float: 'conv' is not a sequence of str"):
        Recipe.from_toml('name = "text"\n[quantize]\nkeep_float = "conv"')
