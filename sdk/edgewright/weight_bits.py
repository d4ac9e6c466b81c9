"""Where weights have 4 bits and where 8: as many of 4 as the outputs bear.

Each layer's 4-bit weights are tried alone in the float model: what they add to the squared error of its
outputs, for the bytes they save. Errors of layers nearly add up, so layers are taken in the order of that
ratio, each if the errors together stay within what is allowed; then that is measured, and the last ones are
given back while it is too much.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import numpy as np
import onnx

from edgewright.disturbance import Outputs
from edgewright.hessian import layers_of
from edgewright.int4 import possible
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import Quantized
from edgewright.samples import Samples
from edgewright.wiring import initializers

WeightBits = Literal["int8", "int4", "auto"]

MOST_NOISE = 2.0  # of the outputs, over that of the model in 8 bits: 3 dB of signal to noise
FREE_NOISE = 10**-2.5  # is borne in any case: 25 dB
WATCHED = 128  # samples at most, by which outputs are judged
KEPT_ASIDE = 0.25  # of the samples


def with_weight_bits(
    bits: WeightBits,
    make: Callable[[Collection[str], Samples | None], Quantized],
    floats: onnx.ModelProto,
    samples: Samples,
    report: OnProgress,
) -> Quantized:
    """Quantizes with weights of 4 bits where these are wanted, or where they do little harm.

    Args:
        bits: "int4" has them wherever they can be, "auto" where the outputs bear it.
        make: Quantizes with 4 bits for the layers named, fitted to the samples given, if any.
        floats: The float graph.
        samples: By input name; for "auto", a quarter of them judges.
        report: Told of each layer tried.
    """
    if bits == "int8":
        return make((), samples)
    count = len(next(iter(samples.values())))
    aside = max(1, min(WATCHED, round(KEPT_ASIDE * count)))
    apart = bits == "auto" and count > aside
    fitting = {n: v[:-aside] for n, v in samples.items()} if apart else samples
    layers = layers_of(make((), None).model, floats)
    able = [x for x in layers if possible(x.node.op_type, x.weight.shape)]
    four = make([x.name for x in able], fitting)
    if bits == "int4":
        return four
    eight, constants = make((), fitting), initializers(four.model)
    outputs = Outputs(floats, {n: v[-aside:] for n, v in samples.items()})
    of_eight = outputs.error_of(eight.model)
    allowed = max(MOST_NOISE * of_eight, FREE_NOISE)
    errors: list[float] = []
    for number, layer in enumerate(able, 1):
        integers, scale = (constants[n].astype(np.float32) for n in (layer.name, f"{layer.name}.scale"))
        weight = (integers.reshape(len(scale), -1) * scale[:, None]).reshape(layer.weight.shape)
        errors.append(outputs.error_with(layer, weight))
        report(Progress(step="weight bits", done=number, total=len(able)))
    order = np.argsort([e / x.weight.size for e, x in zip(errors, able, strict=True)], kind="stable")
    taken: list[str] = []
    together = of_eight
    for i in order:
        if together + errors[i] <= allowed:
            taken.append(able[i].name)
            together += errors[i]
    while taken:
        made = make(taken, fitting)
        if outputs.error_of(made.model) <= allowed:
            return made
        taken = taken[: len(taken) * 3 // 4]
    return eight
