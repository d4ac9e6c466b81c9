"""Where a training is: enough to go on from there to the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewright.checkpoint import Checkpoint, position_of
from edgewright.data import Batch, is_shuffled
from edgewright.errors import CompressError


class Position:
    """The state of one training, and where it is in the data.

    Args:
        model: What is trained. All its parameters and buffers belong to the state.
        optimizer: Its tensors do too.
        generator: What a pass through `Shuffled` batches draws from.
        checkpoint: Where to keep the state, or None.
        step: Under which name.

    Attributes:
        done: Batches learned from, over all epochs.
        begun: Of these, those before this run.
        losses: float32 (2,): the sum of the losses since the last report, and their count.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        checkpoint: Checkpoint | None,
        step: str,
    ) -> None:
        self.done = self.begun = 0
        self.losses = torch.zeros(2)
        self._model, self._optimizer, self._generator = model, optimizer, generator
        self._checkpoint, self._name = checkpoint, position_of(step)
        self._starts: dict[str, Tensor] = {}  # the random numbers where the epoch began
        self._resumed: dict[str, Tensor] = {}  # and where it was cut off

    def count(self, loss: Tensor) -> None:
        """One more batch was learned from."""
        self.done += 1
        self.losses += torch.tensor([loss.item(), 1.0])

    def mean_loss(self) -> float:
        """The mean loss since the last time this was asked."""
        mean = float(self.losses[0] / self.losses[1])
        self.losses.zero_()
        return mean

    def rest(self, batches: Iterable[Batch], per_epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; of an epoch that was cut off, those that had not been learned from.

        Those before are drawn again, from the same random numbers, for a loader cannot be entered midway.
        """
        before = self.done % per_epoch
        if self._resumed and before == 0:  # it was cut off between two epochs
            _set_random(self._resumed, self._generator)
            self._resumed = {}
        if self._resumed:
            _set_random(self._starts, self._generator)
        else:
            self._starts = _random(self._generator)
        source = batches.epoch(self._generator) if is_shuffled(batches) else batches
        passing = iter(source)
        if self._resumed:
            for _ in itertools.islice(passing, before):
                pass
            _set_random(self._resumed, self._generator)
            self._resumed = {}
        yield from passing

    @contextmanager
    def kept(self, *, finished: bool) -> Iterator[None]:
        """Saves where the training is after what is done here: if it is time, or if that raises.

        Args:
            finished: This is its end, which is always saved.
        """
        try:
            yield
        except BaseException:  # KeyboardInterrupt too
            self._save()
            raise
        if self._checkpoint is not None and (finished or self._checkpoint.due()):
            self._save()

    def resume(self) -> None:
        """Goes back to what was saved, if anything was.

        Raises:
            CompressError: It does not fit the model.
        """
        saved = self._checkpoint.load(self._name) if self._checkpoint is not None else None
        if saved is None:
            return
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in saved.tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        _restore(self._model, parts.get("model", {}))
        self._optimizer.load_state_dict(
            {
                "state": _nested(parts.get("optimizer", {}), saved.values["optimizer"]),
                "param_groups": self._optimizer.state_dict()["param_groups"],
            }
        )
        self.done = self.begun = saved.values["done"]
        self.losses = parts["losses"][""]
        self._starts, self._resumed = parts["began"], parts["random"]

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        found = {f"model/{name}": value for name, value in _state(self._model).items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, state in self._optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    found[f"optimizer/{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        found |= {f"began/{name}": value for name, value in self._starts.items()}
        found |= {f"random/{name}": value for name, value in _random(self._generator).items()}
        found["losses/"] = self.losses
        self._checkpoint.save(self._name, found, {"done": self.done, "optimizer": plain})


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    state = _state(model)
    if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in saved.items()}:
        raise CompressError(
            "the checkpoint holds other layers than the model that is trained; "
            "remove its folder to begin again"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(saved[name])


def _nested(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    return state


def _random(generator: torch.Generator) -> dict[str, Tensor]:
    """The state of all that draws random numbers: bytes, by whose they are."""
    found = {"generator": generator.get_state(), "cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        found[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    return found


def _set_random(state: Mapping[str, Tensor], generator: torch.Generator) -> None:
    generator.set_state(state["generator"])
    torch.set_rng_state(state["cpu"])
    for index in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(state[f"cuda{index}"], index)
