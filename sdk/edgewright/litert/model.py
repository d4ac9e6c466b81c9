"""model.tflite of an artifact: made of its integer program, and held against it in LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.checks import Check, at_least
from edgewright.errors import ExportError
from edgewright.progress import OnProgress, Progress
from edgewright.statistics import sqnr_db
from edgewright.subject import Run
from edgewright_device import Artifact, Runner, RunnerError
from edgewright_kernels.plan import decode

PACKAGE = "ai_edge_litert"
MODEL = "model.tflite"
LEAST_SQNR_DB = 25.0
"""Of LiteRT's results against the native engine's: what model.onnx is held to as well."""
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far LiteRT's results lie from the native engine's.

    Attributes:
        samples: Compared.
        steps: The largest difference, in steps of an output's grid.
        differing: Share of the values that lie half a step apart or more, 0..1.
        sqnr_db: The lowest ratio of any output, in dB; infinite where all are equal.
    """

    samples: int
    steps: float
    differing: float
    sqnr_db: float


def check_installed() -> None:
    """Refuses before any work.

    Raises:
        ExportError: The LiteRT package, whose schema the file is written with, is not here.
    """
    if find_spec(PACKAGE) is None:
        raise ExportError(
            f"{MODEL} is written with LiteRT's own schema, which is not here; "
            "pip install 'edgewright[litert]'"
        )


def model_file(files: Mapping[str, bytes], weights: bytes) -> bytes:
    """model.tflite of the other files of an artifact.

    Args:
        files: By name; plan.bin among them.
        weights: weights.safetensors.

    Raises:
        ExportError: There is no integer program of the whole model, or LiteRT lacks one of its operators.
    """
    from edgewright.litert.program import tflite_of

    if "plan.bin" not in files:
        raise ExportError(
            f"{MODEL} is made of the integer program of a whole model, and this one has operators that only "
            "ONNX Runtime runs, or was to run there alone; export without litert, or convert the float model "
            "(--format litert)"
        )
    if any(name.startswith("plan-") for name in files):
        raise ExportError(f"{MODEL} has one shape, and this model several lengths; export without litert")
    return tflite_of(decode(files["plan.bin"]), weights)


def agreement(artifact: Artifact, inputs: Arrays, expected: Arrays) -> Agreement:
    """Runs samples in LiteRT, one by one.

    Args:
        artifact: With model.tflite.
        inputs: By name, batch first.
        expected: What the native engine gives for them.

    Raises:
        RunnerError: LiteRT is not installed, or cannot run the file.
    """
    return compared(artifact, expected, Runner(artifact, backend="litert").run(inputs))


def agreement_note(artifact: Artifact) -> str:
    """How near LiteRT comes to the golden vectors, for people."""
    found = agreement(artifact, *artifact.golden())
    return (
        f"{MODEL}: LiteRT's results differ from the native engine's by {found.steps:.2g} steps at most, in "
        f"{found.differing:.2%} of the values, on {found.samples} golden vectors"
    )


def litert_run(artifact: Artifact, report: OnProgress) -> Run | None:
    """The artifact in LiteRT, for verification; None where it has no model.tflite.

    Where LiteRT is not installed, None too, and a note to `report`.

    Raises:
        RunnerError: LiteRT is here, but cannot run the file.
    """
    if MODEL not in artifact.files:
        return None
    try:
        return Runner(artifact, backend="litert").run
    except RunnerError as error:
        if find_spec(PACKAGE) is not None:
            raise
        report(Progress(step="verify: litert", done=1, total=1, note=f"{MODEL} was not checked: {error}"))
        return None


def litert_check(artifact: Artifact, expected: Arrays, got: Arrays) -> Check:
    """What verification says of model.tflite.

    LiteRT rounds in its own way, so that no bit is promised; its results must have as much in common with
    the native engine's as those of model.onnx.

    Args:
        artifact: With its grids.
        expected: Outputs of the native engine, by name.
        got: LiteRT's, for the same cases.
    """
    found = compared(artifact, expected, got)
    return at_least(
        "litert",
        f"{MODEL} in LiteRT against the native engine (at most {found.steps:.3g} steps apart)",
        found.sqnr_db,
        LEAST_SQNR_DB,
        "dB",
        remedy="rounding grows in this model: run it on the native engine, and export without litert",
    )


def compared(artifact: Artifact, expected: Arrays, got: Arrays) -> Agreement:
    """How far outputs lie from those of the native engine for the same samples, in steps of their grids."""
    names = [(p.name, p.scale) for p in artifact.outputs]
    apart = [np.abs(got[n].astype(np.float64) - expected[n]).reshape(-1) / scale for n, scale in names]
    return Agreement(
        samples=len(expected[names[0][0]]),
        steps=float(np.max(np.concatenate(apart))),
        differing=float(np.mean(np.concatenate(apart) >= 0.5)),
        sqnr_db=float(np.min([sqnr_db(expected[n], got[n]) for n, _ in names])),
    )
