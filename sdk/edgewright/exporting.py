"""Export: a trained model becomes an artifact."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import safetensors.numpy

from edgewright import post_training
from edgewright.calibrate import Grid, Observed
from edgewright.errors import ExportError
from edgewright.golden import golden_inputs, golden_of_parts
from edgewright.graph import float_graph, forward_parameters, onnx_function
from edgewright.indices import tabulate
from edgewright.lengths import Programs, Sequences, programs
from edgewright.litert import model as litert_model
from edgewright.lower import lower
from edgewright.normalform import normalize
from edgewright.parts import GraphPart, partition
from edgewright.progress import OnProgress, Progress
from edgewright.qdq import Given, is_quantized, read_quantized
from edgewright.quantization import Quantized, activations_to_observe
from edgewright.recipe import Quantize
from edgewright.samples import (
    MAX_CALIBRATION_SAMPLES,
    Samples,
    as_tuple,
    calibration_samples,
    drawn_samples,
    example_of,
)
from edgewright.symmetric import symmetric_graph
from edgewright.target_limits import check_memory, check_providers, check_request
from edgewright.telling import telling_samples
from edgewright.trained_graph import read_trained
from edgewright.weights import base_grids, byte_ranges, note_integers, with_external_data
from edgewright.widening import split_wide
from edgewright.wiring import check_ports
from edgewright_device import (
    SYMMETRIC,
    Artifact,
    Part,
    Port,
    Target,
    check_place,
    encode_golden,
    write_artifact,
)
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import ByteRange, encode

if TYPE_CHECKING:
    from torch import nn

Backend = Literal["native", "onnxruntime"]


def export(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    target: Target | str,
    calibration: Any = None,
    out: str | os.PathLike[str],
    base: Artifact | None = None,
    quantize: Quantize | None = None,
    backend: Backend = "native",
    fallback: bool = True,
    lengths: Sequence[int] | None = None,
    axes: Mapping[str, int] | None = None,
    mask: str | None = None,
    litert: bool = False,
    progress: OnProgress | None = None,
) -> Artifact:
    """Quantizes a model to INT8 and writes it as an artifact.

    A model that is quantized already, as a QDQ graph (by ONNX Runtime's `quantize_static`, by torchao's
    pt2e), keeps its integers; what it leaves in floating point is quantized here. One that was trained with
    fake quantization keeps them all.

    Args:
        model: A module, or the path of a `.pt2` program or an `.onnx` file. Batch first; inputs of float32,
            or of int64 for row numbers of tables (tokens) and masks of 0 and 1. All other sizes are fixed,
            but for the length of sequences where `lengths` says so.
        example_inputs: For a module: the arguments of one call. Left out, calibration samples serve.
        target: What will run it.
        calibration: Samples like those the model will see: an array (samples, ...); a mapping of such arrays
            by input name; or batches, each an array or (inputs, labels), such as `Data.train`. The first
            1,024 samples are used. A model that is quantized in every part does without.
        out: The directory to write, `NAME.ew`; NAME becomes the model's name. An artifact there is replaced.
        base: The artifact now on the devices: its grids are kept where they still fit, so an update is small.
        quantize: How activation ranges are chosen (a recipe's `quantize`); min-max if left out.
        backend: "native" includes the integer program. "onnxruntime" leaves it out, and so takes models with
            operators that the native engine lacks.
        fallback: Operators that the native engine lacks go to ONNX Runtime, where the target has it, and the
            others stay native; `progress` names them. False refuses such a model.
        lengths: Lengths of sequences, such as (32, 64, 128): an integer program is made for each, all on the
            same grids and weights. Calibration samples have the largest. Other lengths are padded to the
            next, if the model has a mask and padding changes no bit, which is tried here; else they are
            refused. Of a `.pt2` or `.onnx` file, free axes of the inputs are the sequences.
        axes: Of a module with `lengths`: the axis of the sequence, by input name; 1 of each if left out.
        mask: The input, 1 where a sequence is and 0 behind it, that hides padding. Found, if there is one,
            when left out; when given, a model in which padding behind it changes results is refused.
        litert: Also write `model.tflite`, the same integers for LiteRT, which rounds in its own way;
            `progress` notes how near it comes to the native engine on the golden vectors.
        progress: Called as the work goes on.

    Returns:
        The artifact, opened.

    Raises:
        ExportError: The model cannot be read, traced, quantized, or run by the target; the message names the
            layer and the remedy.
        ArtifactError: `out` is something else than an artifact.
        TargetError: The target is not known.
    """
    target = target if isinstance(target, Target) else Target.load(target)
    check_request(target, backend, lengths)
    if lengths is None and (axes is not None or mask is not None):
        raise ExportError("axes and mask are of sequences; give their lengths too, such as lengths=(32, 64)")
    if litert:
        litert_model.check_installed()
    report = progress or _ignore
    path = Path(out)
    name = path.name.removesuffix(".ew")
    try:
        check_place(path, name)
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from None
    if isinstance(calibration, Iterator):  # which can be gone through once
        calibration = list(itertools.islice(calibration, MAX_CALIBRATION_SAMPLES))

    report(Progress(step="trace", done=0, total=1))
    raw = _traced(model, example_inputs, calibration, None if lengths is None else axes or {})
    sequences = given = trained = None
    if lengths is not None:
        if backend != "native" or is_quantized(raw):
            raise ExportError("lengths are for the native engine, and for models that are not quantized yet")
        sequences = Sequences.of(raw, lengths)
        graph = sequences.at(sequences.sizes[-1])
    elif (trained := read_trained(raw)) is not None:
        graph = trained[0].model
    elif is_quantized(raw):
        graph, given = read_quantized(raw)
        graph = split_wide(graph, given)
    else:
        graph = normalize(raw)
    if sequences is None:
        check_ports(graph)
    if sequences is None and trained is None:
        graph = tabulate(graph)
    report(Progress(step="trace", done=1, total=1))

    settings = Quantize() if trained is not None or quantize is None else quantize
    chosen = activations_to_observe(graph, given) if trained is None else []
    observed: Mapping[str, Observed] | None = None
    if sequences is not None and settings.keep_float:
        raise ExportError("keep_float is not for a model of several lengths, which is native as a whole")
    if trained is not None:
        drawn = drawn_samples(graph, trained[0].grids)
        samples = drawn if calibration is None else calibration_samples(calibration, graph)
    elif calibration is None and given is not None:
        if chosen:
            raise ExportError(
                f"the file leaves {len(chosen)} values in floating point that need a grid, such as "
                f"{chosen[0]!r}; give calibration samples"
            )
        samples, observed = drawn_samples(graph, given.grids), {}
    else:
        samples = calibration_samples(() if calibration is None else calibration, graph)
    smaller = settings.update == "small"
    if smaller and base is None:
        raise ExportError('update = "small" needs `base`, the artifact now on the devices')
    grids = base_grids(base, integers=smaller) if base else None
    if trained is not None:
        done = post_training.PostTraining(graph=graph, observed=trained[1], quantized=trained[0])
    else:
        done = post_training.quantize(
            graph, settings, samples, base=grids, given=given, observed=observed, report=report
        )
    graph, quantized = done.graph, done.quantized
    note = _kept(given, len(chosen)) if given else ""
    note = "trained already: its integers and grids are kept" if trained is not None else note
    if quantized.narrowed:
        note = f"read uint8, as their sums could leave 32 bits: {', '.join(quantized.narrowed)}"
    metrics = {"kept_grids": quantized.kept_grids}
    report(Progress(step="quantize", done=1, total=1, metrics=metrics, note=note))

    shared = None
    if sequences is not None:
        with _refused_by_the_engine():
            shared = programs(sequences, done, samples, settings, grids, mask)
        report(Progress(step="lengths", done=1, total=1, note=shared.note))
    weights = shared.weights if shared else safetensors.numpy.save(dict(sorted(quantized.weights.items())))
    if trained is not None or smaller:
        note_integers(quantized.model, "trained" if trained is not None else "near base")
    made = _Made(weights=weights, ranges=byte_ranges(weights))
    made.files["model.onnx"] = with_external_data(quantized.model, made.ranges)
    if any(c.provider.symmetric for c in target.choices()):
        made.files[SYMMETRIC] = with_external_data(symmetric_graph(quantized.model), made.ranges)
    if shared is not None:
        arena_bytes = max(p.arena_bytes for p in shared.plans.values())
        check_memory(target, len(weights) * len(shared.plans), arena_bytes)  # each packs its own
        _add_lengths(made, shared, samples)
    elif backend == "native":
        _natively(made, quantized.model, samples, target, fallback, report)
    else:
        check_memory(target, len(weights), 0)
        if note := check_providers(target, made.files):
            report(Progress(step="target", done=1, total=1, note=note))
        inputs = golden_inputs(samples)
        made.files["golden.npz"] = encode_golden(inputs, onnx_function(quantized.model)(inputs))
    if litert:
        made.files[litert_model.MODEL] = litert_model.model_file(made.files, weights)
    artifact = write_artifact(
        path,
        name=name,
        producer=f"edgewright {version('edgewright')}",
        targets=(target.name,),
        inputs=tuple(
            _port(v, quantized, done.observed, samples, sequences.axes if sequences else {})
            for v in graph.graph.input
        ),
        outputs=tuple(
            _port(v, quantized, done.observed, samples, shared.free if shared else {})
            for v in graph.graph.output
        ),
        files={**made.files, "weights.safetensors": weights},
        parts=tuple(made.parts),
        lengths=shared.lengths if shared else None,
    )
    note = litert_model.agreement_note(artifact) if litert else ""
    report(Progress(step="write", done=1, total=1, note=note))
    return artifact


def _traced(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Any,
    calibration: Any,
    axes: Mapping[str, int] | None,
) -> onnx.ModelProto:
    """The graph as it was traced; where there are axes of sequences, their length is free."""
    if isinstance(model, str | os.PathLike):
        return float_graph(Path(model), slim=False)
    from edgewright.fake_quantized import FakeQuantized  # torch is loaded, as the model is a module

    if isinstance(model, FakeQuantized):
        return model.trained_graph()
    example = as_tuple(example_of(model, calibration) if example_inputs is None else example_inputs)
    sequence = None
    if axes is not None:
        names = list(forward_parameters(model))[: len(example)]
        if unknown := axes.keys() - set(names):
            raise ExportError(f"axes are for {sorted(unknown)}; the model takes {names}")
        sequence = [axes.get(n) if axes else 1 for n in names]
    return float_graph(model, example, slim=False, sequence=sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What an artifact is made of, while it is."""

    weights: bytes
    ranges: Mapping[str, ByteRange]
    files: dict[str, bytes] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)


