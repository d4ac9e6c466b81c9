"""Runs a graph from value to value on many samples, so that something may be changed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgewright.graph import onnx_function
from edgewright.wiring import Wiring

Values = dict[str, npt.NDArray[Any]]


class Walk:
    """A graph that has been run as far as some value.

    Attributes:
        values: What is known and still needed, by name, (samples, ...). What is changed here is what later
            nodes read.
        constants: Of the graph; what is changed here is what later nodes read.
    """

    def __init__(self, model: onnx.ModelProto, samples: Mapping[str, npt.NDArray[Any]], batch: int) -> None:
        """Stands before the first node.

        Args:
            model: A graph with its constants inside.
            samples: Its inputs by name, (samples, ...).
            batch: Samples to run at a time; all of them, where some value has them along another axis, as the
                state of an LSTM has.
        """
        self._graph = Wiring(model)
        self._batch = batch if _batch_is_first(self._graph) else len(next(iter(samples.values())))
        self.constants = self._graph.constants
        self.values: Values = dict(samples)
        self._left = list(self._graph.nodes)
        self._fixed: set[str] = set()  # what depends on no input: computed wherever it is read
        for node in self._left:
            if all(n in self.constants or n in self._fixed for n in node.input if n):
                self._fixed.update(node.output)

    def to(self, name: str) -> npt.NDArray[Any]:
        """Goes on until a value is known, and returns it."""
        if name not in self.values:
            nodes = self._needed([name], self.values)
            done = {id(n) for n in nodes if not self._fixed.issuperset(n.output)}
            self._left = [n for n in self._left if id(n) not in done]
            given = {o for n in nodes for o in n.output if o not in self._fixed}
            later = {n for node in self._left for n in node.input} | {*self._graph.outputs, name}
            found = self._run(nodes, sorted(given & later), self.values)
            self.values = {n: v for n, v in {**self.values, **found}.items() if n in later}
        return self.values[name]

    def rest(self, outputs: Iterable[str], changed: Mapping[str, npt.NDArray[Any]]) -> Values:
        """What comes out in the end, if some of the known values were others; the walk stays where it is."""
        names, values = list(outputs), {**self.values, **changed}
        missing = [n for n in names if n not in values]
        made = self._run(self._needed(missing, values), missing, values) if missing else {}
        return {n: values[n] if n in values else made[n] for n in names}

    def _needed(self, names: Iterable[str], known: Values) -> list[onnx.NodeProto]:
        wanted = {n for n in names if n not in known}
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self._left):
            if wanted.intersection(node.output):
                nodes.append(node)
                wanted.update(n for n in node.input if n not in known)
        return nodes[::-1]

    def _run(self, nodes: list[onnx.NodeProto], outputs: list[str], values: Values) -> Values:
        part = Wiring(self._graph.source)
        part.nodes, part.outputs = list(nodes), list(outputs)
        read = {n for node in nodes for n in node.input}
        part.constants = {n: v for n, v in self.constants.items() if n in read}
        model = part.model()
        feed = {n: values[n] for n in sorted(read & values.keys())}
        del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
        model.graph.input.extend(
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), [None, *v.shape[1:]])
            for n, v in feed.items()
        )
        run = onnx_function(model, outputs)
        count = max(len(v) for v in feed.values())
        found = [
            run({n: v[start : start + self._batch] for n, v in feed.items()})
            for start in range(0, count, self._batch)
        ]
        return {n: np.concatenate([f[n] for f in found]) for n in outputs}


def _batch_is_first(graph: Wiring) -> bool:
    """Whether every value that grows with the batch does so along its first axis."""
    one, two = graph.infer(1)[0], graph.infer(2)[0]
    grown = [n for n in one.keys() & two.keys() if one[n] != two[n]]
    return all(one[n][1:] == two[n][1:] for n in grown)
