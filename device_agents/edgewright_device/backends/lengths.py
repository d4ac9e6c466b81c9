"""Sequences of any length: a backend for each length with a program, and padding up to the next of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.backends.parts import Loaded
from edgewright_device.golden import Arrays
from edgewright_device.manifest import Port


class LengthsBackend:
    """Runs a batch on the smallest program that holds it.

    A shorter sequence is padded with zeros, which the mask hides, and the outputs are cut to its length.
    Where the artifact has no mask, it must have the length of a program.

    Args:
        artifact: With lengths.
        load: Makes the backend of a length; called when a sequence first needs it.
        sizes: The lengths that this kind of backend has, ascending.
    """

    def __init__(self, artifact: Artifact, load: Callable[[int], Loaded], sizes: Sequence[int]) -> None:
        assert artifact.lengths is not None
        self._load, self._sizes, self._mask = load, tuple(sizes), artifact.lengths.mask
        self._inputs, self._outputs = _free_axes(artifact.inputs), _free_axes(artifact.outputs)
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch; its inputs agree in length.

        Raises:
            ValueError: No program takes sequences of that length.
        """
        name, axis = next(iter(self._inputs.items()))
        length = inputs[name].shape[axis]
        fitting = [s for s in self._sizes if s >= length]
        if not fitting or (self._mask is None and fitting[0] != length):
            which = f"1 to {self._sizes[-1]}" if self._mask else " or ".join(map(str, self._sizes))
            why = "" if self._mask else "; it has no mask that would hide padding"
            raise ValueError(f"input {name!r}: length {length}, this model takes {which}{why}")
        size = fitting[0]
        if size != length:
            inputs = {n: _padded(v, self._inputs.get(n), size) for n, v in inputs.items()}
        outputs = self._backend(size).run(inputs)
        if size == length:
            return outputs
        return {n: _cropped(v, self._outputs.get(n), length) for n, v in outputs.items()}

    def _backend(self, size: int) -> Loaded:
        found = self._loaded.get(size)
        if found is None:
            with self._lock:
                found = self._loaded.get(size)
                if found is None:
                    found = self._loaded[size] = self._load(size)
        return found


def _free_axes(ports: Sequence[Port]) -> dict[str, int]:
    return {p.name: 1 + p.shape[1:].index(None) for p in ports if None in p.shape[1:]}


def _padded(value: npt.NDArray[Any], axis: int | None, size: int) -> npt.NDArray[Any]:
    if axis is None:
        return value
    more = [(0, size - value.shape[axis] if i == axis else 0) for i in range(value.ndim)]
    return np.pad(value, more)


def _cropped(value: npt.NDArray[Any], axis: int | None, length: int) -> npt.NDArray[Any]:
    if axis is None:
        return value
    return np.ascontiguousarray(np.take(value, range(length), axis))