def _natively(
    made: _Made,
    model: onnx.ModelProto,
    samples: Samples,
    target: Target,
    fallback: bool,
    report: OnProgress,
) -> None:
    """Adds the integer program and golden vectors; or the parts, where it needs ONNX Runtime."""
    try:
        plan = lower(model, made.ranges, len(made.weights))
    except ExportError:
        if not fallback or "onnxruntime" not in target.backends:
            raise
        parts = partition(model, made.ranges, len(made.weights))
        fallbacks = [f for part in parts for f in part.fallbacks]
        for count, found in enumerate(fallbacks, 1):
            note = f"ONNX Runtime runs {found.operator} (node {found.node!r}): {found.reason}"
            report(Progress(step="fallback", done=count, total=len(fallbacks), note=note))
        check_memory(target, len(made.weights), max(p.plan.arena_bytes for p in parts if p.plan))
        with _refused_by_the_engine():
            _add_parts(made, parts, samples, [o.name for o in model.graph.output])
        return
    check_memory(target, len(made.weights), plan.arena_bytes)
    with _refused_by_the_engine():
        made.files["plan.bin"] = encode(plan)
        inputs = telling_samples(plan, made.weights, made.ranges, samples)
        golden = Engine(made.files["plan.bin"], made.weights).run(inputs)
    made.files["golden.npz"] = encode_golden(inputs, golden)


