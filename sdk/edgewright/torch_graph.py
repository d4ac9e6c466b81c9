"""A float ONNX graph as a torch module: the same function, with gradients."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from edgewright.torch_operators import Call, Operator, operator_of
from edgewright.wiring import Wiring


class TorchGraph(nn.Module):
    """Runs the nodes of a graph in order. Takes the graph's inputs, by place or by name.

    Constants of float32 are parameters where they are to be trained, all others buffers.

    Attributes:
        graph: The graph, with the constants that it had at first.
    """

    def __init__(self, model: onnx.ModelProto, trained: Collection[str] | None = None) -> None:
        """Makes the module.

        Args:
            model: A graph with its constants inside.
            trained: Names of the constants to train; all that weigh or shift (`trainable`) if left out.

        Raises:
            CompressError: An operator that is not here; named.
        """
        super().__init__()
        self.graph = model
        wiring = Wiring(model)
        self.inputs, self.outputs = tuple(wiring.inputs), tuple(wiring.outputs)
        trained = frozenset(trainable(wiring) if trained is None else trained)
        self._keys: dict[str, str] = {}
        for name, value in wiring.constants.items():
            key = self._keys[name] = _key(name, self._keys.values())
            tensor = torch.from_numpy(np.array(value))  # a copy, which may be written to
            if name in trained:
                self.register_parameter(key, nn.Parameter(tensor))
            else:
                self.register_buffer(key, tensor, persistent=False)
        fixed = {n: v for n, v in wiring.constants.items() if n not in trained}
        self._calls = [(Call.of(node, fixed), self._operator(node)) for node in wiring.nodes]
        self._last = _last_reads(wiring)

    def constant(self, name: str) -> Tensor:
        """A constant, as it is now."""
        value: Tensor = getattr(self, self._keys[name])
        return value

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """All constants by name, as they are now."""
        return {name: self.constant(name).detach().cpu().numpy() for name in self._keys}

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        """The graph's output; of several a tuple."""
        values: dict[str, Any] = {**dict(zip(self.inputs, given, strict=False)), **named}
        if len(given) + len(named) != len(self.inputs) or values.keys() != set(self.inputs):
            raise TypeError(f"takes {', '.join(self.inputs)}; got {len(given)} and {sorted(named)}")
        values.update({name: self.constant(name) for name in self._keys}, **self._given())
        self._run(values)
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found

    def _operator(self, node: onnx.NodeProto) -> Operator:
        return operator_of(node)

    def _given(self) -> Mapping[str, Any]:
        """Values that nodes read and no node gives."""
        return {}

    def _run(self, values: dict[str, Any]) -> None:
        """Computes every node; `values` has inputs and constants, and gets the results still to be read."""
        for (call, operator), done in zip(self._calls, self._last, strict=True):
            inputs = [values[n] if n else None for n in call.node.input]
            result = operator(call, inputs)
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(call.node.output, results, strict=True))
            for name in done:
                del values[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy whose tensors are its own; the graph, which never changes, is shared."""
        made = self.__class__.__new__(self.__class__)
        memo.update({id(self): made, id(self.graph): self.graph, id(self._calls): self._calls})
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


def trainable(graph: Wiring) -> list[str]:
    """Constants that training may change: weights, biases, embeddings, gains and offsets of norms."""
    constants, readers = graph.constants, graph.readers()
    found: list[str] = []
    for node in graph.nodes:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "LayerNormalization"}:
            found += node.input[1:]
        elif node.op_type == "MatMul" and node.input[1] in constants:
            found.append(node.input[1])
            outputs = constants[node.input[1]].shape[-1:]
            added = (n for a in readers.get(node.output[0], []) if a.op_type == "Add" for n in a.input)
            found += [n for n in added if n in constants and constants[n].shape == outputs]
        elif node.op_type == "Gather" and constants.get(node.input[0], np.zeros(0)).shape[1:] > (1,):
            found.append(node.input[0])  # one column is what a function of a token number became
    return [n for n in dict.fromkeys(found) if n in constants and constants[n].dtype == np.float32]


def _key(name: str, taken: Collection[str]) -> str:
    """A name for a tensor of a module, in which no dot may be, and which no attribute has."""
    key = f"constants/{name.replace('.', '/')}"
    while key in taken:
        key += "_"
    return key


def _last_reads(wiring: Wiring) -> Sequence[Sequence[str]]:
    """For each node, the values that nobody reads after it."""
    kept = {*wiring.outputs, *wiring.inputs, *wiring.constants}
    last: Mapping[str, int] = {
        n: i for i, node in enumerate(wiring.nodes) for n in (*node.output, *node.input)
    }
    done: list[list[str]] = [[] for _ in wiring.nodes]
    for name, place in last.items():
        if name and name not in kept:
            done[place].append(name)
    return done
