"""Fidelity: what a smaller model kept of the one it was made from, on data that no step has learned from.

Accuracy alone hides damage: a model may keep it and still decide differently on many samples. So it is always
reported beside the share of changed decisions and the noise on the outputs, and its loss with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.errors import DataError
from edgewright.statistics import mcnemar_p, paired_interval, sqnr_db

if TYPE_CHECKING:
    from torch import nn

    from edgewright.data import Batch, Inputs
    from edgewright_device import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """A model against its reference, on the same labelled samples.

    Attributes:
        count: Samples.
        reference_accuracy: Of the reference, 0..1.
        accuracy: Of the model, 0..1.
        difference: `accuracy - reference_accuracy`; below 0 where accuracy was lost.
        interval: 95 % confidence interval of the difference, for pairs (Tango 1998).
        flip_rate: Share of samples, 0..1, on which the two decide differently.
        p_value: That a difference like this comes by chance (McNemar 1947, exact).
        sqnr_db: Signal to quantization noise ratio of the outputs, dB.
    """

    count: int
    reference_accuracy: float
    accuracy: float
    difference: float
    interval: tuple[float, float]
    flip_rate: float
    p_value: float
    sqnr_db: float

    def loses_less_than(self, margin: float) -> bool | None:
        """Whether less than `margin` of accuracy, 0..1, was lost; None where these samples cannot tell.

        True where the whole interval says so (a test of non-inferiority at 2.5 %), False where none of it
        does.

        Raises:
            ValueError: The margin is not above 0.
        """
        if margin <= 0:
            raise ValueError(f"margin must be above 0, not {margin}")
        low, high = self.interval
        return True if low > -margin else False if high < -margin else None


def fidelity(reference: npt.ArrayLike, outputs: npt.ArrayLike, labels: npt.ArrayLike) -> Fidelity:
    """Compares the outputs of two models for the same samples.

    Args:
        reference: Logits of the reference, (samples, classes).
        outputs: Logits of the model, (samples, classes).
        labels: Class numbers, (samples,).

    Raises:
        DataError: There are no samples, or the shapes do not fit one another.
    """
    there, here = np.asarray(reference, np.float64), np.asarray(outputs, np.float64)
    right = np.asarray(labels)
    if there.ndim != 2 or there.shape != here.shape or right.shape != there.shape[:1] or not right.size:
        raise DataError(
            f"outputs of shape {here.shape}, a reference of shape {there.shape} and labels of shape "
            f"{right.shape} cannot be compared; they must be (samples, classes) twice and (samples,)"
        )
    old, new = there.argmax(axis=1), here.argmax(axis=1)
    gained = int(((new == right) & (old != right)).sum())
    lost = int(((new != right) & (old == right)).sum())
    count = len(right)
    return Fidelity(
        count=count,
        reference_accuracy=float((old == right).mean()),
        accuracy=float((new == right).mean()),
        difference=(gained - lost) / count,
        interval=paired_interval(gained, lost, count),
        flip_rate=float((old != new).mean()),
        p_value=mcnemar_p(gained, lost),
        sqnr_db=sqnr_db(there, here),
    )


def outputs_of(model: nn.Module, batches: Iterable[Batch]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Runs a classifier in eval mode over batches.

    Returns:
        Logits, float32 (samples, classes), and labels, (samples,).

    Raises:
        DataError: There are no batches, or they do not fit the model.
    """
    import torch

    from edgewright.data import call
    from edgewright.training import check_fit, device_of, evaluating, own_randomness, tensors

    found: list[npt.NDArray[Any]] = []
    right: list[npt.NDArray[np.int64]] = []
    device = device_of(model)
    with evaluating(model), torch.no_grad(), own_randomness():
        for batch in batches:
            inputs, labels = tensors(batch, device)
            logits = call(model, inputs)
            check_fit(logits, labels)
            found.append(logits.float().cpu().numpy())
            right.append(labels.cpu().numpy())
    if not found:
        raise DataError("there is no data to measure on: the batches are empty")
    return np.concatenate(found), np.concatenate(right)


def artifact_outputs_of(
    artifact: Artifact, batches: Iterable[Batch]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Runs an artifact over batches in the exact integer engine, or in ONNX Runtime where it has no program.

    Returns:
        Logits, float32 (samples, classes), of its first output, and labels, (samples,).

    Raises:
        DataError: There are no batches, or they do not fit the artifact.
    """
    import torch

    from edgewright.training import tensors
    from edgewright_device import Runner

    runner = Runner(artifact, backend="native" if artifact.native else "onnxruntime")
    found: list[npt.NDArray[Any]] = []
    right: list[npt.NDArray[np.int64]] = []
    for batch in batches:
        inputs, labels = tensors(batch, torch.device("cpu"))
        try:
            found.append(runner.run(feed_of(artifact, inputs))[artifact.outputs[0].name])
        except (ValueError, KeyError) as error:
            raise DataError(f"{artifact.path}: the data does not fit this artifact: {error}") from error
        right.append(labels.numpy())
    if not found:
        raise DataError("there is no data to measure on: the batches are empty")
    return np.concatenate(found), np.concatenate(right)


def feed_of(artifact: Artifact, inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
    """A model's inputs by the names that its artifact has for them.

    Raises:
        ValueError: There are more or fewer.
    """
    names = [port.name for port in artifact.inputs]
    if isinstance(inputs, Mapping):
        return {name: inputs[name].numpy() for name in names}
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def described(found: Fidelity) -> str:
    """One line for people."""
    low, high = found.interval
    noise = "exact" if math.isinf(found.sqnr_db) and found.sqnr_db > 0 else f"{found.sqnr_db:.1f} dB"
    return (
        f"accuracy {100 * found.accuracy:.2f} % of {100 * found.reference_accuracy:.2f} %: "
        f"{100 * found.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
        f"{100 * found.flip_rate:.2f} % decided differently, SQNR {noise}, {found.count:,} samples"
    )
