"""The certificate of a passed verification: what it is about, and the bounds that devices hold engines to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from edgewright.agreement import Outputs
from edgewright.subject import Subject
from edgewright_device import BOUND_STEPS, EXACT_BACKENDS, Certificate
from edgewright_kernels import cpu_paths

# A device has another CPU and perhaps another version of an engine: twice what was seen here.
MARGIN = 2


def certify(
    subject: Subject, *, reference: str, cases: int, seed: int, got: Outputs, others: Mapping[str, Outputs]
) -> Certificate:
    """What a passed verification vouches for.

    Args:
        subject: What was verified.
        reference: SHA-256 of the float model.
        cases: Cases it was verified on.
        seed: Draws them.
        got: Outputs of the verified engine on some cases.
        others: Outputs of other engines on the same cases, by the backend's name.
    """
    native = subject.runtime == "native"
    engine = "edgewright" if native else "onnxruntime"
    bounds = dict.fromkeys(EXACT_BACKENDS, 0) if native else {}
    bounds |= {name: _steps(subject, got, outputs) for name, outputs in others.items()}
    return Certificate(
        artifact=subject.digest,
        reference=reference,
        runtime=f"{subject.runtime} {version(engine)}",
        instruction_set=cpu_paths()[0],
        cases=cases,
        seed=seed,
        bounds=bounds,
    )


def _steps(subject: Subject, got: Outputs, other: Outputs) -> int:
    """How far outputs may lie from golden ones, in steps of their grids."""
    worst = 0.0
    for port in subject.outputs:
        if port.scale:
            worst = max(worst, float(np.abs(got[port.name] - other[port.name]).max()) / port.scale)
    return max(BOUND_STEPS, MARGIN * math.ceil(worst - 1e-3))  # float32 has a step as 1.00001 of one
