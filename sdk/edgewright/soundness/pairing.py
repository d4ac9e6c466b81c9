"""Which value, node and constant of a bare graph is which of its float model.

Both are in normal form and were written by the same steps, so names match; what a quantizer renamed or merged
is found by what stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import onnx

from edgewright.soundness.bare import Bare
from edgewright.wiring import Wiring

Array = npt.NDArray[Any]
_ABSORBED = frozenset({"Relu", "Clip"})
"""What a quantizer may leave to the ends of a grid."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """A float model and a bare graph, side by side.

    Attributes:
        floats: The float model.
        bare: The other.
    """

    floats: Wiring
    bare: Bare

    @cached_property
    def _inferred(self) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        return self.floats.infer(1)

    @cached_property
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Shapes of values of one sample: of the float model, and of the bare graph."""
        return self._inferred[0], self.bare.graph.infer(1)[0]

    @cached_property
    def values(self) -> dict[str, str]:
        """The float model's value for each float value of the bare graph, inputs among them, in order.

        Values of one name and one shape; then, from nodes that give the same value backwards, what they read,
        where nodes of one kind give it.
        """
        here, there = self.shapes
        kinds = self._inferred[1]
        ours, theirs = self.floats.producers(), self.bare.graph.producers()
        given = dict.fromkeys(
            [*self.bare.graph.inputs, *(o for n in self.bare.graph.nodes for o in n.output)]
        )

        def alike(mine: str, their: str) -> bool:
            return (
                here.get(mine) == there.get(their) is not None and kinds.get(mine) == onnx.TensorProto.FLOAT
            )

        found = {n: n for n in given if (n in ours or n in self.floats.inputs) and alike(n, n)}
        taken = set(found.values())
        waiting = list(found)
        while waiting:
            their = waiting.pop()
            pair = self._twin(ours.get(found[their]), theirs.get(their), ours)
            if pair is None:
                continue
            for mine, name in zip(pair[0].input, pair[1].input, strict=False):
                first, second = ours.get(mine), theirs.get(name)
                if first is None or second is None or name in found or mine in taken:
                    continue
                if first.op_type == second.op_type and alike(mine, name):
                    found[name] = mine
                    taken.add(mine)
                    waiting.append(name)
        return {n: found[n] for n in given if n in found}

    @staticmethod
    def _twin(
        mine: onnx.NodeProto | None, their: onnx.NodeProto | None, ours: Mapping[str, onnx.NodeProto]
    ) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """Nodes of one kind, given those that give one value."""
        if mine is None or their is None:
            return None
        while mine.op_type != their.op_type and mine.op_type in _ABSORBED and mine.input[0] in ours:
            mine = ours[mine.input[0]]
        return (mine, their) if mine.op_type == their.op_type else None

    @cached_property
    def nodes(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Nodes of one kind that give the same value: of the float model, and of the bare graph."""
        ours = self.floats.producers()
        found = [
            self._twin(ours.get(self.values[n.output[0]]), n, ours)
            for n in self.bare.graph.nodes
            if n.output and n.output[0] in self.values
        ]
        return [pair for pair in found if pair is not None]

    @cached_property
    def constants(self) -> dict[str, str]:
        """The float model's constant for each one of the bare graph that has the same place and shape."""
        found: dict[str, str] = {}
        for node, other in self.nodes:
            for mine, theirs in zip(node.input, other.input, strict=False):
                a, b = self.floats.constants.get(mine), self.bare.graph.constants.get(theirs)
                if (
                    a is not None
                    and b is not None
                    and a.shape == b.shape
                    and a.dtype.kind == b.dtype.kind == "f"
                ):
                    found.setdefault(theirs, mine)
        return found
