"""How near LiteRT comes to the exact integers, with the same weights and grids. `make bench-litert`.

Each trained network of the verification benchmark is exported with model.tflite, and run by LiteRT, with its
XNNPACK delegate as it comes and without it, on samples that calibration did not see. Outputs are compared
with the native engine's in steps of their grids. What LiteRT has no kernel for is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from record import Claim, write
from verify_networks import DIGITS, Network, digits, ds_cnn, minilm, mobilenet, resnet8, sentiment

import edgewright as ew
from edgewright.litert.model import LEAST_SQNR_DB, Agreement, compared
from edgewright_device import BOUND_STEPS, Artifact, Runner

SAMPLES = 200
Arrays = Mapping[str, npt.NDArray[Any]]


def networks(folder: Path) -> dict[str, Callable[[], Network]]:
    """All that are convolutional, dense or encoders; `recurrent` needs ONNX Runtime."""
    small = {name: (lambda name=name: digits(name)) for name in DIGITS if name != "recurrent"}
    return {
        **small,
        "resnet8": lambda: resnet8(folder),
        "ds_cnn": ds_cnn,
        "mobilenetv2": mobilenet,
        "sentiment": sentiment,
        "minilm": minilm,
    }


def without_delegates(artifact: Artifact, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """LiteRT's own kernels, one sample at a time."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=artifact.read("model.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    results = [run(**{n: v[i : i + 1] for n, v in inputs.items()}) for i in range(count)]
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}


def measure(network: Network, folder: Path) -> dict[str, Any]:
    """One row."""
    samples = tuple(network.calibration.values())
    single: Any = samples[0] if len(samples) == 1 else network.calibration
    artifact = ew.export(
        network.model,
        target="x86-64",
        calibration=single,
        out=folder / f"{network.name}.ew",
        litert=True,
    )
    names = [p.name for p in artifact.inputs]
    held = {n: v[:SAMPLES] for n, v in zip(names, network.held.values(), strict=True)}
    native, litert = Runner(artifact), Runner(artifact, backend="litert")
    exact, got = native.run(held), litert.run(held)
    golden, wanted = artifact.golden()
    row: dict[str, Any] = {
        "network": network.name,
        "samples": len(got[artifact.outputs[0].name]),
        "golden_steps": compared(artifact, wanted, litert.run(golden)).steps,
        "xnnpack": _numbers(compared(artifact, exact, got)),
        "own_kernels": _numbers(compared(artifact, exact, without_delegates(artifact, held))),
        "bytes": {
            n: artifact.files[n].size_bytes for n in ("weights.safetensors", "model.onnx", "model.tflite")
        },
    }
    if network.labels is not None:
        labels, output = network.labels[:SAMPLES], artifact.outputs[0].name
        row["accuracy"] = {
            name: float((y[output].argmax(1) == labels).mean())
            for name, y in (("native", exact), ("litert", got))
        }
    return row


def _numbers(found: Agreement) -> dict[str, float]:
    return {"steps": found.steps, "differing": found.differing, "sqnr_db": min(found.sqnr_db, 999.0)}


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the rows say of LiteRT as it comes."""
    run = [r for r in rows if "refused" not in r]
    plain = [r for r in run if r["network"] not in {"sentiment", "minilm"}]
    return [
        Claim(
            id="golden_steps.networks_without_attention",
            what="golden vectors in LiteRT, the largest difference, the worst such network",
            value=max(r["golden_steps"] for r in plain),
            unit="steps",
            goal=BOUND_STEPS,
            reached=max(r["golden_steps"] for r in plain) <= BOUND_STEPS + 0.01,
        ),
        *(
            Claim(
                id=f"sqnr.{r['network']}",
                what=f"{r['network']}: LiteRT against the native engine",
                value=r["xnnpack"]["sqnr_db"],
                unit="dB",
                goal=LEAST_SQNR_DB,
                reached=r["xnnpack"]["sqnr_db"] >= LEAST_SQNR_DB,
            )
            for r in run
        ),
    ]


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="networks to measure; nothing is recorded then")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, make in networks(Path(place)).items():
            if options.only and name not in options.only:
                continue
            try:
                network = make()
            except (OSError, ImportError) as error:
                print(f"{name}: left out, its data is not here ({error})", file=sys.stderr)
                continue
            try:
                rows.append(measure(network, Path(place)))
            except ew.ExportError as error:
                rows.append({"network": name, "refused": str(error)})
            print(rows[-1], flush=True)
    claims = claims_of(rows)
    print(*claims, sep="\n")
    if not options.only:
        print(write("litert", claims, rows, ("ai-edge-litert", "numpy", "torch", "edgewright")))


if __name__ == "__main__":
    main()