def _add_parts(made: _Made, parts: Sequence[GraphPart], samples: Samples, outputs: Sequence[str]) -> None:
    inputs, values, tolerances = golden_of_parts(parts, made.weights, samples)
    for place, (part, tolerance) in enumerate(zip(parts, tolerances, strict=True)):
        file = f"part-{place}.{'onnx' if part.plan is None else 'bin'}"
        made.parts.append(
            Part(
                file=file,
                inputs=part.inputs,
                outputs=part.outputs,
                operators=tuple(sorted({f.operator for f in part.fallbacks if f.lacking}))
                or tuple(sorted({f.operator for f in part.fallbacks})),
                tolerance=tolerance,
            )
        )
        made.files[file] = (
            with_external_data(part.model, made.ranges) if part.plan is None else encode(part.plan)
        )
    made.files["golden.npz"] = encode_golden(
        inputs,
        {n: values[n] for n in outputs},
        values={n: v for n, v in values.items() if n not in outputs},
    )


def _add_lengths(made: _Made, shared: Programs, samples: Samples) -> None:
    *_, top = shared.lengths.sizes
    for length, plan in shared.plans.items():
        made.files["plan.bin" if length == top else f"plan-{length}.bin"] = encode(plan)
    one = sum(v[:1].nbytes for v in samples.values()) * len(shared.plans)
    inputs = golden_inputs(samples, one)
    outputs = Engine(made.files["plan.bin"], made.weights).run(inputs)
    made.files["golden.npz"] = encode_golden(inputs, outputs, shorter=shared.golden)


@contextmanager
def _refused_by_the_engine() -> Iterator[None]:
    try:
        yield
    except (KernelError, ValueError) as error:
        raise ExportError(f"the native engine cannot run this model: {error}") from error


def _port(
    value: onnx.ValueInfoProto,
    quantized: Quantized,
    observed: Mapping[str, Observed],
    samples: Samples,
    free: Mapping[str, int],
) -> Port:
    dims: list[int | None] = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
    if value.name in free:
        dims[free[value.name] - 1] = None
    whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    grid = quantized.grids.get(value.name)
    if value.name in observed:
        low, high = observed[value.name].minimum, observed[value.name].maximum
    elif grid is not None and not whole:
        low, high = grid.low, grid.high
    else:
        low, high = float(samples[value.name].min()), float(samples[value.name].max())
    grid = grid or Grid.around(low, high)
    return Port(
        name=value.name,
        shape=(None, *dims),
        dtype="int64" if whole else "float32",
        scale=0.0 if whole else grid.scale,
        zero_point=0 if whole else grid.zero_point,
        minimum=low,
        maximum=high,
    )


def _kept(given: Given, grids_added: int) -> str:
    """What became of a model that was quantized already, for people."""
    return (
        f"quantized already, integers kept; quantized now, since the file leaves them in floating point: "
        f"{grids_added} values, {len(given.floating)} layers; weights outside -127..127, so that inputs are "
        f"read twice: {len(given.widened)} layers"
    )


def _ignore(progress: Progress) -> None:
    del progress
