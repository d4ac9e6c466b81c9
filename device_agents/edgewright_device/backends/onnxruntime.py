"""ONNX Runtime on model.onnx, or on a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import ONNX, Part


class OnnxRuntimeBackend:
    """Runs model.onnx, or a part of a model, on the CPU provider.

    `session.x64quantprecision=1` is set: without it, its 8-bit kernels on x86 without VNNI saturate at
    16 bits and give wrong integers.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 1, part: Part | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise RunnerError(_not_installed(artifact, part)) from None
        self._model = artifact.path / (part.file if part else ONNX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(self._model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # Its exceptions have no common base of their own.
            raise RunnerError(f"{self._model}: ONNX Runtime cannot load it ({error})") from error
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
        """Runs one batch."""
        try:
            results = self._session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise RunnerError(f"{self._model}: ONNX Runtime cannot run it ({error})") from error
        return dict(zip(self._outputs, results, strict=True))


def _not_installed(artifact: Artifact, part: Part | None) -> str:
    if part is None:
        return "backend 'onnxruntime' is not installed here: pip install onnxruntime, or use 'native'"
    operators = sorted({o for p in artifact.parts for o in p.operators})
    return (
        f"{artifact.path}: needs ONNX Runtime for {', '.join(operators)}, which is not installed here: "
        "pip install onnxruntime"
    )
