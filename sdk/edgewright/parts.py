"""Parts: a QDQ graph in pieces, which the native engine and ONNX Runtime run in turn.

The unit is what `lower` makes one operator of: a QuantizeLinear and what stands between it and the
DequantizeLinear before. Units that the native engine lacks, and what computes in floating point, go to ONNX
Runtime. A value passes from one part to another as float32 alone: behind a DequantizeLinear, or where a
QuantizeLinear reads it. Integers in floating-point neighbourhoods (indices, shapes, truths) stay inside a
part; where two parts need one, both compute it.

Each item takes the lowest level that its inputs allow, where native levels are even and the others odd (or
the other way round, whichever gives fewer). So there are as many parts as engines on the path where they
change most often, which is the least there can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from edgewright.errors import ExportError
from edgewright.lower import NATIVE_OPERATORS, Attempt, attempt, describe, lower
from edgewright.wiring import Wiring
from edgewright_kernels.plan import (
    ByteRange,
    Concat,
    Constant,
    Dequantize,
    Plan,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    Transpose,
)

_MOVES = (Concat, Constant, Dequantize, Quantize, Requantize, Reshape, Slice, Transpose)
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """An operator that ONNX Runtime runs, since the native engine does not.

    Attributes:
        node: Its name in the graph.
        operator: Its kind.
        reason: Why, in a sentence.
        lacking: Whether the native engine lacks it; else it computes between such operators.
    """

    node: str
    operator: str
    reason: str
    lacking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPart:
    """One part of a graph.

    Attributes:
        inputs: Names of the values it reads: inputs of the graph, or outputs of parts before.
        outputs: Names of the values it gives to later parts or as outputs of the graph.
        model: The part as a graph of its own, its constants inside.
        plan: The integer program, for a part of the native engine.
        fallbacks: For a part of ONNX Runtime: its operators.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: onnx.ModelProto
    plan: Plan | None
    fallbacks: tuple[Fallback, ...]


def partition(
    model: onnx.ModelProto, ranges: Mapping[str, ByteRange], weights_bytes: int
) -> tuple[GraphPart, ...]:
    """Cuts a QDQ graph that `lower` refuses into as few parts as possible, in the order they run.

    Args:
        model: The graph, its constants inside.
        ranges: As for `lower`.
        weights_bytes: As for `lower`.

    Raises:
        ExportError: Nothing in the graph can run natively.
    """
    tried = attempt(model, ranges)
    cut = _Cut(model, tried, ranges, weights_bytes)
    parts = cut.parts()
    idle = {q for part, held in parts if _only_moves(part) for q in held}
    if idle:  # not worth a part of their own, if there are fewer without
        without = _Cut(
            model, Attempt(given=tried.given - idle, reasons=tried.reasons), ranges, weights_bytes
        ).parts()
        if len(without) < len(parts):
            parts = without
    if all(part.plan is None or _only_moves(part) for part, _ in parts):
        first = next(f for part, _ in parts for f in part.fallbacks)
        raise ExportError(
            f"{first.reason}; nothing is left that could run natively: use backend='onnxruntime'"
        )
    return tuple(part for part, _ in parts)


def _only_moves(part: GraphPart) -> bool:
    return part.plan is not None and all(isinstance(op, _MOVES) for op in part.plan.ops)


