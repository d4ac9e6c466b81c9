"""Attention in one node, and spelled out.

`torch.onnx.export(dynamo=True)` spells scaled dot-product attention (Vaswani et al. 2017, "Attention Is All
You Need", equation 1) as reshapes, transposes, two products and a softmax; optimizers that look for the
spelling of the older exporter pass it by. `fuse_attention` finds it in the normal form (`normalform.py`),
wherever the scale is applied and however heads are split off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgewright.wiring import Wiring, attributes, make_node, scale_of

ATTENTION_OPSET = 23  # the first with Attention

_HEADS_OUT = (0, 2, 1, 3)
_KEYS_OUT = (0, 2, 3, 1)
_VIEWS = frozenset({"Reshape", "Transpose"})


def fuse_attention(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A normalized float graph with each attention in one node, and how many were found.

    The nodes are `Attention` of ONNX opset 23 on values of three axes. Where none is found the graph is the
    same, and stays in its opset.
    """
    graph = Wiring(model)
    found = 0
    shapes, _ = graph.infer(1)
    for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
        match = _Match.of(graph, shapes, softmax)
        if match is not None:
            graph.replace(graph.producers()[match.result], *match.nodes(graph, shapes))
            found += 1
    if not found:
        return model, 0
    graph.drop_dead()
    made = graph.model()
    for domain in made.opset_import:
        if domain.domain in ("", "ai.onnx"):
            domain.version = max(domain.version, ATTENTION_OPSET)
    made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(list(made.opset_import)))
    return made, found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """One attention: what it reads, (batch, tokens, heads * width) in memory, and what changes its scores."""

    query: str
    key: str
    value: str
    mask: str | None
    heads: int
    tokens: tuple[int, int, int]
    scale: float
    result: str

    @classmethod
    def of(cls, graph: Wiring, shapes: Mapping[str, tuple[int, ...]], softmax: onnx.NodeProto) -> Self | None:
        """The attention whose softmax this is; None where it is none, or of another form."""
        views = _Views(graph, shapes)
        scores, mask, scale = views.scores(softmax.input[0])
        weighted = views.only_reader(softmax.output[0])
        if scores is None or weighted is None or weighted.op_type != "MatMul":
            return None
        operands = (*scores.input, weighted.input[1])
        four = all(len(shapes.get(n, ())) == 4 for n in operands) and weighted.input[0] == softmax.output[0]
        if not four or len({shapes[n][1] for n in operands}) != 1:
            return None
        query, query_scale = views.source(scores.input[0], _HEADS_OUT)
        key, key_scale = views.source(scores.input[1], _KEYS_OUT)
        value, value_scale = views.source(weighted.input[1], _HEADS_OUT)
        result = views.result(weighted.output[0])
        if query is None or key is None or value is None or result is None or value_scale != 1.0:
            return None
        if mask is not None and len(shapes.get(mask, ())) not in (2, 4):
            return None
        return cls(
            query=query,
            key=key,
            value=value,
            mask=mask,
            heads=shapes[operands[0]][1],
            tokens=(shapes[operands[0]][2], shapes[operands[1]][3], shapes[operands[2]][2]),
            scale=scale * query_scale * key_scale,
            result=result,
        )

    def nodes(self, graph: Wiring, shapes: Mapping[str, tuple[int, ...]]) -> list[onnx.NodeProto]:
        """The attention as one node, between reshapes where values have more axes than three."""
        made: list[onnx.NodeProto] = []
        inputs = []
        for name, tokens in zip((self.query, self.key, self.value), self.tokens, strict=True):
            if len(shapes[name]) != 3:
                wide = math.prod(shapes[name]) // tokens
                flat = graph.constant("shape", np.array([-1, tokens, wide], np.int64))
                made.append(make_node("Reshape", [name, flat], graph.fresh(f"{name}.tokens")))
                name = made[-1].output[0]
            inputs.append(name)
        axes = len(shapes[self.result])
        output = self.result if axes == 3 else graph.fresh(f"{self.result}.tokens")
        given = {"q_num_heads": self.heads, "kv_num_heads": self.heads, "scale": self.scale}
        mask = [self.mask] if self.mask else []
        made.append(make_node("Attention", [*inputs, *mask], output, f"attention_{self.result}", **given))
        if axes != 3:
            whole = graph.constant("shape", np.array([-1, *shapes[self.result][1:]], np.int64))
            made.append(make_node("Reshape", [output, whole], self.result))
        return made


