"""What verification is fed with: real samples that fit the model, and the float model to compare it with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.errors import ExportError, VerifyError
from edgewright.graph import float_function
from edgewright.lock import file_digest, module_digest
from edgewright.subject import Arrays, Subject

if TYPE_CHECKING:
    from torch import nn


def real_samples(subject: Subject, data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None) -> Arrays:
    """Samples by input name, of its dtype; an artifact's own golden inputs where none are given.

    Raises:
        VerifyError: They do not fit the inputs, or are not finite.
    """
    if data is None and subject.artifact is not None:
        given: Mapping[str, npt.ArrayLike] = subject.artifact.golden()[0]
    elif isinstance(data, Mapping):
        given = data
    else:
        assert data is not None
        given = {subject.inputs[0].name: data}
    names = {p.name for p in subject.inputs}
    if given.keys() != names:
        raise VerifyError(f"data is for inputs {sorted(given)}; {subject.path} takes {sorted(names)}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is reported below
            samples = {p.name: _typed(given[p.name], p.dtype) for p in subject.inputs}
    except (TypeError, ValueError) as error:
        raise VerifyError(f"data must be arrays of numbers ({error})") from None
    for port in subject.inputs:
        shape = samples[port.name].shape
        needed = f"({', '.join(map(str, ('samples', *subject.sizes(port))))})"
        if shape[1:] != subject.sizes(port) or not shape[0]:
            raise VerifyError(
                f"data for {port.name!r} has shape {shape}; {needed} is needed, with at least one sample"
            )
        if not np.isfinite(samples[port.name]).all():
            raise VerifyError(f"data for {port.name!r} holds NaN or infinity")
    if len({len(v) for v in samples.values()}) > 1:
        counts = ", ".join(f"{n!r} {len(v)}" for n, v in samples.items())
        raise VerifyError(f"data has another number of samples for each input: {counts}")
    return samples


def _typed(values: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if dtype == "int64" and array.dtype.kind not in "biu":
        raise TypeError(f"{array.dtype} where whole numbers are needed")
    return np.asarray(array, dtype)


class Reference:
    """A float model, run under the names of what is compared with it.

    Args:
        model: A module, or the path of a `.pt2` or `.onnx` file.
        subject: What is compared with it: inputs and outputs are listed in the same order.

    Attributes:
        model: As given.
        name: For people.

    Raises:
        VerifyError: It cannot be run.
    """

    def __init__(self, model: nn.Module | str | os.PathLike[str], subject: Subject) -> None:
        self.model: nn.Module | Path = Path(model) if isinstance(model, str | os.PathLike) else model
        self.name = str(self.model) if isinstance(self.model, Path) else type(self.model).__name__
        self._subject = subject
        try:
            self._function = float_function(self.model)
        except ExportError as error:
            raise VerifyError(f"the reference cannot be run: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the file, or of the module's layers and parameters."""
        return file_digest(self.model) if isinstance(self.model, Path) else module_digest(self.model)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], length: int | None = None) -> Arrays:
        """Outputs by the subject's names, for one batch.

        Raises:
            VerifyError: The reference does not take these inputs, or gives something else than the subject.
        """
        ports, subject = self._subject.outputs, self._subject
        try:
            results = self._function([inputs[p.name] for p in subject.inputs])
        except Exception as error:  # a model may raise anything
            raise VerifyError(f"the reference does not take this model's inputs: {error}") from error
        if len(results) != len(ports):
            raise VerifyError(f"the reference has {len(results)} outputs, {subject.path} has {len(ports)}")
        outputs = {p.name: r for p, r in zip(ports, results, strict=True)}
        count = len(next(iter(inputs.values())))
        for port in ports:
            given = outputs[port.name]
            if len(given) != count:
                raise VerifyError(
                    f"the reference gives {len(given)} results for {count} cases ({port.name!r}); the first "
                    "dimension must be the batch"
                )
            if given.shape[1:] != subject.sizes(port, length):
                raise VerifyError(
                    f"the reference gives {given.shape[1:]} where {subject.path} gives "
                    f"{subject.sizes(port, length)} ({port.name!r}); is it the model that this one is of?"
                )
        return outputs