class _Cut:
    """One way to cut a graph, given which results of QuantizeLinear are native."""

    def __init__(
        self, model: onnx.ModelProto, tried: Attempt, ranges: Mapping[str, ByteRange], weights_bytes: int
    ) -> None:
        self.graph = Wiring(model)
        self.ranges, self.weights_bytes = ranges, weights_bytes
        self.producers = self.graph.producers()
        self.position = {id(n): i for i, n in enumerate(self.graph.nodes)}
        self.shapes, self.kinds = self.graph.infer(1)
        self.twice = self.graph.infer(2)[0]
        self.reasons = tried.reasons
        self.given = set(tried.given)
        # Results of QuantizeLinear by the float32 value that a DequantizeLinear makes of them.
        self.source = {
            n.output[0]: n.input[0]
            for n in self.graph.nodes
            if n.op_type == "DequantizeLinear" and n.input[0] in self.given
        }
        self.float_name = {q: v for v, q in reversed(self.source.items())}
        self.units = {q: self._unit(q) for q in self._in_order(tried.given)}
        self.given = {q for q in self.units if q in self.float_name}

    # Units

    def _in_order(self, quantized: Iterable[str]) -> list[str]:
        return sorted(quantized, key=lambda q: self.position[id(self.producers[q])])

    def _unit(self, quantized: str) -> list[onnx.NodeProto]:
        """The nodes of a unit, its DequantizeLinears and its QuantizeLinear among them."""
        last = self.producers[quantized]
        found = [last]
        waiting = [] if quantized in self.reasons else list(last.input)
        while waiting:
            name = waiting.pop()
            node = self.producers.get(name)
            if node is None or any(node is n for n in found):
                continue
            found.append(node)
            if name not in self.source:
                waiting += node.input
        return sorted(found, key=lambda n: self.position[id(n)])

    def _read(self, quantized: str) -> set[str]:
        """Native results that a unit reads."""
        return {self.source[o] for n in self.units[quantized] for o in n.output if o in self.source}

    # Levels

    def parts(self) -> list[tuple[GraphPart, set[str]]]:
        """The parts in order, each with the native results it computes."""
        return min((self._parts(first) for first in (0, 1)), key=len)

    def _parts(self, native_level: int) -> list[tuple[GraphPart, set[str]]]:
        """With native parts on the even levels (0) or on the odd ones (1)."""
        native, other = self._levels(native_level)
        wanted = list(self.graph.outputs)  # float32 values that a later part, or the caller, reads
        parts: list[tuple[GraphPart, set[str]]] = []
        for level in reversed(range(1 + max([0, *native.values(), *other.values()]))):
            if level % 2 == native_level:
                roots = {self.source[v] for v in wanted if v in self.source}
                part, held = self._native_part(
                    [q for q in roots if native[q] == level], level, native, wanted
                )
            else:
                part, held = self._other_part(level, other, wanted), set[str]()
            if part is not None:
                parts.append((part, held))
                wanted += [n for n in part.inputs if n not in wanted]
        return parts[::-1]

    def _levels(self, native_level: int) -> tuple[dict[str, int], dict[int, int]]:
        """Of each native result by name, and of each other node by its position."""
        native: dict[str, int] = {}
        other: dict[int, int] = {}
        for position, node in enumerate(self.graph.nodes):
            result = node.output[0] if node.output else ""
            above = [1 - native_level]
            for name in (n for n in node.input if n):
                before = self.producers.get(name)
                if name in self.source:
                    above.append(native.get(self.source[name], 0) + 1)
                elif before is not None:
                    above.append(other[self.position[id(before)]])
            other[position] = max(above)
            if result in self.given and result in self.reasons:
                native[result] = max(above) + 1
            elif result in self.given:
                native[result] = max([native_level, *(native[q] for q in self._read(result))])
        return native, other

    # The two kinds of part

    def _native_part(
        self, roots: Iterable[str], level: int, native: Mapping[str, int], wanted: Iterable[str]
    ) -> tuple[GraphPart | None, set[str]]:
        held: set[str] = set()
        handed: set[str] = set()  # native results of parts before
        waiting = list(roots)
        while waiting:
            quantized = waiting.pop()
            if native[quantized] < level:
                handed.add(quantized)
            elif quantized not in held:
                held.add(quantized)
                waiting += self._read(quantized)
        if not held:
            return None, held
        outputs = tuple(v for v in wanted if self.source.get(v) in held)
        nodes = {id(n): n for q in held for n in self.units[q]}
        nodes |= {id(n): n for n in (self.producers[v] for v in outputs)}
        part = self._part_of(nodes.values(), outputs)
        again: dict[str, str] = {}
        for quantized in self._in_order(handed):  # read as float32, and put on the same grid
            name, before = self.float_name[quantized], self.producers[quantized]
            again |= {v: f"{v}.again" for v, q in self.source.items() if q == quantized}
            part.nodes.insert(
                0,
                helper.make_node(
                    "QuantizeLinear", [name, *before.input[1:]], [quantized], f"{before.name}.again"
                ),
            )
            part.constants |= {n: self.graph.constants[n] for n in before.input[1:] if n}
        for node in part.nodes[len(handed) :]:
            for index, name in enumerate(node.input):
                node.input[index] = again.get(name, name)
            for index, name in enumerate(node.output):
                node.output[index] = again.get(name, name)
        made = self._model(part)
        inputs = tuple(i.name for i in made.graph.input)
        plan = lower(made, self.ranges, self.weights_bytes)
        return GraphPart(inputs=inputs, outputs=outputs, model=made, plan=plan, fallbacks=()), held

    def _other_part(self, level: int, other: Mapping[int, int], wanted: Iterable[str]) -> GraphPart | None:
        outputs = tuple(
            v
            for v in wanted
            if v not in self.source
            and v in self.producers
            and other[self.position[id(self.producers[v])]] == level
        )
        if not outputs:
            return None
        nodes: dict[int, onnx.NodeProto] = {}
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            node = self.producers.get(name)
            if node is None or id(node) in nodes or name in self.source:
                continue
            before = other[self.position[id(node)]] < level
            if before and self._passes(name) and not self._constant(node):
                continue  # handed over by that part
            nodes[id(node)] = node
            waiting += node.input
        made = self._model(self._part_of(nodes.values(), outputs))
        return GraphPart(
            inputs=tuple(i.name for i in made.graph.input),
            outputs=outputs,
            model=made,
            plan=None,
            fallbacks=tuple(self._fallback(n) for n in made.graph.node if n.op_type not in _QDQ),
        )

    def _passes(self, name: str) -> bool:
        """Whether a value may pass between parts: float32, batch first."""
        shape = self.shapes.get(name, ())
        per_sample = shape[:1] == (1,) and self.twice.get(name) == (2, *shape[1:])
        return per_sample and self.kinds.get(name) == onnx.TensorProto.FLOAT

    def _constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes the same for every input, as the DequantizeLinear of a weight does."""
        waiting, seen = list(node.input), set[str]()
        while waiting:
            name = waiting.pop()
            if not name or name in self.graph.constants or name in seen:
                continue
            seen.add(name)
            if name not in self.producers:
                return False
            waiting += self.producers[name].input
        return True

    def _fallback(self, node: onnx.NodeProto) -> Fallback:
        name = describe(node)
        said = [
            r.removeprefix(f"{name}: ")
            for r in self.reasons.values()
            if r.startswith(f"{name}: ") and "is not quantized" not in r  # which follows from another
        ]
        reason = said[0] if said else "it computes in floating point, beside such operators"
        lacking = node.op_type not in NATIVE_OPERATORS
        if lacking:
            reason = "the native engine has no such operator"
        return Fallback(node=node.name, operator=node.op_type, reason=reason, lacking=lacking or bool(said))

    # Graphs

    def _part_of(self, nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> Wiring:
        part = Wiring(self.graph.source)
        positions = sorted(self.position[id(n)] for n in nodes)
        part.nodes = [part.nodes[i] for i in positions]
        part.outputs = list(outputs)
        read = {n for node in part.nodes for n in node.input}
        part.constants = {n: v for n, v in self.graph.constants.items() if n in read}
        return part

    def _model(self, part: Wiring) -> onnx.ModelProto:
        """A part as a graph whose inputs are what its nodes read and none of them gives."""
        made = part.model()
        given = {o for n in part.nodes for o in n.output} | part.constants.keys()
        read = dict.fromkeys(n for node in part.nodes for n in node.input if n and n not in given)
        del made.graph.input[:], made.graph.output[:]
        known = {i.name: i for i in self.graph.source.graph.input}
        made.graph.input.extend(known.get(n) or self._value(n) for n in read)
        made.graph.output.extend(self._value(n) for n in part.outputs)
        return made

    def _value(self, name: str) -> onnx.ValueInfoProto:
        dims: list[str | int | None] | None = None
        if self._passes(name):
            dims = ["N", *self.shapes[name][1:]]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
