"""Fitting: what a provider does not take of a model.onnx, layer by layer, by the provider's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgewright_device.onnx_file import Constant, Node, OnnxFile
from edgewright_device.provider import CPU, Choice, Provider

REMEDY_TYPES = {
    "int16": 'quantize with activations = "uint8"',
    "uint16": 'quantize with activations = "uint8"',
    "int4": 'quantize with weights = "int8"',
}


def fitting_form(
    models: Mapping[str, OnnxFile], choice: Choice, *, operators: bool = False
) -> tuple[str, str]:
    """The first of several forms of a model that a provider takes.

    Args:
        models: By their files' names, the plain one first.
        choice: The provider.
        operators: As in `misfits`.

    Returns:
        Its name, and an empty string; or an empty name, and what is wrong with the plain one.
    """
    first = ""
    for name, file in models.items():
        reason = next(misfits(file, choice, operators=operators), "")
        if not reason:
            return name, ""
        first = first or reason
    return "", first


def misfits(file: OnnxFile, choice: Choice, *, operators: bool = False) -> Iterator[str]:
    """What a provider does not take, each as a sentence with the layer and the remedy, in the file's order.

    Args:
        file: The model.
        choice: The provider.
        operators: Also those that it lacks, which a session hands to the CPU.
    """
    provider = choice.provider
    if provider.name == CPU:
        return
    for node in file.nodes:
        where = f"layer {node.name or ', '.join(node.outputs)!r}"
        if operators and provider.operators is not None and node.operator not in provider.operators:
            yield (
                f"{where}: {provider.short} has no operator {node.operator}; "
                "choose a target with another engine, or replace the layer"
            )
        if node.operator in {"QuantizeLinear", "DequantizeLinear"}:
            yield from _unfit(file, node, provider, where)


def _unfit(file: OnnxFile, node: Node, provider: Provider, where: str) -> Iterator[str]:
    zero = file.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    scale = file.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    constant = file.constants.get(node.inputs[0]) if node.inputs else None
    if node.operator == "DequantizeLinear" and constant is not None:
        found, what = constant.type, "weights"
        taken = provider.weights | (provider.activations if _size(scale) == 1 else frozenset())
        taken = taken | {"int32"} if provider.weights else taken  # biases
    else:
        found, what, taken = zero.type if zero else "uint8", "activations", provider.activations
    if taken and found not in taken:
        sorts = " or ".join(sorted(taken - {"int32"}))
        remedy = REMEDY_TYPES.get(found, f"quantize to {sorts}")
        remedy = _added(provider) if provider.symmetric and what == "activations" else remedy
        yield f"{where}: its {what} are {found}, {provider.short} takes {sorts}; {remedy}"
    elif provider.symmetric and zero is not None and not zero.zero:
        yield f"{where}: its zero point is not 0, as {provider.short} needs; {_added(provider)}"
    if not provider.per_channel and _size(scale) > 1:
        yield (f"{where}: it has a scale for each channel, {provider.short} takes one; use one scale")


def _added(provider: Provider) -> str:
    return f"export it for a target that lists {provider.short}, which adds symmetric.onnx"


def _size(constant: Constant | None) -> int:
    size = 1
    for length in constant.sizes if constant else ():
        size *= length
    return size
