"""Defects of the QDQ graph: wrong grids, weights, biases, attributes and wiring. Program and graph agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from defect_places import Layer, Places
from defects import GraphChange, Subject, UnsuitableError, defect, pick
from healthy import quantize_static

import edgewright as ew
from edgewright.graph import float_graph
from edgewright.int4 import INT4
from edgewright.wiring import attributes, initializers

Random = np.random.Generator

# Grids of activations


@defect("zero point of both", "graph", "the zero point of an activation is 16 to 64 too high or too low")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    pair = places.pair(narrow=True)
    scale, zero, _, high = places.grid(pair)
    by = int(random.integers(16, 65))
    places.put_grid(pair, scale, zero + by if zero + by <= high else zero - by)
    return places.change(f"{pair.quantize.name}: by {by}")


def _one_side(subject: Subject, random: Random, side: str) -> GraphChange:
    places = Places(subject, random)
    pair = places.pair(narrow=True)
    _, zero, _, high = places.grid(pair)
    by = int(pick(random, [1, 3, 8]))
    node = pair.quantize if side == "q" else pick(random, pair.dequantize)
    moved = zero + by if zero + by <= high else zero - by
    places.set(node, 2, np.asarray(moved, places.zero_point(node).dtype))
    return places.change(f"{node.name}: by {by}")


@defect("zero point of Q", "graph", "the zero point of a QuantizeLinear is 1, 3 or 8 off")
def _(subject: Subject, random: Random) -> GraphChange:
    return _one_side(subject, random, "q")


@defect("zero point of DQ", "graph", "the zero point of a DequantizeLinear is 1, 3 or 8 off")
def _(subject: Subject, random: Random) -> GraphChange:
    return _one_side(subject, random, "dq")


@defect(
    "scale of DQ", "graph", "the scale of a DequantizeLinear is 1.1 or 2 times that of its QuantizeLinear"
)
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    pair, by = places.pair(), float(pick(random, [1.1, 2.0]))
    scale, *_ = places.grid(pair)
    node = pick(random, pair.dequantize)
    places.set(node, 1, np.asarray(scale * by, np.float32))
    return places.change(f"{node.name}: times {by}")


@defect("scale of a neighbour", "graph", "an activation has the grid of another one")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    pair = places.pair(narrow=True)
    scale, zero, *_ = places.grid(pair)
    others = [g for p in places.pairs(narrow=True) if (g := places.grid(p)[:2]) != (scale, zero)]
    far = [g for g in others if not 0.8 < g[0] / scale < 1.25]
    new = pick(random, far)
    places.put_grid(pair, *new)
    return places.change(f"{pair.quantize.name}: {scale:.3g} became {new[0]:.3g}")


@defect("range clipped", "graph", "calibration kept half of a range, or a quarter")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    pair, by = places.pair(), float(pick(random, [2.0, 4.0]))
    scale, zero, *_ = places.grid(pair)
    places.put_grid(pair, scale / by, zero)
    return places.change(f"{pair.quantize.name}: a range of 1/{by:g}")


@defect("range wasted", "graph", "an activation's steps are 8 times too wide")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    pair = places.pair(narrow=True)
    scale, zero, *_ = places.grid(pair)
    places.put_grid(pair, scale * 8, zero)
    return places.change(pair.quantize.name)


@defect("calibrated on other data", "graph", "calibrated on samples of a quarter of the size, or on noise")
def _(subject: Subject, random: Random) -> GraphChange:
    healthy = subject.healthy
    if (
        healthy.graph is None
        or healthy.source is not None
        or any(v.dtype == np.int64 for v in healthy.data.values())
    ):
        raise UnsuitableError
    noise = bool(random.integers(2))
    samples = {
        n: random.uniform(0, 0.1 * np.abs(v).max(), v.shape).astype(np.float32)
        if noise
        else v / np.float32(4)
        for n, v in healthy.calibration.items()
    }
    out = subject.beside("calibrated")
    made = ew.export(healthy.graph, target="x86-avx2", calibration=samples, out=out)
    return GraphChange(
        model=onnx.load(made.path / "model.onnx"), note="noise" if noise else "samples times 0.25"
    )


@defect("weights of all 8 bits", "graph", "signed weights of 8 bits, for a runtime that adds pairs in 16")
def _(subject: Subject, random: Random) -> GraphChange:
    healthy = subject.healthy
    if "7-bit" not in healthy.name or healthy.graph is None:
        raise UnsuitableError
    assert isinstance(healthy.artifact, Path)
    out = healthy.artifact.with_name(f"{healthy.artifact.stem}-wide.onnx")
    quantize_static(healthy.graph, out, healthy.calibration, healthy.name.split("/")[1].split("-")[0])
    return GraphChange(model=onnx.load(out))


# Scales of weights


@defect("scale of a channel", "graph", "the scale of one channel of a weight is 1.1 or 2 times too large")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer, by = places.layer(), float(pick(random, [1.1, 2.0]))
    scales = places.constants[layer.scale].copy()
    at = int(random.integers(scales.size))
    scales.reshape(-1)[at] *= by
    places.put_scales(layer, scales)
    return places.change(f"{layer.weight}[{at}]: times {by}")


@defect("scale of a weight", "graph", "the scales of a weight are all 1.1 or 2 times too large")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer, by = places.layer(), float(pick(random, [1.1, 2.0]))
    places.put_scales(layer, places.constants[layer.scale] * by)
    return places.change(f"{layer.weight}: times {by}")


def _per_channel(places: Places) -> Layer:
    layers = [each for each in places.layers() if len(np.unique(places.constants[each.scale])) > 2]
    return pick(places.random, layers)


@defect("scales permuted", "graph", "the scales of a weight belong to other channels")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = _per_channel(places)
    places.put_scales(layer, np.roll(places.constants[layer.scale], 1))
    return places.change(layer.weight)


@defect("scales of another axis", "graph", "the scales of a square weight are taken along its other axis")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layers = [
        each
        for each in places.layers()
        if (w := places.constants[each.weight]).shape[0]
        == w.shape[1]
        == places.constants[each.scale].size
        > 1
    ]
    layer = pick(random, layers)
    places.attribute(layer.dequantize, "axis", 1 - places.axis(layer))
    return places.change(layer.weight)


@defect("one scale for all", "graph", "a weight quantized by channel has the largest scale for all of them")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = _per_channel(places)
    places.put_scales(layer, places.constants[layer.scale].max())
    return places.change(layer.weight)


@defect("norm not folded", "graph", "the gains of a norm are missing from the weights before it")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = _per_channel(places)
    scales = places.constants[layer.scale]
    places.put_scales(layer, scales * random.uniform(0.5, 2, scales.shape))
    return places.change(layer.weight)


@defect("zero point of a weight", "graph", "a symmetric weight is given a zero point of 1 to 8")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer()
    scales, kind = places.constants[layer.scale], places.constants[layer.weight].dtype
    by = 1 if kind == INT4 else int(random.integers(1, 9))
    zero = np.full(scales.shape, by, kind)
    node = layer.dequantize
    if len(node.input) > 2:
        zero = (places.constants[node.input[2]].astype(np.int64) + by).astype(kind)
        places.set(node, 2, zero)
    else:
        node.input.append(places.graph.constant("zero", zero))
    return places.change(f"{layer.weight}: {by}")


# Integers of weights


@defect("bit flipped", "graph", "a high bit of one weight is flipped")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer()
    rows = places.integers(layer)
    at, most = int(random.integers(rows.size)), places.most(layer)
    bit = (most + 1) // 2
    value = int(rows.reshape(-1)[at])
    rows.reshape(-1)[at] = value - bit if value + bit > most else value + bit
    places.put_integers(layer, rows)
    return places.change(f"{layer.weight}[{at}]: {value} became {rows.reshape(-1)[at]}")


@defect("sign wrapped", "graph", "the largest weights of a layer became the smallest")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    signed = [each for each in places.layers() if places.constants[each.weight].dtype != np.uint8]
    layers = [each for each in signed if (places.integers(each) == places.most(each)).any()]
    layer = pick(random, layers)
    rows = places.integers(layer)
    rows[rows == places.most(layer)] = -places.most(layer) - 1
    places.put_integers(layer, rows)
    return places.change(layer.weight)


@defect("nibbles swapped", "graph", "the two weights of each byte are in the wrong order")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = pick(random, [each for each in places.layers() if places.constants[each.weight].dtype == INT4])
    rows = places.integers(layer)
    flat = rows.reshape(-1, 2)[:, ::-1]
    places.put_integers(layer, flat.reshape(rows.shape))
    return places.change(layer.weight)


@defect("rounded down", "graph", "the weights of a layer are cut off towards zero in place of rounded")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    floats = initializers(float_graph(subject.healthy.graph)) if subject.healthy.graph else {}
    layers = [
        each
        for each in places.layers()
        if each.weight in floats and _rounds(places, each, floats[each.weight])
    ]
    layer = pick(random, layers)
    steps = _steps(places, layer, floats[layer.weight])
    places.put_integers(layer, np.trunc(steps).astype(np.int64))
    return places.change(layer.weight)


def _steps(places: Places, layer: Layer, weight: np.ndarray) -> np.ndarray:
    """The weights of a layer in steps, output channels first."""
    rows = np.moveaxis(weight.astype(np.float64), places.axis(layer), 0)
    scales = places.constants[layer.scale].reshape(-1, *[1] * (rows.ndim - 1))
    return np.asarray(rows / scales)


def _rounds(places: Places, layer: Layer, weight: np.ndarray) -> bool:
    if weight.shape != places.constants[layer.weight].shape:
        return False
    return bool(np.abs(_steps(places, layer, weight) - places.integers(layer)).max() < 0.51)


@defect("low bits lost", "graph", "the two lowest bits of a layer's weights are gone")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = pick(random, [each for each in places.layers() if places.most(each) == 127])
    rows = places.integers(layer)
    places.put_integers(layer, rows >> 2 << 2)
    return places.change(layer.weight)


@defect("older weights", "graph", "one layer has the weights of an older version: 10 % of their spread away")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer()
    rows, most = places.integers(layer), places.most(layer)
    moved = rows + random.normal(0, max(0.5, 0.1 * rows.std()), rows.shape)
    places.put_integers(layer, np.clip(np.rint(moved), -most, most).astype(np.int64))
    return places.change(layer.weight)


@defect("sign of a channel", "graph", "the weights of one output channel have the wrong sign")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer()
    rows = places.integers(layer)
    at = int(random.integers(len(rows)))
    rows[at] = np.clip(-rows[at], -places.most(layer), places.most(layer))
    places.put_integers(layer, rows)
    return places.change(f"{layer.weight}[{at}]")


@defect("channels swapped", "graph", "two output channels of a layer have each other's weights")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer()
    rows = places.integers(layer)
    if len(rows) < 2:
        raise UnsuitableError
    a, b = random.permutation(len(rows))[:2]
    rows[[a, b]] = rows[[b, a]]
    places.put_integers(layer, rows)
    return places.change(f"{layer.weight}[{a}, {b}]")


@defect("inputs reversed", "graph", "a layer reads its input channels in reverse, as BGR for RGB")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(wide=True)
    places.put_integers(layer, places.integers(layer)[:, ::-1])
    return places.change(layer.weight)


@defect("weight transposed", "graph", "a square weight is transposed")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(square=True)
    places.put_integers(layer, places.integers(layer).T)
    return places.change(layer.weight)


@defect("kernel turned", "graph", "the kernels of a convolution are transposed, or mirrored")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layers = [
        each for each in places.layers() if (w := places.constants[each.weight]).ndim == 4 and w.shape[-1] > 1
    ]
    layer = pick(random, layers)
    rows = places.integers(layer)
    turned = rows.shape[-1] == rows.shape[-2] and bool(random.integers(2))
    places.put_integers(layer, rows.swapaxes(-1, -2) if turned else rows[..., ::-1])
    return places.change(f"{layer.weight}: {'transposed' if turned else 'mirrored'}")


@defect("flattened otherwise", "graph", "a layer behind a flattened image expects channels last")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    images = [s for each in places.layers() if (s := places.constants[each.weight].shape) and len(s) == 4]
    layers = [
        (each, s[0])
        for each in places.layers()
        if (w := places.constants[each.weight]).ndim == 2
        for s in images
        if w.shape[1 - places.axis(each)] % s[0] == 0
        and w.shape[1 - places.axis(each)] // s[0] in (4, 16, 49, 64)
    ]
    layer, channels = pick(random, layers)
    rows = places.integers(layer)
    turned = rows.reshape(len(rows), channels, -1).swapaxes(1, 2).reshape(rows.shape)
    places.put_integers(layer, turned)
    return places.change(layer.weight)


@defect("last inputs dropped", "graph", "the last input channel of a layer counts for nothing")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(wide=True)
    rows = places.integers(layer)
    rows[:, -1] = 0
    places.put_integers(layer, rows)
    return places.change(layer.weight)


@defect("heads swapped", "graph", "two attention heads of one projection are swapped")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    if not places.of("Softmax"):
        raise UnsuitableError
    layers = [each for each in places.layers() if places.constants[each.weight].ndim == 2]
    layers = [
        each
        for each in layers
        if len(set(places.constants[each.weight].shape)) == 1 and each.bias is not None
    ]
    layer = pick(random, layers)
    rows = places.integers(layer)
    each = len(rows) // 4
    order = np.concatenate([np.arange(each, 2 * each), np.arange(each), np.arange(2 * each, len(rows))])
    places.put_integers(layer, rows[order])
    assert layer.bias is not None
    for name in (layer.scale, *layer.bias.input[:2]):
        if places.constants[name].size == len(rows):
            places.constants[name] = places.constants[name][order]
    return places.change(layer.weight)


# Biases


@defect("bias dropped", "graph", "a layer has no bias")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(bias=True)
    assert layer.bias is not None
    places.constants[layer.bias.input[0]] = np.zeros_like(places.constants[layer.bias.input[0]])
    return places.change(layer.weight)


@defect("biases swapped", "graph", "two layers have each other's biases")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    biased = [each.bias for each in places.layers() if each.bias is not None]
    sizes = [places.constants[b.input[0]].size for b in biased]
    couples = [
        (a, b)
        for i, a in enumerate(biased)
        for j, b in enumerate(biased)
        if i < j and sizes[i] == sizes[j] and a.input[0] != b.input[0]
    ]
    first, second = pick(random, couples)
    values = [
        places.constants[b.input[0]].astype(np.float64) * places.constants[b.input[1]]
        for b in (first, second)
    ]
    for node, value in zip((second, first), values, strict=True):
        steps = np.rint(value / places.constants[node.input[1]])
        places.constants[node.input[0]] = np.clip(steps, -(2**30), 2**30).astype(np.int32)
    return places.change(f"{first.input[0]}, {second.input[0]}")


@defect("bias on another grid", "graph", "the integers of a bias were made for another input scale")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(bias=True)
    assert layer.bias is not None
    if layer.source is None:
        raise UnsuitableError
    own = float(places.constants[layer.source.input[1]].reshape(-1)[0])
    scales = [places.grid(p)[0] for p in places.pairs()]
    other = pick(random, [s for s in scales if not 0.7 < s / own < 1.4 and 0.01 < s / own < 100])
    ints = places.constants[layer.bias.input[0]]
    places.constants[layer.bias.input[0]] = np.clip(np.rint(ints * (own / other)), -(2**30), 2**30).astype(
        np.int32
    )
    return places.change(f"{layer.weight}: times {own / other:.3g}")


@defect("bias in 8 bits", "graph", "a bias is cut to 8 bits of its range")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    layer = places.layer(bias=True)
    assert layer.bias is not None
    ints = places.constants[layer.bias.input[0]]
    low = ((ints + 128) & 255) - 128
    if np.array_equal(low, ints):
        raise UnsuitableError
    places.constants[layer.bias.input[0]] = low.astype(np.int32)
    return places.change(layer.weight)


# Attributes


def _windowed(places: Places, kinds: tuple[str, ...], most: int = 4) -> list[onnx.NodeProto]:
    return [n for n in places.of(*kinds) if any(attributes(n).get("pads", ()))][: 100 * most]


@defect("padding moved", "graph", "a convolution's padding lies one further to the other side")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = pick(random, _windowed(places, ("Conv",)))
    pads = list(attributes(node)["pads"])
    half, axis = len(pads) // 2, int(random.integers(len(pads) // 2))
    frm, to = (axis, axis + half) if pads[axis] else (axis + half, axis)
    if not pads[frm]:
        raise UnsuitableError
    pads[frm] -= 1
    pads[to] += 1
    places.attribute(node, "pads", pads)
    return places.change(f"{node.name}: {pads}")


@defect("dilated", "graph", "a 3x3 convolution is dilated by 2")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    nodes = [n for n in _windowed(places, ("Conv",)) if attributes(n).get("kernel_shape") == [3, 3]]
    node = pick(random, [n for n in nodes if attributes(n).get("strides", [1, 1]) == [1, 1]])
    places.attribute(node, "dilations", [2, 2])
    places.attribute(node, "pads", [p + 1 for p in attributes(node)["pads"]])
    return places.change(node.name)


@defect("pool counts padding", "graph", "an average counts its padding, or no longer does")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = pick(random, _windowed(places, ("AveragePool",)))
    counts = int(attributes(node).get("count_include_pad", 0))
    places.attribute(node, "count_include_pad", 1 - counts)
    return places.change(node.name)


@defect(
    "maximum for average", "graph", "a pool takes the largest value in place of the average, or the reverse"
)
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("MaxPool", "AveragePool", "GlobalAveragePool")
    node.op_type = {
        "MaxPool": "AveragePool",
        "AveragePool": "MaxPool",
        "GlobalAveragePool": "GlobalMaxPool",
    }[node.op_type]
    kept = [a for a in node.attribute if a.name not in {"storage_order", "count_include_pad"}]
    del node.attribute[:]
    node.attribute.extend(kept)
    return places.change(node.name)


@defect("no ReLU", "graph", "a ReLU, or a clip, is missing, and calibration saw what lies below it")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Relu", "Clip")
    after = [p for p in places.pairs(narrow=True) if p.quantize.input[0] == node.output[0]]
    for pair in after:  # the range is seen without it
        scale, *_ = places.grid(pair)
        places.put_grid(pair, scale * 2, 128)
    places.bypass(node, node.input[0])
    return places.change(node.name)


@defect("clipped at another bound", "graph", "a ReLU is clipped, or a clip's upper bound is another")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Relu", "Clip")
    after = [p for p in places.pairs(narrow=True) if p.quantize.input[0] == node.output[0]]
    pair = pick(random, after)
    scale, zero, _, high = places.grid(pair)
    bound = np.asarray(scale * (high - zero) / 2, np.float32)
    if node.op_type == "Relu":
        node.op_type = "Clip"
        low = places.graph.constant("low", np.zeros((), np.float32))
        node.input.extend([low, places.graph.constant("high", bound)])
    else:
        places.set(node, 2, bound)
    return places.change(f"{node.name}: at {float(bound):.3g}")


@defect("another activation", "graph", "a sigmoid is a hard sigmoid, a GELU a ReLU")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Sigmoid", "Gelu", "Tanh", "HardSwish")
    old = node.op_type
    del node.attribute[:]
    node.op_type = {"Sigmoid": "HardSigmoid", "Gelu": "Relu", "Tanh": "Softsign", "HardSwish": "Relu"}[old]
    return places.change(f"{node.name}: {node.op_type} for {old}")


@defect("epsilon", "graph", "a norm's epsilon is 0.1")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("LayerNormalization")
    places.attribute(node, "epsilon", 0.1)
    return places.change(node.name)


@defect("norm's gains rolled", "graph", "the gains of a layer norm belong to other channels")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("LayerNormalization")
    places.constants[node.input[1]] = np.roll(places.constants[node.input[1]], 1)
    return places.change(node.name)


@defect("softmax along another axis", "graph", "a softmax runs along the axis before")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Softmax")
    places.attribute(node, "axis", -2)
    return places.change(node.name)


@defect(
    "attention not scaled", "graph", "the scores of an attention are not divided by the root of its width"
)
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    scaled = [
        n
        for n in places.of("Mul", "Div")
        if any(i in places.constants and places.constants[i].size == 1 for i in n.input)
    ]
    node = pick(random, scaled)
    after = [p for p in places.pairs() if p.quantize.input[0] == node.output[0]]
    value = next(float(places.constants[i].reshape(-1)[0]) for i in node.input if i in places.constants)
    for pair in after:
        scale, zero, *_ = places.grid(pair)
        places.put_grid(pair, scale / (value if node.op_type == "Mul" else 1 / value), zero)
    places.bypass(node, next(i for i in node.input if i not in places.constants))
    return places.change(node.name)


@defect("interpolated otherwise", "graph", "an image is enlarged by other coordinates")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Resize")
    places.attribute(node, "coordinate_transformation_mode", "asymmetric")
    return places.change(node.name)


# Wiring


def _sums(places: Places) -> list[onnx.NodeProto]:
    return [n for n in places.of("Add") if all(places.computed(i) for i in n.input)]


@defect("residual dropped", "graph", "a sum leaves out one of its two values")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = pick(random, _sums(places))
    kept = int(random.integers(2))
    places.bypass(node, node.input[kept])
    return places.change(f"{node.name}: keeps {kept}")


@defect("residual doubled", "graph", "a sum takes one of its values twice")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = pick(random, _sums(places))
    kept = int(random.integers(2))
    node.input[1 - kept] = node.input[kept]
    places.graph.drop_dead()
    return places.change(f"{node.name}: {kept} twice")


@defect("joined in another order", "graph", "what a Concat joins is in the wrong order")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    node = places.any_of("Concat")
    names = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(names)
    return places.change(node.name)


@defect("earlier value read", "graph", "a layer reads the value before the one that it should")
def _(subject: Subject, random: Random) -> GraphChange:
    places = Places(subject, random)
    shapes, _ = places.graph.infer(1)
    values = [n.output[0] for n in places.of("DequantizeLinear") if n.input[0] not in places.constants]
    couples = [
        (each, values[at - 1])
        for each in places.layers()
        if each.node.input[0] in values and (at := values.index(each.node.input[0]))
        if shapes.get(values[at - 1]) == shapes.get(values[at]) is not None
    ]
    layer, other = pick(random, couples)
    layer.node.input[0] = other
    places.graph.drop_dead()
    return places.change(f"{layer.node.name}: reads {other}")
