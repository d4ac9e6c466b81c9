"""What people call the nodes of a graph: by the layer whose weights they have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from edgewright.errors import ExportError
from edgewright.seams import bias_of, is_layer
from edgewright.wiring import Wiring


def layer_names(graph: Wiring) -> dict[str, str]:
    """A name for each node, by its own: that of the module, as far as weight or bias tells it.

    torch names constants `layers.0.up.weight`; the layer is then `layers.0.up`. Where two nodes would have
    one name, or nothing tells it, it is the node's own.
    """
    readers = graph.readers()
    names: dict[str, str] = {}
    for node in graph.nodes:
        told = [n for n in node.input[1:] if n in graph.constants]
        if node.op_type == "Gather":
            told = [node.input[0]]
        if is_layer(node, graph):
            told.append(bias_of(node, graph, readers))
        found = [n.rpartition(".")[0] for n in told if n.endswith((".weight", ".bias"))]
        names[node.name] = found[0] if found else node.name
    often = list(names.values())
    return {own: name if often.count(name) == 1 else own for own, name in names.items()}


def nodes_called(names: Iterable[str], graph: Wiring) -> frozenset[str]:
    """The layers that people mean, by the names of their nodes.

    Raises:
        ExportError: There is no such layer.
    """
    known = layer_names(graph)
    layers = {n.name for n in graph.nodes if is_layer(n, graph)}
    by_name = {name: own for own, name in known.items() if own in layers} | {n: n for n in layers}
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(name, list(by_name), n=1)
            said = (
                f"did you mean {close[0]!r}?"
                if close
                else f"layers: {', '.join(sorted(known[n] for n in layers))}"
            )
            raise ExportError(f"keep_float: there is no layer {name!r}; {said}")
    return frozenset(by_name[n] for n in names)
