"""The table of operators: it lists what lowering takes, and what the normal form writes as that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from edgewright.lower import FORMS, NATIVE_OPERATORS, REWRITTEN
from edgewright.normalform import normalize
from sdk.graphs import graph, normal

EXAMPLES: Mapping[str, tuple[Sequence[str], Mapping[str, Any], Sequence[int]]] = {
    "BatchNormalization": (["x", "one", "one", "one", "one"], {}, (4, 6, 6)),
    "DepthToSpace": (["x"], {"blocksize": 2}, (1, 12, 12)),
    "Dropout": (["x"], {}, (4, 6, 6)),
    "ReduceMean": (["x", "last"], {}, (4, 6, 1)),
    "SpaceToDepth": (["x"], {"blocksize": 2}, (16, 3, 3)),
    "Squeeze": (["narrow", "last"], {}, (4, 6)),
    "Unsqueeze": (["x", "last"], {}, (4, 6, 6, 1)),
}


def test_every_operator_that_lowering_takes_has_its_forms_told() -> None:
    assert set(FORMS) == set(NATIVE_OPERATORS)
    assert not set(FORMS) & set(REWRITTEN)


@pytest.mark.parametrize("op", EXAMPLES)
def test_an_operator_told_as_rewritten_is_gone_from_the_normal_form(op: str) -> None:
    names, given, shape = EXAMPLES[op]
    made = graph(
        [
            ("Slice", ["x", "start", "end", "last"], "narrow", {}),
            (op, names, "inner", given),
            ("Relu", ["inner"], "y", {}),
        ],
        {"x": (4, 6, 6)},
        {"y": shape},
        {
            "one": np.ones(4, np.float32),
            "last": np.array([-1]),
            "start": np.array([0]),
            "end": np.array([1]),
        },
    )
    assert op not in {n.op_type for n in normalize(made).graph.node}


def test_split_and_constant_are_gone_too() -> None:
    parts = graph(
        [("Split", ["x", "sizes"], "a", {"axis": 1}), ("Relu", ["a"], "y", {})],
        {"x": (4,)},
        {"y": (2,)},
        {"sizes": np.array([2, 2])},
    )
    parts.graph.node[0].output.append("b")
    parts.graph.node[1].op_type = "Add"
    parts.graph.node[1].input.append("b")
    assert {n.op_type for n in normalize(parts).graph.node} == {"Slice", "Add"}
    constant = graph(
        [("Constant", [], "c", {"value_floats": normal(4).tolist()}), ("Add", ["x", "c"], "y", {})],
        {"x": (4,)},
        {"y": (4,)},
    )
    assert {n.op_type for n in normalize(constant).graph.node} == {"Add"}
