"""A checkpoint: a folder from which work that was cut off goes on, to the bits it would have had.

`lock.json` says what the work belongs to. Beside it lie `STEP.safetensors`, the model that a finished step
left, and `STEP.position.safetensors`, where an unfinished one is. Each file is written whole or not at all;
none holds code.

A step takes part with two things: its name is the `step` of its reports, and it hands the `checkpoint` that
it was given on to `fit`. That keeps the position: all parameters and buffers of what is trained, the
optimizer, the random numbers, and the place in the data. So what a step learns must be in parameters or
buffers of the model or the objective that `fit` is given, and all else must follow from the step's arguments.
A step without `fit` may `save` and `load` what it has so far by itself; if it does not, it begins again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgewright.durable import sync_folder, write_whole
from edgewright.errors import CompressError
from edgewright.lock import Lock

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCK = "lock.json"
MOST_TIME = 0.05
"""The part of the time that is spent on writing positions, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Tensors and JSON values that were written under a name."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoint:
    """A folder that remembers how far one piece of work came.

    Args:
        folder: Where it is; `open` makes it.
        clock: Seconds that only rise.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._last_s = clock()
        self._cost_s = 0.0

    @classmethod
    def open(cls, folder: Path, lock: Lock) -> Self:
        """Opens the folder to go on where it stopped, or makes it.

        Raises:
            CompressError: It belongs to other work, or is no checkpoint; the message says what differs.
            RecipeError: Its lock is damaged.
        """
        if (folder / LOCK).is_file():
            differences = Lock.from_json(folder / LOCK).differences(lock)
            if differences:
                raise CompressError(
                    f"{folder}: this checkpoint belongs to other work: {'; '.join(differences)}. "
                    "Give what it was begun with, or remove the folder to begin again"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CompressError(f"{folder}: is there already and is no checkpoint; choose another place")
        else:
            lock.write(folder / LOCK)
        return cls(folder)

    def due(self) -> bool:
        """Whether it is time to save once more: writing takes no more than a twentieth of the time."""
        return self._clock() - self._last_s >= self._cost_s / MOST_TIME

    def save(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Writes tensors and values under a name, whole or not at all, over what was there.

        Args:
            name: A step's name, and more: a file's name without its ending.
            tensors: By name, wherever they are.
            values: What JSON can hold.
        """
        import safetensors.torch

        began_s = self._clock()
        content = safetensors.torch.save(
            {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, {"values": json.dumps(values)}
        )
        write_whole(self._path(name), content)
        self._last_s = self._clock()
        self._cost_s = self._last_s - began_s

    def load(self, name: str) -> Saved | None:
        """What was saved under a name, on the CPU; None if nothing was.

        Raises:
            CompressError: The file is damaged.
        """
        import safetensors

        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["values"])
                return Saved(tensors={n: file.get_tensor(n) for n in file.keys()}, values=values)  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CompressError(
                f"{path}: this checkpoint is damaged ({error}); remove it, and the work since is done again"
            ) from None

    def forget(self, name: str) -> None:
        """Removes what was saved under a name, if anything was."""
        self._path(name).unlink(missing_ok=True)
        sync_folder(self.folder)

    def save_step(self, step: str, model: nn.Module, original: nn.Module) -> None:
        """Keeps what a finished step made of a model; its position is then no longer needed.

        A model whose structure `structure.described` cannot tell is not kept: the step will be done again.
        """
        from edgewright.structure import described

        found = described(model, original)
        if found is not None:
            self.save(step, *found)
            self.forget(position_of(step))

    def load_step(self, step: str, original: nn.Module) -> nn.Module | None:
        """The model that a finished step left, or None if it did not come so far."""
        from edgewright.structure import rebuilt

        saved = self.load(step)
        if saved is None:
            return None
        try:
            return rebuilt(original, saved.tensors, saved.values)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise CompressError(
                f"{self._path(step)}: this checkpoint is damaged ({error!r}); "
                "remove it, and the step is done again"
            ) from None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def position_of(step: str) -> str:
    """The name under which an unfinished step keeps where it is."""
    return f"{step}.position"


def opened(
    checkpoint: Checkpoint | str | os.PathLike[str] | None, lock: Callable[[], Lock]
) -> Checkpoint | None:
    """The checkpoint itself, or the one in a folder, which then must belong to the lock."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return checkpoint
    return Checkpoint.open(Path(checkpoint), lock())
