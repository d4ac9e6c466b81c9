"""ONNX Runtime on model.onnx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgewright_device.artifact import ONNX, Arrays, Artifact
from edgewright_device.errors import RunnerError


class OnnxRuntimeBackend:
    """Runs model.onnx on the CPU provider.

    `session.x64quantprecision=1` is set: without it, its 8-bit kernels on x86 without VNNI saturate at
    16 bits and give wrong integers.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise RunnerError(
                "backend 'onnxruntime' is not installed here: pip install onnxruntime, or use 'native'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(artifact.path / ONNX), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # Its exceptions have no common base of their own.
            raise RunnerError(f"{artifact.path / ONNX}: ONNX Runtime cannot load it ({error})") from error
        self._model = artifact.path / ONNX
        self._outputs = [o.name for o in self._session.get_outputs()]
        for what, listed, found in (
            ("inputs", artifact.inputs, self._session.get_inputs()),
            ("outputs", artifact.outputs, self._session.get_outputs()),
        ):
            if {p.name for p in listed} != {v.name for v in found}:
                names = ", ".join(sorted(v.name for v in found))
                raise RunnerError(f"{self._model}: its {what} are {names}, the manifest lists others")

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch."""
        try:
            results = self._session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise RunnerError(f"{self._model}: ONNX Runtime cannot run it ({error})") from error
        return dict(zip(self._outputs, results, strict=True))
