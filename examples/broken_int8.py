"""A quantized network that a stock runtime breaks: good integers, and a CPU that cannot add them.

Trains a small network on handwritten digits and quantizes it with ONNX Runtime's own `quantize_static`, int8
activations and int8 weights per channel. On a CPU with VNNI the result is as good as the float network.
With AVX2 alone, as most before 2021, ONNX Runtime adds pairs of products in 16 bits, which saturate.

    python examples/broken_int8.py --out broken

writes float.onnx, s8s8.onnx and data.npz (x, y: test scans), and says what ONNX Runtime makes of them here;
docs/guides/overflow.md goes on from there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import edgewright as ew
from edgewright import digits
from edgewright.statistics import sqnr_db
from edgewright.training import train

EPOCHS = 12
CALIBRATION = 256


class Scans(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """Scans in batches of 32, once."""

    def __init__(self, name: str, x: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(np.split(x, range(32, len(x), 32)))
        self._name = name

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch by the input's name, or None."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def write(folder: Path, *, seed: int = 0, epochs: int = EPOCHS, remedies: bool = False) -> None:
    """Writes float.onnx, s8s8.onnx and data.npz into a folder, which is made; and files that are right."""
    folder.mkdir(parents=True, exist_ok=True)
    scans = digits.load(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = train(digits.Student(), scans.data, ew.Training(epochs=epochs, learning_rate=4e-3))
    example = torch.from_numpy(scans.x_test[:2])
    ew.export_onnx(net, folder / "float.onnx", example_inputs=(example,), optimize=True)
    np.savez(folder / "data.npz", x=scans.x_test, y=scans.y_test)
    seen = np.concatenate([np.asarray(x) for x, _ in scans.data.train])[:CALIBRATION]
    quantized(folder, "s8s8.onnx", seen)
    if remedies:
        quantized(folder, "reduced.onnx", seen, reduce_range=True)
        quantized(folder, "u8u8.onnx", seen, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8)
        how = ew.Quantize(overflow_safe="pairs")
        out = folder / "safe.ew"
        ew.export(folder / "float.onnx", target="x86-avx2", calibration=seen, out=out, quantize=how)


def quantized(folder: Path, name: str, seen: NDArray[np.float32], **how: Any) -> None:
    """Writes a QDQ file: int8 weights per channel and symmetric int8 activations, but for what is said."""
    symmetric = how.get("activation_type", QuantType.QInt8) == QuantType.QInt8
    settings: dict[str, Any] = {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": symmetric},
        **how,
    }
    source = folder / "float.onnx"
    reader = Scans(input_name(source), seen)
    quantize_static(source, folder / name, reader, quant_format=QuantFormat.QDQ, per_channel=True, **settings)


def input_name(path: Path) -> str:
    """The name of a file's only input."""
    return str(onnx.load(path).graph.input[0].name)


def outputs(path: Path, x: NDArray[np.float32], **entries: str) -> NDArray[np.float32]:
    """What ONNX Runtime gives, with these session entries set."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {input_name(path): x})[0]
    return result


def compare(folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy (0..1) and SQNR against the float network (dB), as ONNX Runtime comes and made exact."""
    with np.load(folder / "data.npz") as data:
        x, y = data["x"], data["y"]
    found = {"float": outputs(folder / "float.onnx", x)}
    for name in ("s8s8.onnx", "reduced.onnx", "u8u8.onnx", "safe.ew/model.onnx"):
        if (folder / name).exists():
            found[name] = outputs(folder / name, x)
            found[f"{name}, x64quantprecision=1"] = outputs(folder / name, x, x64quantprecision="1")
    return {n: (float((v.argmax(1) == y).mean()), sqnr_db(found["float"], v)) for n, v in found.items()}


def main() -> None:
    """Writes the files and says what ONNX Runtime makes of them on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("broken"), help="the folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the training")
    parser.add_argument("--remedies", action="store_true", help="write files that no CPU breaks as well")
    parser.add_argument("--look", action="store_true", help="only run what is there")
    arguments = parser.parse_args()
    if not arguments.look:
        write(arguments.out, seed=arguments.seed, remedies=arguments.remedies)
    for name, (accuracy, sqnr) in compare(arguments.out).items():
        print(f"{name:40} {accuracy:6.1%} right, {sqnr:5.1f} dB")


if __name__ == "__main__":
    main()
