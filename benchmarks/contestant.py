"""One engine with one model, in a process of its own, that runs when it is told to.

    python contestant.py ENGINE MODEL INPUTS.npz THREADS

Reads lines: `run COUNT` answers with the nanoseconds of each of COUNT calls, as JSON; `save FILE` writes the
outputs of one call to an .npz, by name. Says `ready` first. A call begins with the inputs where the engine
wants them and ends with its outputs there; only for Edgewright does it hold all that `Runner.run` does.
Needs numpy and the engine, nothing else: it also runs in an environment that holds the peers alone.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
# Runs the engine once; gives its outputs by name, in the engine's own order of axes.
Run = Callable[[], object]
Outputs = Callable[[], Arrays]


def edgewright(model: Path, inputs: Arrays, threads: int) -> tuple[Run, Outputs]:
    """An artifact on the native engine; EDGEWRIGHT_CPU says which path."""
    from edgewright_device import Artifact, Runner

    runner = Runner(Artifact.open(model), backend="native", threads=threads)
    return lambda: runner.run(inputs), lambda: runner.run(inputs)


def onnxruntime(model: Path, inputs: Arrays, threads: int) -> tuple[Run, Outputs]:
    """An .onnx file; all graph optimizations, inputs and outputs bound."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    names = [o.name for o in session.get_outputs()]
    for name, value in zip(names, session.run(names, inputs), strict=True):
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(value))

    def outputs() -> Arrays:
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return lambda: session.run_with_iobinding(binding), outputs


def litert(model: Path, inputs: Arrays, threads: int) -> tuple[Run, Outputs]:
    """A .tflite file on XNNPACK, its inputs and outputs in the order of the .onnx file it was made from."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=threads)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs.values(), strict=True):
        channels_last = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(channels_last))

    def outputs() -> Arrays:
        interpreter.invoke()
        found = {}
        for detail in interpreter.get_output_details():
            value = interpreter.get_tensor(detail["index"])
            found[detail["name"]] = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        return found

    return interpreter.invoke, outputs


def ncnn(model: Path, inputs: Arrays, threads: int) -> tuple[Run, Outputs]:
    """A .param file with its .bin file beside it."""
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # Its 8-bit Winograd overflows 16 bits on weights of 8 bits, and is slower here than without.
    net.opt.use_winograd_convolution = False
    if net.load_param(str(model)) or net.load_model(str(model.with_suffix(".bin"))):
        raise ValueError(f"{model}: ncnn cannot load it")
    blobs = {name: runtime.Mat(value[0]) for name, value in inputs.items()}
    names = net.output_names()

    def run() -> Any:
        extractor = net.create_extractor()
        for name, blob in blobs.items():
            extractor.input(name, blob)
        return [extractor.extract(name)[1] for name in names]

    return run, lambda: {n: np.array(b)[np.newaxis] for n, b in zip(names, run(), strict=True)}


def openvino(model: Path, inputs: Arrays, threads: int) -> tuple[Run, Outputs]:
    """An .onnx file, its shapes made static, tuned for latency."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    network.reshape({name: list(value.shape) for name, value in inputs.items()})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()
    for name, value in inputs.items():
        request.set_tensor(name, ov.Tensor(value, shared_memory=True))

    def outputs() -> Arrays:
        request.infer()
        return {port.get_any_name(): request.get_tensor(port).data.copy() for port in compiled.outputs}

    return request.infer, outputs


ENGINES: Mapping[str, Callable[[Path, Arrays, int], tuple[Run, Outputs]]] = {
    "edgewright": edgewright,
    "litert": litert,
    "ncnn": ncnn,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def main() -> None:
    engine, model, inputs_file, threads = sys.argv[1:]
    with np.load(inputs_file) as archive:
        inputs = {name: archive[name] for name in archive.files}
    run, outputs = ENGINES[engine](Path(model), inputs, int(threads))
    run()
    gc.disable()
    print("ready", flush=True)
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "save":
            np.savez(argument.strip(), allow_pickle=False, **outputs())
            print("saved", flush=True)
            continue
        times = []
        for _ in range(int(argument)):
            start = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - start)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
