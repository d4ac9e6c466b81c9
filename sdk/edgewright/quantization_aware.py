"""Quantization-aware training: a model learns on the grids of the integers that it will be exported to.

Scheme: Jacob et al. 2018, section 3, with ranges that are learned (fake_quantization.py). The float model
that goes in is the teacher (Mishra & Marr 2018, "Apprentice", scheme C), so that little else changes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.calibrate import observe
from edgewright.checkpoint import Checkpoint, opened
from edgewright.data import Batch, Data, Inputs, call, map_inputs, parts
from edgewright.distillation import soft_loss
from edgewright.errors import DataError
from edgewright.fake_quantized import FakeQuantized
from edgewright.graph import float_graph, forward_parameters
from edgewright.indices import tabulate
from edgewright.lock import Lock
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import activations_to_observe
from edgewright.recipe import Qat, Quantize
from edgewright.samples import calibration_samples
from edgewright.torch_graph import TorchGraph
from edgewright.training import device_of, evaluating, fit, tensors
from edgewright.wiring import check_ports

CALIBRATION_SAMPLES = 512

# The most, relative, that an end of a range moves in one step at the peak of the learning rate. Adam moves
# every parameter by about the learning rate, which is right for weights, whatever their gradient.
RANGE_RATE = 1e-2


def train_quantized(
    model: nn.Module | str | os.PathLike[str],
    data: Data,
    how: Qat,
    quantize: Quantize | None = None,
    *,
    seed: int = 0,
    step: str = "qat",
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> FakeQuantized:
    """Trains a copy of a classifier with fake quantization wherever `export` will put a grid.

    Grids start where post-training quantization has them, by the first 512 training samples. Then weights,
    biases and the ranges of activations learn from the model as it was, and from the labels.

    Args:
        model: Takes a batch of inputs, gives logits (N, classes): a module, which is not changed, or the path
            of a `.pt2` program or a float `.onnx` file.
        data: What to learn from; all its samples have one shape.
        how: Epochs, rates, and what the float model teaches.
        quantize: Which integers; those of uint8 if left out.
        seed: As for `train`.
        step: What to call this in the progress reports.
        progress: As for `train`.
        checkpoint: As for `train`.

    Returns:
        The trained model, in eval mode. `export` writes the integers and grids that it computes with.

    Raises:
        DataError: The data is empty or damaged, or does not fit the model.
        CompressError: The model has an operator that cannot be trained through, or training diverged.
        ExportError: The model cannot be traced, or nothing in it can run in integers.
    """
    settings = quantize or Quantize()
    asked = {step: asdict(how), "quantize": asdict(settings), "seed": seed}
    pace = RANGE_RATE / how.learning_rate
    made = fake_quantized(model, data.train, settings, pace=pace, step=step, progress=progress)
    teacher = TorchGraph(made.floating, trained=()).to(device_of(made)).eval()
    kept = opened(checkpoint, lambda: Lock.of(asked, {"model": made}, data))

    def loss(inputs: Inputs, labels: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            target = call(teacher, inputs)
        soft = soft_loss(logits, target, how.temperature)
        hard = functional.cross_entropy(logits, labels, label_smoothing=how.label_smoothing)
        return how.alpha * soft + (1 - how.alpha) * hard

    fit(made, data, how, seed=seed, step=step, objective=loss, progress=progress, checkpoint=kept)
    made.quantized()  # tells what went wrong now, not at export
    return made


def fake_quantized(
    model: nn.Module | str | os.PathLike[str],
    batches: Iterable[Batch],
    settings: Quantize,
    *,
    pace: float = 1.0,
    step: str = "qat",
    progress: OnProgress | None = None,
) -> FakeQuantized:
    """Puts a model on the grids of post-training quantization, calibrated on the first batches.

    Args:
        model: As for `train_quantized`.
        batches: To calibrate on; all samples of one shape.
        settings: Which integers.
        pace: As for `FakeQuantized`.
        step: What to call this in the progress reports.
        progress: Told as calibration goes on.

    Raises:
        DataError: There are no batches, or their samples differ in shape.
        CompressError: As for `train_quantized`, as is ExportError.
    """
    inputs = _first(batches)
    if isinstance(model, nn.Module):
        device = device_of(model)
        with evaluating(model):
            example = [x[:2] for x in _in_order(model, inputs)]
            graph = float_graph(copy.deepcopy(model).cpu(), example)
    else:
        device, graph = torch.device("cpu"), float_graph(Path(model))
    check_ports(graph)
    graph = tabulate(graph)
    names = [i.name for i in graph.graph.input]
    named = inputs if isinstance(inputs, Mapping) else dict(zip(names, parts(inputs), strict=False))
    samples = calibration_samples(named, graph)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(step=step, done=0, total=1, metrics={"calibrated": done / total}))

    watched = [v.name for v in (*graph.graph.input, *graph.graph.output)]
    observed = observe(
        graph,
        watched + activations_to_observe(graph),
        samples,
        report,
        histograms=settings.calibration != "minmax",
    )
    return FakeQuantized(graph, observed, settings, pace=pace).to(device)


def _first(batches: Iterable[Batch]) -> Inputs:
    """The inputs of the first batches as those of one."""
    found: list[Inputs] = []
    count = 0
    for batch in batches:
        found.append(tensors(batch, torch.device("cpu"))[0])
        count += len(parts(found[-1])[0])
        if count >= CALIBRATION_SAMPLES:
            break
    if not found:
        raise DataError("the training data is empty")
    columns = zip(*(parts(each) for each in found), strict=True)
    try:
        joined = iter([torch.cat(column)[:CALIBRATION_SAMPLES] for column in columns])
    except RuntimeError as error:
        raise DataError(
            f"batches of the training data differ in shape ({error}); grids are trained at one shape, so "
            "pad all samples to it"
        ) from None
    return map_inputs(found[0], lambda _: next(joined))


def _in_order(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Inputs in the order of forward's arguments."""
    if not isinstance(inputs, Mapping):
        return parts(inputs)
    return [inputs[name] for name in forward_parameters(model) if name in inputs]
