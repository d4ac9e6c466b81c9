"""Data to learn from: batches for training, and others for validation."""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, TypeGuard

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.errors import DataError

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a model takes, (N, ...) each: one tensor, several in `forward`'s order, or several by its names."""

Batch = tuple[Any, Any]
"""Inputs, float32 or int64 (N, ...), and labels, int64 (N,): torch tensors or numpy arrays. Of several inputs
it holds a tuple or a mapping, as `Inputs` does."""

Augment = Callable[[Any, torch.Generator], Any]
"""Changes a batch of inputs at random, from the generator given alone."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Runs a model on a batch of inputs: one, several in order, or several by name."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def map_inputs(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Makes inputs of the same form by changing every tensor of them."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(change(value) for value in inputs) if isinstance(inputs, tuple) else change(inputs)


def parts(inputs: Inputs) -> list[Tensor]:
    """All tensors of a batch of inputs."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


class Shuffled(Protocol):
    """Batches that shuffle and change themselves for each pass of training, as `Batches` do."""

    def __iter__(self) -> Iterator[Batch]:
        """The same batches in the same order each time."""

    def epoch(self, generator: torch.Generator) -> Iterable[Batch]:
        """One pass of training. All that is random comes from the generator, so that it can be repeated."""


def is_shuffled(batches: object) -> TypeGuard[Shuffled]:
    """Whether batches have an `epoch` of their own: a method, not the number that some loaders keep."""
    return callable(getattr(batches, "epoch", None))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """Arrays in memory, cut into batches.

    Iterating gives the stored order, unchanged, each time. `epoch` gives a shuffled and augmented pass.

    Attributes:
        inputs: float32 or int64 (samples, ...): one tensor, or several as in `Inputs`.
        labels: int64 (samples,).
        size: Samples per batch. A single sample left over joins the last batch, for batch normalisation
            cannot learn from one.
        augment: Applied to each batch of `epoch`.
    """

    inputs: Inputs
    labels: Tensor
    size: int
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self._cuts())

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for start, stop in self._cuts():
            yield _rows(self.inputs, slice(start, stop)), self.labels[start:stop]

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Yields every sample once, in an order and with changes drawn from `generator`."""
        order = torch.randperm(len(self.labels), generator=generator)
        for start, stop in self._cuts():
            chosen = order[start:stop]
            inputs = _rows(self.inputs, chosen)
            if self.augment is not None:
                inputs = self.augment(inputs, generator)
            yield inputs, self.labels[chosen]

    def _cuts(self) -> list[tuple[int, int]]:
        count = len(self.labels)
        starts = list(range(0, count, self.size))
        if len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], count], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a model learns from.

    Each part is anything that can be gone through many times and gives batches `(inputs, labels)`: a list, a
    `DataLoader`, an object with `__iter__`. With `__len__` it is not gone through only to be counted. With
    `epoch` (see `Shuffled`) it chooses the order of each pass of training itself. What it draws by chance
    must come from torch, or the generator it is given: then work that was cut off goes on to the same bits.

    Attributes:
        train: Batches to train on, the same number in each pass.
        validation: Batches that are only ever measured on.
    """

    train: Iterable[Batch]
    validation: Iterable[Batch]

    @classmethod
    def from_arrays(
        cls,
        x_train: NDArray[Any] | Mapping[str, NDArray[Any]],
        y_train: NDArray[Any],
        x_validation: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
        y_validation: NDArray[Any] | None = None,
        *,
        batch_size: int = 64,
        validation_part: float = 0.2,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> Self:
        """Makes data from arrays in memory, copied as float32 and int64.

        Args:
            x_train: Inputs, (samples, ...), any real dtype; they become float32. Of a model with several
                inputs, or one of tokens: a mapping of arrays by the names of `forward`, in which arrays of
                int64 stay whole numbers.
            y_train: Class numbers from 0, (samples,), an integer dtype.
            x_validation: Inputs to validate on; None splits them off the training arrays.
            y_validation: Their class numbers.
            batch_size: Samples per batch.
            validation_part: The part, 0..1, that is split off when no validation arrays are given. Each class
                gives its share.
            seed: Fixes that split. (The order of training comes from the training's own seed.)
            augment: Changes each training batch.

        Raises:
            DataError: Arrays are empty, differ in length, hold NaN or infinity, or labels that cannot be.
            ValueError: Only one of the two validation arrays is given, or a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 < validation_part < 1:
            raise ValueError(f"validation_part must be between 0 and 1, not {validation_part}")
        inputs, labels = _checked(x_train, y_train, "x_train", "y_train")
        if x_validation is None and y_validation is None:
            chosen = torch.from_numpy(_split(labels, validation_part, seed))
            held_inputs, held_labels = _rows(inputs, chosen), labels[chosen.numpy()]
            inputs, labels = _rows(inputs, ~chosen), labels[~chosen.numpy()]
        elif x_validation is None or y_validation is None:
            raise ValueError("give both x_validation and y_validation, or neither")
        else:
            held_inputs, held_labels = _checked(x_validation, y_validation, "x_validation", "y_validation")
            if _shapes(held_inputs) != _shapes(inputs):
                raise DataError(
                    f"x_validation holds samples of shape {_shapes(held_inputs)}, "
                    f"but x_train of shape {_shapes(inputs)}"
                )
            if held_labels.max() > labels.max():
                raise DataError(
                    f"y_validation has label {held_labels.max()}, but y_train only goes up to {labels.max()}"
                )
        return cls(
            train=Batches(
                inputs=inputs,
                labels=torch.from_numpy(labels),
                size=batch_size,
                augment=augment,
            ),
            validation=Batches(inputs=held_inputs, labels=torch.from_numpy(held_labels), size=batch_size),
        )

    @classmethod
    def from_npz(cls, path: Path | str, *, batch_size: int = 64, seed: int = 0) -> Self:
        """Reads data from a .npz file.

        The file holds `x_train`, `y_train`, `x_validation` and `y_validation`, or `x` and `y`, of which a
        fifth is then kept for validation. Of a model with several inputs it holds an array for each, by the
        names of `forward`, in the place of `x`: `tokens`, `mask` and `y`, or `tokens_train`, `mask_train`, …
        What ends in `_test` is left alone. Pickled objects are never loaded.

        Args:
            path: The file.
            batch_size: Samples per batch.
            seed: Fixes the split of `x` and `y`.

        Raises:
            DataError: The file cannot be read, lacks arrays, or holds arrays that do not fit.
        """
        try:
            with Path(path).open("rb") as stream, _opened(stream) as file:
                arrays = {name: file[name] for name in file.files if not name.endswith("_test")}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot read this .npz file: {error}") from error
        try:
            return cls.from_arrays(*_arranged(arrays), batch_size=batch_size, seed=seed)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def load_data(source: Path | str, *, batch_size: int = 64, seed: int = 0) -> Data:
    """Reads data as commands name it.

    Args:
        source: A .npz file (see `Data.from_npz`); or `FILE.py:NAME` or `package.module:NAME`, where NAME is
            called without arguments and gives a `Data`, or a pair of its two iterables. The code is run, so
            name only code you trust.
        batch_size: Samples per batch, of a file.
        seed: Fixes the split of a file, and what code draws from torch while it is called.

    Raises:
        DataError: The file cannot be read, or the code gives no data.
        CompressError: No such file, module or name; or the call fails.
    """
    from edgewright.models import called

    place, _, name = str(source).rpartition(":")
    if not place or str(source).endswith(".npz"):
        return Data.from_npz(source, batch_size=batch_size, seed=seed)
    given = called(str(source), "data", seed)
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, Iterable) for part in given):
        given = Data(train=given[0], validation=given[1])
    if not isinstance(given, Data):
        raise DataError(
            f"{source}: calling {name!r} gave a {type(given).__name__}, not an edgewright.Data or a pair of "
            "iterables (train, validation)"
        )
    if any(isinstance(part, Iterator) for part in (given.train, given.validation)):
        raise DataError(
            f"{source}: calling {name!r} gave an iterator, which can be gone through once; give what `iter` "
            "takes many times: a list, a DataLoader, an object with `__iter__`"
        )
    return given


def _arranged(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """The arguments of `Data.from_arrays`, from arrays by name."""
    if "y" in arrays:
        found = {name: array for name, array in arrays.items() if name != "y"}
        if found and not any(name.endswith(("_train", "_validation")) for name in found):
            return [_one_or_more(found), arrays["y"]]
    sides = []
    for side in ("_train", "_validation"):
        inputs = {n.removesuffix(side): a for n, a in arrays.items() if n.endswith(side)}
        labels = inputs.pop("y", None)
        if labels is None or not inputs:
            here = ", ".join(sorted(arrays)) or "nothing"
            four = ("x_train", "y_train", "x_validation", "y_validation")
            missing = ", ".join(name for name in four if name not in arrays)
            raise DataError(
                f"{missing} missing (found {here}); save {', '.join(four)}, or x and y; of several inputs "
                "each by its name in the place of x"
            )
        sides += [_one_or_more(inputs), labels]
    return sides


def _one_or_more(inputs: Mapping[str, NDArray[Any]]) -> Any:
    """The array `x` by itself, others by name."""
    return inputs["x"] if inputs.keys() == {"x"} else inputs


def _opened(stream: BinaryIO) -> NpzFile:
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, NpzFile):
        raise ValueError("it holds a single array (.npy), not named ones")
    return file


def _checked(
    x: NDArray[Any] | Mapping[str, NDArray[Any]], y: NDArray[Any], x_name: str, y_name: str
) -> tuple[Inputs, NDArray[np.int64]]:
    """Returns inputs as tensors and labels as int64, or says what is wrong with them."""
    if not isinstance(x, Mapping):
        inputs, labels = _checked_array(x, y, x_name, y_name, whole=False)
        return torch.from_numpy(inputs), labels
    if not x:
        raise DataError(f"{x_name} holds no arrays; give one for each input of the model")
    found = {name: _checked_array(a, y, f"{x_name}[{name!r}]", y_name, whole=True) for name, a in x.items()}
    return {n: torch.from_numpy(a) for n, (a, _) in found.items()}, next(iter(found.values()))[1]


def _checked_array(
    x: NDArray[Any], y: NDArray[Any], x_name: str, y_name: str, *, whole: bool
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    x, y = np.asarray(x), np.asarray(y)
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        raise DataError(f"{x_name} has dtype {x.dtype}; it must hold numbers")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{y_name} has dtype {y.dtype}; labels must be integers, one class number per sample")
    if x.ndim < 2 or y.ndim != 1:
        raise DataError(
            f"{x_name} has shape {x.shape} and {y_name} {y.shape}; they must be (samples, ...) and (samples,)"
        )
    if len(x) != len(y):
        raise DataError(f"{x_name} has {len(x)} samples, but {y_name} has {len(y)} labels")
    if x.size == 0:
        raise DataError(f"{x_name} is empty, of shape {x.shape}")
    kept = np.int64 if whole and x.dtype == np.int64 else np.float32
    with np.errstate(over="ignore"):  # what is too large becomes infinity, and is reported below
        inputs = np.array(x, dtype=kept, order="C")
    bad = ~np.isfinite(inputs)
    if bad.any():
        raise DataError(
            f"{x_name} holds NaN or infinity in {int(bad.reshape(len(x), -1).any(axis=1).sum())} of {len(x)} "
            f"samples, the first at index {int(np.argwhere(bad)[0][0])}"
        )
    if y.min() < 0:
        raise DataError(f"{y_name} has label {y.min()}; class numbers begin at 0")
    return inputs, y.astype(np.int64)


def _split(labels: NDArray[np.int64], part: float, seed: int) -> NDArray[np.bool_]:
    """Chooses a part of each class; True where a sample is held out."""
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held[members[: round(part * len(members))]] = True
    if not held.any() or held.all():
        raise DataError(f"{len(labels)} samples are too few to keep a part of {part:g} for validation")
    return held


def _rows(inputs: Inputs, chosen: slice | Tensor) -> Inputs:
    return map_inputs(inputs, lambda value: value[chosen])


def _shapes(inputs: Inputs) -> str:
    """The shapes of one sample's inputs, for people."""
    texts = ["(" + ", ".join(map(str, value.shape[1:])) + ")" for value in parts(inputs)]
    if not isinstance(inputs, Mapping):
        return ", ".join(texts)
    return ", ".join(f"{name} {text}" for name, text in sorted(zip(inputs, texts, strict=True)))
