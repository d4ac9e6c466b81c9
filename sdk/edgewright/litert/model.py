"""model.tflite of an artifact: made of its integer program, and held against it in LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.checks import Check, at_least, at_most
from edgewright.errors import ExportError
from edgewright.statistics import sqnr_db
from edgewright_device import BOUND_STEPS, Artifact, Runner, RunnerError
from edgewright_kernels.plan import decode

PACKAGE = "ai_edge_litert"
MODEL = "model.tflite"
LEAST_SQNR_DB = 25.0
"""Of LiteRT's results against the native engine's: what model.onnx is held to as well."""
MOST_CASES = 100
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
            "ONNX Runtime runs; export without litert, or convert the float model (--format litert)"
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
    got = Runner(artifact, backend="litert").run(inputs)
    apart = {
        p.name: np.abs(got[p.name].astype(np.float64) - expected[p.name]) / p.scale for p in artifact.outputs
    }
    return Agreement(
        samples=len(next(iter(inputs.values()))),
        steps=float(np.max([a.max() for a in apart.values()])),
        differing=float(np.mean(np.concatenate([a.reshape(-1) >= 0.5 for a in apart.values()]))),
        sqnr_db=float(np.min([sqnr_db(expected[p.name], got[p.name]) for p in artifact.outputs])),
    )


def agreement_note(artifact: Artifact) -> str:
    """How near LiteRT comes to the golden vectors, for people."""
    found = agreement(artifact, *artifact.golden())
    return (
        f"{MODEL}: LiteRT's results differ from the native engine's by {found.steps:.2g} steps at most, in "
        f"{found.differing:.2%} of the values, on {found.samples} golden vectors"
    )


def litert_checks(artifact: Artifact, inputs: Arrays, expected: Arrays) -> tuple[tuple[Check, ...], str]:
    """What verification says of model.tflite.

    LiteRT rounds where the program says otherwise, so that no bit is promised: golden outputs must lie within
    the steps that a device's health check allows, and all results within 25 dB of the native engine's.

    Args:
        artifact: Any.
        inputs: Cases by name, batch first; the first 100 are run, evenly spread.
        expected: What the native engine gives for them.

    Returns:
        The checks; and why there are none, where model.tflite is there all the same.
    """
    if MODEL not in artifact.files or not artifact.native:
        return (), ""
    golden, exact = artifact.golden()
    try:
        replayed = agreement(artifact, golden, exact)
        count = len(next(iter(inputs.values())))
        chosen = np.linspace(0, count - 1, min(count, MOST_CASES)).astype(int)
        found = agreement(
            artifact, {n: v[chosen] for n, v in inputs.items()}, {n: v[chosen] for n, v in expected.items()}
        )
    except RunnerError as error:
        if find_spec(PACKAGE) is None:
            return (), f"{MODEL} was not checked: {error}"
        raise
    checks = (
        at_most(
            "litert",
            f"golden vectors in LiteRT against the native engine, largest difference ({replayed.samples})",
            replayed.steps,
            BOUND_STEPS + 0.01,  # steps are floats
            "steps",
            remedy="a device would refuse it on LiteRT: run it on the native engine, or leave litert out",
        ),
        at_least(
            "litert_sqnr",
            f"{MODEL} in LiteRT against the native engine ({found.samples} cases)",
            found.sqnr_db,
            LEAST_SQNR_DB,
            "dB",
            remedy="export again; where it stays, run the artifact on the native engine",
        ),
    )
    return checks, ""
