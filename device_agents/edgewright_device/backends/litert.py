"""LiteRT on model.tflite."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.errors import RunnerError
from edgewright_device.golden import Arrays
from edgewright_device.manifest import TFLITE


class LiteRtBackend:
    """Runs model.tflite, one sample at a time, since its shapes are static.

    The model's inputs and outputs stand for the artifact's in the same order, of the same types, with a
    batch of 1.
    Uses ai-edge-litert, or an installed tflite-runtime. Calls from several threads wait for one another.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        if TFLITE not in artifact.files:
            raise RunnerError(f"{artifact.path}: has no {TFLITE}; use backend 'native' or 'onnxruntime'")
        where = self._where = artifact.path / TFLITE
        make = _interpreter()
        try:
            self._interpreter = make(model_content=artifact.read(TFLITE), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise RunnerError(f"{where}: LiteRT cannot load it ({error})") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        for ports, details in ((artifact.inputs, inputs), (artifact.outputs, outputs)):
            want = [((1, *p.shape[1:]), np.dtype(p.dtype).type) for p in ports]
            got = [(tuple(int(n) for n in d["shape"]), d["dtype"]) for d in details]
            if got != want:
                raise RunnerError(f"{where}: takes or gives {got}, the manifest says {want}")
        self._inputs = [(p.name, d["index"]) for p, d in zip(artifact.inputs, inputs, strict=True)]
        self._outputs = [(p.name, d["index"]) for p, d in zip(artifact.outputs, outputs, strict=True)]
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs one batch, a loop over its samples."""
        results: dict[str, list[npt.NDArray[Any]]] = {name: [] for name, _ in self._outputs}
        with self._lock:
            for sample in range(len(inputs[self._inputs[0][0]])):
                for name, index in self._inputs:
                    self._interpreter.set_tensor(index, inputs[name][sample : sample + 1])
                try:
                    self._interpreter.invoke()
                except RuntimeError as error:  # such as a row number that its table does not have
                    raise RunnerError(f"{self._where}: LiteRT cannot run it ({error})") from error
                for name, index in self._outputs:
                    results[name].append(self._interpreter.get_tensor(index))
        return {name: np.concatenate(parts) for name, parts in results.items()}


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise RunnerError(
                "backend 'litert' is not installed here: pip install 'edgewright[litert]', or use 'native'"
            ) from None
    return Interpreter