class _Views:
    """Follows values through reshapes and transposes, by what these do and not by their spelling."""

    def __init__(self, graph: Wiring, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._graph, self._shapes = graph, shapes
        self._producers, self._readers = graph.producers(), graph.readers()

    def scores(self, name: str) -> tuple[onnx.NodeProto | None, str | None, float]:
        """The product of queries and keys behind these scores, the mask added to it, and their scale."""
        mask: str | None = None
        scale = 1.0
        while (node := self._producers.get(name)) is not None:
            factor = scale_of(node, self._graph.constants)
            if node.op_type == "MatMul":
                return node, mask, scale
            if factor is not None:
                name, scale = factor[0], scale * factor[1]
            elif node.op_type == "Add" and mask is None and scale == 1.0:
                full = self._shapes.get(node.output[0])
                scores = [n for n in node.input if self._shapes.get(n) == full and n in self._producers]
                name = scores[0] if scores else ""
                mask = next((n for n in node.input if n != name), None)
            else:
                break
        return None, None, 1.0

    def source(self, name: str, order: tuple[int, ...]) -> tuple[str | None, float]:
        """The value from which this one (1, heads, ...) is made of (tokens, heads * width), and its scale.

        Args:
            name: Queries or values (order 0, 2, 1, 3), or keys (0, 2, 3, 1).
            order: What turns (1, tokens, heads, width) to it.
        """
        shape = self._shapes[name]
        split = tuple(shape[order.index(axis)] for axis in range(4))
        wanted = np.arange(math.prod(shape)).reshape(split).transpose(order)
        chain: list[onnx.NodeProto] = []
        scale = 1.0
        found: tuple[str | None, float] = (None, 1.0)
        while (node := self._producers.get(name)) is not None:
            factor = scale_of(node, self._graph.constants)
            if factor is not None:
                name, scale = factor[0], scale * factor[1]
                continue
            if node.op_type not in _VIEWS or self._shapes.get(node.input[0], (0,))[0] != 1:
                break
            chain.insert(0, node)
            name = node.input[0]
            if np.array_equal(self._moved(name, chain), wanted) and self._is_tokens(name, split):
                found = (name, scale)
        return found

    def _is_tokens(self, name: str, split: tuple[int, ...]) -> bool:
        """Whether a value is (1, tokens, heads * width) but for axes of size 1."""
        _, tokens, heads, width = split
        sizes = tuple(d for d in self._shapes[name] if d != 1)
        return sizes == tuple(d for d in (tokens, heads * width) if d != 1)

    def result(self, name: str) -> str | None:
        """The last value that this one (1, heads, tokens, width) becomes, of (tokens, heads * width)."""
        wanted = np.arange(math.prod(self._shapes[name])).reshape(self._shapes[name]).transpose(_HEADS_OUT)
        start, split = name, wanted.shape
        chain: list[onnx.NodeProto] = []
        found: str | None = None
        while (node := self.only_reader(name)) is not None and node.op_type in _VIEWS:
            chain.append(node)
            name = node.output[0]
            moved = self._moved(start, chain)
            if np.array_equal(moved.ravel(), wanted.ravel()) and self._is_tokens(name, split):
                found = name
        return found

    def _moved(self, name: str, chain: Sequence[onnx.NodeProto]) -> npt.NDArray[np.int64]:
        """Where each element of a sample goes."""
        value = np.arange(math.prod(self._shapes[name])).reshape(self._shapes[name])
        for node in chain:
            if node.op_type == "Transpose":
                value = value.transpose(attributes(node)["perm"])
            else:
                value = value.reshape(self._shapes[node.output[0]])
        return value

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value; None where there are others, or the graph gives it."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._graph.outputs else None


def spell_out_attention(graph: Wiring, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Attention nodes on values of three axes as the products, transposes and softmax that they stand for.

    One with a cache, a causal mask of its own, a cap on its scores or further outputs stays.
    """
    for node in [n for n in graph.nodes if n.op_type == "Attention" and n.domain in ("", "ai.onnx")]:
        if _is_plain(node, shapes):
            graph.replace(node, *_Spelling(graph, shapes, node).nodes)


def _is_plain(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    given = attributes(node)
    return (
        len(node.input) >= 3
        and not any(node.input[4:])
        and not any(node.output[1:])
        and not given.get("is_causal")
        and not given.get("softcap")
        and all(len(shapes.get(n, ())) == 3 for n in node.input[:3])
        and given.get("q_num_heads") == given.get("kv_num_heads")
    )


class _Spelling:
    """One attention, spelled out: `nodes`, in order."""

    def __init__(self, graph: Wiring, shapes: Mapping[str, tuple[int, ...]], node: onnx.NodeProto) -> None:
        self._graph, self._shapes, self._result = graph, shapes, node.output[0]
        self.nodes: list[onnx.NodeProto] = []
        given = attributes(node)
        heads = int(given["q_num_heads"])
        query, key, value = node.input[:3]
        scale = given.get("scale", (shapes[query][2] // heads) ** -0.5)
        scores = self._add(
            "MatMul", self._heads(query, heads, _HEADS_OUT), self._heads(key, heads, _KEYS_OUT)
        )
        scores = self._add("Mul", scores, graph.constant("scale", np.float32(scale)))
        if any(node.input[3:]):
            scores = self._add("Add", scores, node.input[3])
        weights = self._add("Softmax", scores, axis=-1)
        out = self._add("MatMul", weights, self._heads(value, heads, _HEADS_OUT))
        joined = self._add("Transpose", out, perm=list(_HEADS_OUT))
        shape = np.array([-1, shapes[query][1], shapes[value][2]], np.int64)
        self.nodes.append(
            make_node("Reshape", [joined, graph.constant("shape", shape)], self._result, name=node.name)
        )

    def _add(self, op: str, *inputs: str, **given: Any) -> str:
        name = self._graph.fresh(f"{self._result}.{op.lower()}")
        self.nodes.append(make_node(op, inputs, name, **given))
        return name

    def _heads(self, name: str, heads: int, order: tuple[int, ...]) -> str:
        tokens, wide = self._shapes[name][1:]
        shape = self._graph.constant("shape", np.array([-1, tokens, heads, wide // heads], np.int64))
        return self._add("Transpose", self._add("Reshape", name, shape), perm=list(order))
