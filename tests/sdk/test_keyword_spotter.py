"""The example of a keyword spotter: its front end, its data, and, slowly, the whole trip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from keyword_spotter import DATA, RECIPE, augment, load, log_mel, make, student, teacher

from edgewright.recipe import Distill, Finetune, Progressive, Recipe, Training

RECORDINGS = DATA / "fsdd" / "recordings_8khz.npz"
needs_recordings = pytest.mark.skipif(not RECORDINGS.exists(), reason=f"no recordings at {RECORDINGS}")


def _tone(hz: float, count: int = 8000) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(count) / 8000)).astype(np.int16)


def test_a_tone_is_loudest_in_its_band() -> None:
    bands = [int(log_mel(_tone(hz)).mean(axis=0).argmax()) for hz in (250, 500, 1000, 2000, 3500)]
    assert bands == sorted(set(bands))
    centres = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 4000 / 700), 34)[1:-1]
    nearest = [int(np.abs(centres - 2595 * np.log10(1 + hz / 700)).argmin()) for hz in (500, 1000, 2000)]
    assert bands[1:4] == nearest


@pytest.mark.parametrize("count", [0, 1, 3000, 8000, 20001])
def test_sound_of_any_length_becomes_one_second(count: int) -> None:
    energies = log_mel(_tone(500, count))
    assert energies.shape == (49, 32)
    assert energies.dtype == np.float32
    assert np.isfinite(energies).all()


def test_short_sound_stands_in_the_middle_of_silence_and_long_sound_is_cut_there() -> None:
    silence = log_mel(np.zeros(8000, np.int16))
    short = log_mel(_tone(500, 2000))
    assert np.array_equal(short[:17], silence[:17])
    assert np.array_equal(short[-17:], silence[-17:])
    assert (short[22:27] > silence[22:27]).any()
    long = np.concatenate([np.zeros(1000, np.int16), _tone(500), np.zeros(1000, np.int16)])
    assert np.array_equal(log_mel(long), log_mel(_tone(500)))


def test_changes_are_drawn_from_the_generator_alone() -> None:
    x = torch.rand(8, 1, 49, 32)
    one, two = (augment()(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert not torch.equal(one, augment()(x, torch.Generator().manual_seed(1)))


def test_the_recipe_reads_back_and_the_networks_are_as_large_as_they_say() -> None:
    assert Recipe.from_toml(RECIPE.to_toml()) == RECIPE
    sizes = [sum(each.numel() for each in make().parameters()) for make in (teacher, student)]
    assert sizes == [23_050, 7_434]


@pytest.mark.slow
@needs_recordings
def test_the_parts_hold_different_takes_of_every_speaker_and_digit() -> None:
    speech = load()
    parts = [
        np.concatenate([np.asarray(x) for x, _ in batches])
        for batches in (speech.data.train, speech.data.validation, [(speech.x_test, speech.y_test)])
    ]
    assert [len(part) for part in parts] == [1280, 320, 400]
    assert len({x.tobytes() for part in parts for x in part}) == 2000
    assert (np.bincount(speech.y_test) == 40).all()


@pytest.mark.slow
@needs_recordings
def test_the_whole_trip_ends_in_integers_that_decide_as_the_float_student_does(tmp_path: Path) -> None:
    how = replace(RECIPE, distill=Distill(epochs=2, learning_rate=2.4e-2, progressive=Progressive()))
    said: list[str] = []
    found = make(
        tmp_path,
        teaching=Training(epochs=4, learning_rate=1e-2),
        recipe=replace(how, finetune=Finetune(epochs=2, learning_rate=1e-2)),
        say=said.append,
    )
    assert found.count == 400
    assert found.accuracy > 0.5
    assert found.flip_rate < 0.05
    assert any("0 differing values" in line for line in said)
    assert (tmp_path / "keyword-spotter.ew" / "plan.bin").is_file()
