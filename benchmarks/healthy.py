"""Healthy artifacts: networks times recipes, and files of other quantizers, each with proof that it is well.

What is healthy is told without `verify`: by what the engine's outputs keep of the float model's decisions (or
of their variance, where there are none) on samples that calibration did not see.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
import verify_networks as networks
from torch import nn
from verify_networks import Network, Samples

import edgewright as ew
from edgewright.graph import float_function, quiet
from edgewright_device import Artifact, Runner

LEAST_AGREEMENT, LEAST_SQNR_DB = 0.95, 15.0
MIXED = ew.Quantize(activations="mixed", smooth="fixed", calibration="mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthy:
    """An artifact that is as it should be.

    Attributes:
        name: Network and recipe.
        artifact: It; or the quantized .onnx file of another tool, as stock ONNX Runtime runs it.
        reference: The float model it was made from, as `verify` takes it.
        graph: The same as a float .onnx file; None where only the module gives free lengths.
        data: Samples that neither training nor calibration saw, by input name.
        labels: Their classes, or None.
        calibration: What it was calibrated on.
        source: A quantized .onnx file that it was made from, or None.
        evidence: Agreement of decisions with the float model's, SQNR in dB, accuracy of both.
    """

    name: str
    artifact: Artifact | Path
    reference: nn.Module | Path
    graph: Path | None
    data: Samples
    labels: npt.NDArray[np.int64] | None
    calibration: Samples
    source: Path | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """Whether it keeps what the float model says."""
        agreement = self.evidence.get("agreement", 1.0)
        return agreement >= LEAST_AGREEMENT and self.evidence["sqnr_db"] >= (
            0 if "agreement" in self.evidence else LEAST_SQNR_DB
        )


RECIPES: dict[str, dict[str, ew.Quantize]] = {
    "mlp": {"min-max": ew.Quantize(), "int4": ew.Quantize(weights="int4", rounding="gptq")},
    "lenet": {
        "min-max": ew.Quantize(),
        "percentile": ew.Quantize(calibration="percentile"),
        "overflow-safe": ew.Quantize(overflow_safe="pairs"),
        "gptq": ew.Quantize(calibration="mse", rounding="gptq", correct_bias=True),
    },
    "mobile": {
        "min-max": ew.Quantize(),
        "auto": ew.Quantize(activations="auto", min_sqnr_db=35),
        "int16": ew.Quantize(activations="int16"),
    },
    "squeeze": {"min-max": ew.Quantize(), "entropy": ew.Quantize(calibration="entropy")},
    "rows": {"mixed": MIXED, "auto": ew.Quantize(activations="auto", min_sqnr_db=25)},
    "recurrent": {"parts": ew.Quantize()},
    "denoiser": {"min-max": ew.Quantize()},
    "heads": {"min-max": ew.Quantize(), "equalized": ew.Quantize(equalize=True)},
    "resnet8": {
        "min-max": ew.Quantize(),
        "mse-gptq": ew.Quantize(calibration="mse", rounding="gptq", correct_bias=True),
    },
    "ds_cnn": {"min-max": ew.Quantize(), "overflow-safe": ew.Quantize(overflow_safe="quads")},
    "keywords": {"mse": ew.Quantize(calibration="mse"), "auto-int4": ew.Quantize(weights="auto")},
    "sentiment": {"lengths": ew.Quantize(activations="mixed")},
    "minilm": {"mixed": MIXED},
    "mobilenetv2": {"mse": ew.Quantize(calibration="mse")},
}
"""By network: recipe by name. "update", "trained" and foreign files come on top."""

FOREIGN = {"U8S8": "lenet", "U8U8": "mlp", "S8S8": "lenet", "pt2e": "mobile"}
"""By what made it: the network it was made of."""
FILES = {"U8S8-7-bit": "lenet", "S8S8-7-bit": "lenet", "U8U8": "mlp"}
"""The same for files that stay files. Signed weights have 7 bits: with all 8, ONNX Runtime's sums can leave
16 bits on CPUs with AVX2 alone, so such a file is not healthy."""

LENGTHS = (8, 16, 24)


def network(name: str, folder: Path, seed: int = 0) -> Network:
    """One of the networks, trained; `folder` takes files."""
    if name in networks.DIGITS:
        return networks.digits(name, seed)
    known: dict[str, Callable[[], Network]] = {
        "resnet8": lambda: networks.resnet8(folder),
        "ds_cnn": networks.ds_cnn,
        "keywords": networks.keywords,
        "sentiment": networks.sentiment,
        "minilm": networks.minilm,
        "mobilenetv2": networks.mobilenet,
    }
    return known[name]()


def written(net: Network, folder: Path) -> tuple[Path, Network]:
    """The network as a float .onnx file, and with its samples by the names of that file's inputs."""
    if isinstance(net.model, Path):
        return net.model, net
    path = folder / f"{net.name}.onnx"
    if not path.is_file():
        example = tuple(torch.from_numpy(v[:2]) for v in net.calibration.values())
        ew.export_onnx(net.model, path, example_inputs=example)
    names = [i.name for i in onnx.load(path).graph.input]

    def named(samples: Samples) -> Samples:
        return dict(zip(names, samples.values(), strict=True))

    return path, replace(net, calibration=named(net.calibration), held=named(net.held))


