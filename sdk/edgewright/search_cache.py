"""Steps that recipes have in common, taken once: what a step made is kept, by all that led to it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgewright.checkpoint import Checkpoint
from edgewright.durable import write_whole
from edgewright.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

KEPT = 24
"""Steps; the ones that were not used for longest go first."""

Curve = dict[int, float]
"""Accuracy, 0..1, after each epoch of a training, from 1."""


class StepCache:
    """A folder of checkpoints, one for each step after the same steps before.

    Args:
        folder: For one model, one teacher and one set of data.
        original: The model.
    """

    def __init__(self, folder: Path, original: nn.Module) -> None:
        self.folder, self.original = folder, original

    def take(
        self,
        steps: tuple[str, ...],
        recipe: Recipe,
        curve: Curve,
        take: Callable[[Checkpoint], nn.Module],
    ) -> nn.Module:
        """Takes the last of some steps, goes on with it, or loads what it made.

        Args:
            steps: All steps of the recipe up to this one.
            recipe: What they are taken by.
            curve: What is known of an earlier try comes in, and what `take` adds is kept.
            take: Takes the step, with a checkpoint.

        Raises:
            CompressError: A file is damaged, or what `take` raises.
        """
        place = self.place(steps, recipe)
        kept = Checkpoint(place)
        path = place / "curve.json"
        if path.is_file():
            curve |= {int(epoch): value for epoch, value in json.loads(path.read_text("utf-8")).items()}
        done = kept.load_step(steps[-1], self.original)
        if done is not None:
            return done
        try:
            made = take(kept)
            kept.save_step(steps[-1], made, self.original)
        finally:
            if curve:
                write_whole(path, json.dumps(curve).encode())
        return made

    def hand_out(self, steps: tuple[str, ...], recipe: Recipe, folder: Path) -> None:
        """Copies what is known of each of these steps, as a checkpoint of `compress` has it."""
        for count, step in enumerate(steps, start=1):
            path = self.place(steps[:count], recipe) / f"{step}.safetensors"
            if path.is_file():
                folder.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / path.name)

    def place(self, steps: tuple[str, ...], recipe: Recipe) -> Path:
        """The folder for what comes of some steps, where other files about that may be kept too."""
        place = self.folder / _key(steps, recipe)
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        for old in sorted(self.folder.iterdir(), key=os.path.getmtime)[:-KEPT]:
            shutil.rmtree(old)
        return place


def _key(steps: tuple[str, ...], recipe: Recipe) -> str:
    """A digest of all in a recipe that the result of these steps depends on."""
    sections = {step: asdict(getattr(recipe, step)) for step in steps}
    if recipe.distill is not None:  # from a teacher, fine-tuning too hears its temperature and the like
        sections["distill"] = asdict(recipe.distill)
    budgeted = recipe.prune is not None and (recipe.prune.speedup > 0 or recipe.prune.latency_ms > 0)
    if "qat" in steps or ("prune" in steps and budgeted):
        sections["quantize"] = asdict(recipe.quantize)
    text = json.dumps([recipe.seed, steps, sections], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
