"""Cross-layer equalization: neighbouring layers share their channels' ranges evenly.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.1. It needs no data. Grids of weights are per channel here, so what it gains is in the activation
between the layers, whose one grid must hold all channels.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgewright.seams import inputs_most, outputs_most, scale, seams
from edgewright.wiring import Wiring

SWEEPS = 50
STILL = 1e-3  # how near to 1 all factors of a sweep are when it has converged
LARGEST = 1e3  # of a factor in one sweep


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Makes the weights before and behind each seam between layers equally large, channel by channel.

    Channels without a weight on one side stay as they are.

    Args:
        model: A normalized float graph.

    Returns:
        A graph of the same function, and how many seams it has.
    """
    graph = Wiring(model)
    found = [s for s in seams(graph) if s.before.op_type != "LayerNormalization"]
    for _ in range(SWEEPS if found else 0):
        furthest = 0.0
        for seam in found:
            one, other = outputs_most(seam, graph), inputs_most(seam, graph)
            alive = (one > 0) & (other > 0)
            ratio = np.divide(one, other, out=np.ones_like(one), where=alive)
            factor = np.clip(np.sqrt(ratio), 1 / LARGEST, LARGEST)
            scale(graph, seam, factor)
            furthest = max(furthest, float(np.abs(np.log(factor)).max()))
        if furthest < STILL:
            break
    graph.drop_dead()
    return graph.model(), len(found)
