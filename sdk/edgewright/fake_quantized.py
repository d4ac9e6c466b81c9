"""A model on the grids of its artifact: what it was trained on is what it is exported to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgewright.calibrate import Grid, Integers, Method, Observed
from edgewright.errors import CompressError
from edgewright.fake_graph import FakeGraph, grid_name
from edgewright.fake_quantization import DOMAIN, FAKE_OPERATORS, LearnedGrid
from edgewright.quantization import Quantized, quantize_graph
from edgewright.recipe import Quantize
from edgewright.torch_graph import TorchGraph, trainable
from edgewright.torch_operators import Operator, operator_of
from edgewright.trained_graph import with_trained
from edgewright.wiring import Wiring, set_initializer


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(Observed):
    """What calibration saw of a value, and the grids that training chose for it.

    Attributes:
        grids: By dtype.
    """

    grids: Mapping[Integers, Grid]

    def grid(self, method: Method, percentile: float, dtype: Integers = "uint8") -> Grid:
        """The grid that was trained, whatever the method."""
        del method, percentile
        return self.grids[dtype]


class FakeQuantized(TorchGraph):
    """A model with fake quantization wherever `export` puts a grid. Takes and gives what the model does.

    Parameters are the weights of the float graph and, as factors in the exponent, the ends of the ranges of
    activations. Scales of weights follow from the weights at each call, as they do at export.

    Attributes:
        floating: The normalized float graph from which it was made.
        settings: How it is quantized.
    """

    def __init__(
        self,
        floating: onnx.ModelProto,
        observed: Mapping[str, Observed],
        settings: Quantize,
        *,
        pace: float = 1.0,
    ) -> None:
        """Puts a model on the grids of post-training quantization, from which training starts.

        Args:
            floating: A normalized float graph.
            observed: What calibration saw of it.
            settings: How activations and weights are quantized.
            pace: How fast ranges learn beside the weights: a range is multiplied by `exp(pace * parameter)`.

        Raises:
            CompressError: An operator that cannot be trained through.
            ExportError: Nothing in the graph can run in integers.
        """
        first = _quantized(floating, observed, settings)
        fresh = {n: {d: _fresh(o, settings, d) for d in _DTYPES} for n, o in observed.items()}
        learned = {grid for grids in fresh.values() for grid in grids.values()}
        fake = FakeGraph(floating, first.model, learned, settings.overflow_safe)
        super().__init__(fake.model, trainable(Wiring(floating)))
        self.floating, self.settings, self.pace = floating, settings, pace
        self._observed, self._fresh = observed, fresh
        self._grids, self._shape = fake.grids, _structure(first.model)
        self.range_start: Tensor
        ends = torch.tensor([[g.low, g.high] for g in fake.grids], dtype=torch.float64)
        self.register_buffer("range_start", ends)
        self.range_change = nn.Parameter(torch.zeros(2 * len(fake.grids)))

    def learned_grids(self) -> tuple[LearnedGrid, ...]:
        """The grids of activations, as they are now.

        Raises:
            CompressError: A range is no longer a finite number.
        """
        change = self.range_change.double().reshape(-1, 2)
        ends = self.range_start * torch.exp(self.pace * change)
        found: list[LearnedGrid] = []
        for number, (low, high) in enumerate(ends.tolist()):
            if not (math.isfinite(low) and math.isfinite(high)):
                raise CompressError("training diverged: a range is infinite; lower its learning_rate")
            grid = Grid.around(low, high, self._grids[number].dtype)
            found.append(LearnedGrid(low=ends[number, 0], high=ends[number, 1], grid=grid))
        return tuple(found)

    def observed(self) -> dict[str, Trained]:
        """What calibration saw of each value, with the grids that were trained."""
        now = {g: new.grid for g, new in zip(self._grids, self.learned_grids(), strict=True)}
        return {
            name: Trained(
                minimum=o.minimum,
                maximum=o.maximum,
                counts=o.counts,
                grids={d: now.get(g, g) for d, g in self._fresh[name].items()},
            )
            for name, o in self._observed.items()
        }

    def float_graph(self) -> onnx.ModelProto:
        """The float graph with the weights that were trained."""
        trained = onnx.ModelProto()
        trained.CopyFrom(self.floating)
        known = {i.name for i in trained.graph.initializer}
        for name, value in self.constants().items():
            if name in known and value.dtype == np.float32:
                set_initializer(trained, name, value)
        return trained

    def quantized(self) -> Quantized:
        """The QDQ graph: the integers and grids that this module computes with.

        Raises:
            CompressError: Weights grew in training so that a layer can no longer read int16.
        """
        made = _quantized(self.float_graph(), self.observed(), self.settings)
        if _structure(made.model) != self._shape:
            layers = ", ".join(made.narrowed) or "none"
            raise CompressError(
                "weights grew in training, and sums of int16 activations could leave 32 bits (layers that "
                f'read uint8 now: {layers}); take activations "mixed" or "uint8"'
            )
        return made

    def trained_graph(self) -> onnx.ModelProto:
        """The QDQ graph as `export` takes it.

        Raises:
            CompressError: As for `quantized`.
        """
        return with_trained(self.quantized(), self._observed)

    def _operator(self, node: onnx.NodeProto) -> Operator:
        return FAKE_OPERATORS[node.op_type] if node.domain == DOMAIN else operator_of(node)

    def _given(self) -> dict[str, Any]:
        return {grid_name(i): learned for i, learned in enumerate(self.learned_grids())}


_DTYPES: tuple[Integers, ...] = ("uint8", "int16")


def _fresh(observed: Observed, settings: Quantize, dtype: Integers) -> Grid:
    return observed.grid(settings.calibration, settings.percentile, dtype)


def _quantized(graph: onnx.ModelProto, observed: Mapping[str, Observed], settings: Quantize) -> Quantized:
    return quantize_graph(
        graph,
        observed,
        method=settings.calibration,
        percentile=settings.percentile,
        overflow_safe=settings.overflow_safe,
        activations=settings.activations,
    )


def _structure(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    return [(n.op_type, *n.input, *n.output) for n in model.graph.node]
