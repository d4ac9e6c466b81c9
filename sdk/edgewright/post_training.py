"""Post-training quantization as a recipe says: what is done to the float graph, then grids, then integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx

from edgewright.allocation import allocated
from edgewright.bias_correction import corrected
from edgewright.calibrate import Observed, observe
from edgewright.equalization import equalized
from edgewright.errors import ExportError
from edgewright.layer_names import layer_names, nodes_called
from edgewright.progress import OnProgress, Progress
from edgewright.qdq import Given
from edgewright.quantization import BaseGrids, Quantized, activations_to_observe, quantize_graph
from edgewright.recipe import Quantize
from edgewright.rounding import rounded
from edgewright.samples import Samples
from edgewright.seams import with_biases
from edgewright.smoothing import Smoothing, smoothed, smoothings
from edgewright.update import small_update
from edgewright.weight_bits import with_weight_bits
from edgewright.wiring import Wiring


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What changes a float graph, and not its function, before it is quantized.

    Attributes:
        equalize: Whether neighbouring layers share their channels' ranges.
        smoothings: By the value at the seam.
        biases: Whether every layer gets one.
    """

    equalize: bool = False
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict)
    biases: bool = False

    def of(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The graph, prepared."""
        if self.equalize:
            graph, _ = equalized(graph)
        if self.smoothings:
            graph = smoothed(graph, self.smoothings)
        if self.biases:
            wiring = Wiring(graph)
            with_biases(wiring)
            graph = wiring.model()
        return graph


def prepare(graph: onnx.ModelProto, settings: Quantize, samples: Samples, report: OnProgress) -> Preparation:
    """Decides what to do to a normalized float graph.

    Args:
        graph: Is not changed.
        settings: A recipe's part.
        samples: The graph's inputs by name, (samples, ...).
        report: Told of progress, and how many seams were found.
    """
    made: Mapping[str, Smoothing] = {}
    if settings.equalize:
        graph, count = equalized(graph)
        report(Progress(step="equalize", done=1, total=1, note=f"layers equalized with the next: {count}"))
    if settings.smooth != "off":
        made = smoothings(
            graph, samples, settings.smooth_alpha if settings.smooth == "fixed" else None, report
        )
        note = f"values smoothed: {', '.join(made) or 'none'}"
        report(Progress(step="smooth", done=1, total=1, note=note))
    return Preparation(equalize=settings.equalize, smoothings=made, biases=settings.correct_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTraining:
    """A graph, and what quantization made of it.

    Attributes:
        graph: Float, prepared.
        observed: What calibration saw of it.
        quantized: The QDQ graph.
        preparation: What was done to the graph before.
        keep_float: Names of nodes that stay in floating point.
    """

    graph: onnx.ModelProto
    observed: Mapping[str, Observed]
    quantized: Quantized
    preparation: Preparation = field(default_factory=Preparation)
    keep_float: frozenset[str] = frozenset()


def quantize(
    graph: onnx.ModelProto,
    settings: Quantize,
    samples: Samples,
    *,
    base: BaseGrids | None = None,
    given: Given | None = None,
    observed: Mapping[str, Observed] | None = None,
    report: OnProgress,
) -> PostTraining:
    """Quantizes a normalized float graph.

    Args:
        graph: Is not changed.
        settings: A recipe's part.
        samples: The graph's inputs by name, (samples, ...).
        base: Grids to keep where they still fit.
        given: What a quantized file has decided; its graph is not prepared.
        observed: What is known of its values; calibration runs the samples if left out.
        report: Told of progress.

    Raises:
        ExportError: A value is NaN or infinite, a layer is not there, "auto" cannot reach its aim, or the
            recipe wants of a quantized model what only a float one can have.
    """
    if given is not None and (wanted := settings.for_floats()):
        raise ExportError(f"the model is quantized already; {', '.join(wanted)}: for float models alone")
    preparation = Preparation() if given is not None else prepare(graph, settings, samples, report)
    graph = preparation.of(graph)
    kept = nodes_called(settings.keep_float, Wiring(graph)) if settings.keep_float else frozenset()
    if observed is None:
        ports = [v.name for v in (*graph.graph.input, *graph.graph.output)]
        chosen = activations_to_observe(graph, given, kept)
        observed = observe(
            graph,
            ports + chosen,
            samples,
            lambda done, total: report(Progress(step="calibrate", done=done, total=total)),
            histograms=settings.calibration != "minmax",
        )
        if dead := [n for n in chosen if observed[n].minimum == observed[n].maximum == 0]:
            note = f"dead, as these values are zero for all calibration samples: {', '.join(dead)}"
            report(Progress(step="calibrate", done=1, total=1, note=note))
    known = observed

    def made(widened: Mapping[str, bool], four_bits: Collection[str] = ()) -> Quantized:
        return quantize_graph(
            graph,
            known,
            method=settings.calibration,
            percentile=settings.percentile,
            base=base,
            overflow_safe=settings.overflow_safe,
            given=given,
            activations=settings.activations,
            keep_float=kept,
            widened=widened,
            four_bits=four_bits,
        )

    auto = settings.activations == "auto"
    widened = allocated(graph, samples, settings, kept, made, report).widened if auto else {}

    def fitted(four_bits: Collection[str], fitted_to: Samples | None) -> Quantized:
        plain = made(widened, four_bits)
        if settings.rounding == "nearest" or fitted_to is None:
            return plain
        return rounded(plain, graph, fitted_to, overflow_safe=settings.overflow_safe, report=report)

    quantized = with_weight_bits(settings.weights, fitted, graph, samples, report)
    if settings.update == "small" and base is not None:
        quantized = small_update(
            quantized,
            graph,
            base.integers,
            samples,
            most_loss=settings.update_loss,
            overflow_safe=settings.overflow_safe,
            report=report,
        ).quantized
    if settings.correct_bias:
        quantized = corrected(quantized, graph, samples, report)
    if kept:
        names = layer_names(Wiring(graph))
        note = f"kept in floating point, for ONNX Runtime: {', '.join(sorted(names[n] for n in kept))}"
        report(Progress(step="quantize", done=0, total=1, note=note))
    return PostTraining(
        graph=graph, observed=known, quantized=quantized, preparation=preparation, keep_float=kept
    )