def made(name: str, folder: Path) -> list[Healthy]:
    """All healthy artifacts of one network; none, and a line that says so, where its data is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        net = network(name, folder)
    except FileNotFoundError as error:
        print(f"{name}: left out, its data is not here ({error})", file=sys.stderr)
        return []
    found: list[Healthy] = []
    for recipe, quantize in RECIPES[name].items():
        if recipe == "lengths":
            found.append(_with_lengths(net, folder, quantize))
        else:
            found.append(exported(net, folder, recipe, quantize))
    if name == "mlp":
        found += [_updated(net, folder), _trained(net, folder)]
    found += [_foreign(net, kind, folder) for kind, of in FOREIGN.items() if of == name]
    found += [_file(net, kind, folder) for kind, of in FILES.items() if of == name]
    return found


def exported(net: Network, folder: Path, recipe: str, quantize: ew.Quantize, **more: Any) -> Healthy:
    """One network by one recipe."""
    graph, net = written(net, folder)
    artifact = ew.export(
        more.pop("model", graph),
        target="x86-avx2",
        calibration=None if more.pop("whole", False) else net.calibration,
        out=folder / f"{net.name}-{recipe}.ew",
        quantize=quantize,
        **more,
    )
    return healthy(net, recipe, artifact, graph)


def healthy(
    net: Network, recipe: str, artifact: Artifact | Path, graph: Path | None, source: Path | None = None
) -> Healthy:
    """An artifact with its evidence."""
    reference = net.model if graph is None else graph
    assert isinstance(reference, nn.Module | Path)
    outputs = list(next(iter(engines(artifact, net.held).values())).values())
    floats = float_function(reference)(list(net.held.values()))
    evidence = {"sqnr_db": min(ew.sqnr_db(f, o) for f, o in zip(floats, outputs, strict=True))}
    if net.labels is not None:
        decided, exact = outputs[0].argmax(1), floats[0].argmax(1)
        evidence |= {
            "agreement": float(np.mean(decided == exact)),
            "accuracy": float(np.mean(decided == net.labels)),
            "float_accuracy": float(np.mean(exact == net.labels)),
        }
    return Healthy(
        name=f"{net.name}/{recipe}",
        artifact=artifact,
        reference=reference,
        graph=graph,
        data=net.held,
        labels=net.labels,
        calibration=net.calibration,
        source=source,
        evidence=evidence,
    )


def engines(artifact: Artifact | Path, inputs: Samples) -> dict[str, Samples]:
    """Outputs of the engines that can run it, by their names; empty where none can."""
    found: dict[str, Samples] = {}
    if isinstance(artifact, Path):
        with contextlib.suppress(Exception):  # one that cannot be run gives nothing to compare
            session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
            names = [o.name for o in session.get_outputs()]
            found["onnxruntime"] = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        return found
    for backend in ("native", "onnxruntime") if artifact.native else ("onnxruntime",):
        with contextlib.suppress(Exception):
            found[backend] = Runner(artifact, backend).run(inputs)
    return found


def _updated(net: Network, folder: Path) -> Healthy:
    """A second version of the network, near to the integers of the first."""
    assert net.train is not None
    assert isinstance(net.model, nn.Module)
    model, (x, y) = copy.deepcopy(net.model), net.train
    graph, net = written(net, folder)
    base = ew.export(graph, target="x86-avx2", calibration=net.calibration, out=folder / "base.ew")
    again = networks.fitted(model, dict(x), y, nn.functional.cross_entropy, 2, rate=1e-3)
    second = Network(
        name="mlp2",
        model=again,
        calibration=net.calibration,
        held=net.held,
        labels=net.labels,
        train=net.train,
    )
    return exported(second, folder, "update", ew.Quantize(update="small"), base=base)


def _trained(net: Network, folder: Path) -> Healthy:
    """Trained with fake quantization."""
    assert net.train is not None
    assert isinstance(net.model, nn.Module)
    x, y = net.train
    data = ew.Data.from_arrays(x["x"], y, x["x"][:100], y[:100], batch_size=64)
    recipe = ew.Recipe(name="mlp", qat=ew.Qat(epochs=1, learning_rate=1e-4), quantize=ew.Quantize())
    small = ew.compress(net.model, recipe, data=data)
    graph, net = written(net, folder)
    artifact = ew.export(small, target="x86-avx2", out=folder / "mlp-trained.ew")
    return healthy(net, "trained", artifact, graph)


def _with_lengths(net: Network, folder: Path, quantize: ew.Quantize) -> Healthy:
    """Programs for several lengths of sequences."""
    assert isinstance(net.model, nn.Module)
    artifact = ew.export(
        net.model,
        target="x86-avx2",
        calibration=net.calibration,
        out=folder / f"{net.name}-lengths.ew",
        quantize=quantize,
        lengths=LENGTHS,
    )
    return healthy(net, "lengths", artifact, None)


# Files of other quantizers


class _Reader:
    """Calibration samples for ONNX Runtime."""

    def __init__(self, samples: Samples) -> None:
        count = len(next(iter(samples.values())))
        self.parts = iter([{n: v[i : i + 16] for n, v in samples.items()} for i in range(0, count, 16)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.parts, None)


def _file(net: Network, kind: str, folder: Path) -> Healthy:
    """A file that another tool has quantized."""
    graph, net = written(net, folder)
    source = folder / f"{net.name}-{kind}-alone.onnx"
    with quiet():
        quantize_static(graph, source, net.calibration, kind)
    return healthy(net, f"{kind}.onnx", source, graph, source)


def _foreign(net: Network, kind: str, folder: Path) -> Healthy:
    """An artifact made of a file that another tool has quantized."""
    graph, net = written(net, folder)
    source = folder / f"{net.name}-{kind}.onnx"
    with quiet():
        if kind == "pt2e":
            _pt2e(net, source)
        else:
            quantize_static(graph, source, net.calibration, kind)
    artifact = ew.export(
        source, target="x86-avx2", calibration=net.calibration, out=folder / f"{net.name}-{kind}.ew"
    )
    return healthy(net, kind, artifact, graph, source)


def quantize_static(graph: Path, out: Path, samples: Samples, kind: str) -> None:
    """Quantizes a float file by ONNX Runtime; kind is U8S8 and the like, with "-7-bit" for narrow weights."""
    from onnxruntime import quantization as ort

    types = {"U8": ort.QuantType.QUInt8, "S8": ort.QuantType.QInt8}
    ort.quantize_static(
        str(graph),
        str(out),
        _Reader(samples),
        quant_format=ort.QuantFormat.QDQ,
        activation_type=types[kind[:2]],
        weight_type=types[kind[2:4]],
        per_channel=kind != "U8U8",
        reduce_range=kind.endswith("7-bit"),
    )


def _pt2e(net: Network, out: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    x = torch.from_numpy(next(iter(net.calibration.values())))
    free = ({0: torch.export.Dim("N", min=1, max=1 << 20)},)
    program = torch.export.export(net.model, (x,), dynamic_shapes=free).module()  # type: ignore[arg-type]
    prepared = prepare_pt2e(program, quantizer)
    prepared(x)
    exported_ = torch.onnx.export(
        convert_pt2e(prepared),
        (x,),
        dynamo=True,
        dynamic_shapes=free,
        input_names=["x"],
        output_names=["y"],
        verbose=False,
    )
    assert exported_ is not None
    onnx.save(exported_.model_proto, str(out))
