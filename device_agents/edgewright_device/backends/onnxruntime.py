"""ONNX Runtime on model.onnx, or on a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.backends.negotiation import negotiate
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import ONNX, SYMMETRIC, Part
from edgewright_device.onnx_file import OnnxFile, read_onnx
from edgewright_device.provider import CPU, Choice


class OnnxRuntimeBackend:
    """Runs model.onnx, or a part of a model; on the CPU provider, unless others are asked for.

    `session.x64quantprecision=1` is set: without it, its 8-bit kernels on x86 without VNNI saturate at
    16 bits and give wrong integers.

    Attributes:
        negotiated: Which provider runs the model, and why those before it do not.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int = 1,
        part: Part | None = None,
        providers: Sequence[Choice] = (),
        cache: Path | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise RunnerError(_not_installed(artifact, part)) from None
        plain = part.file if part else ONNX
        wanted = tuple(providers) or (Choice.of(CPU),)
        models = {plain: OnnxFile(nodes=(), constants={}, inputs={})}
        if wanted[0].provider.name != CPU:  # which takes any file, so only others need to know what is in it
            models = _models(artifact, plain)
        self._session, self.negotiated = negotiate(
            onnxruntime,
            artifact.path,
            models,
            wanted,
            threads=threads,
            cache=None if cache is None else cache / artifact.digest[:16],
        )
        self._model = artifact.path / self.negotiated.file
        self._outputs = [o.name for o in self._session.get_outputs()]
        for what, listed, found in (
            (
                "inputs",
                part.inputs if part else [p.name for p in artifact.inputs],
                self._session.get_inputs(),
            ),
            (
                "outputs",
                part.outputs if part else [p.name for p in artifact.outputs],
                self._session.get_outputs(),
            ),
        ):
            if set(listed) != {v.name for v in found}:
                names = ", ".join(sorted(v.name for v in found))
                raise RunnerError(f"{self._model}: its {what} are {names}, the manifest lists others")
        if other := [o.name for o in self._session.get_outputs() if o.type != "tensor(float)"]:
            raise RunnerError(f"{self._model}: its output {other[0]} is not float32")

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch; sample by sample, where the provider takes no other."""
        if self.negotiated.fixed_batch:
            count = len(next(iter(inputs.values())))
            each = [self._run({n: a[i : i + 1] for n, a in inputs.items()}) for i in range(count)]
            return {name: np.concatenate([one[name] for one in each]) for name in self._outputs}
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        try:
            results = self._session.run(None, dict(inputs))
        except Exception as error:  # its exceptions have no common base of their own
            raise RunnerError(f"{self._model}: ONNX Runtime cannot run it ({error})") from error
        return dict(zip(self._outputs, results, strict=True))


def _models(artifact: Artifact, plain: str) -> dict[str, OnnxFile]:
    """The forms of a model that an artifact has, the plain one first."""
    models = {}
    for name in (plain, *({SYMMETRIC} & artifact.files.keys() if plain == ONNX else ())):
        try:
            models[name] = read_onnx((artifact.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunnerError(f"{artifact.path / name}: {error}") from None
    return models


def _not_installed(artifact: Artifact, part: Part | None) -> str:
    if part is None:
        return "backend 'onnxruntime' is not installed here: pip install onnxruntime, or use 'native'"
    operators = sorted({o for p in artifact.parts for o in p.operators})
    return (
        f"{artifact.path}: needs ONNX Runtime for {', '.join(operators)}, which is not installed here: "
        "pip install onnxruntime"
    )
