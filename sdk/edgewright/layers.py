"""A `.pt2` program as a module of ordinary layers, so that it can be trained and pruned.

`torch.export` leaves calls of functions with weights beside them, in the mode they were traced in: no batch
normalisation that could learn its statistics, no dropout, nothing that a pruning tool knows. Each call of a
known kind becomes the layer that it came from, under the name that its weights have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgewright.errors import CompressError

aten = torch.ops.aten

Values = Mapping[str, Any]
Make = Callable[[Values, Mapping[str, Tensor]], nn.Module]
"""Makes a layer without values from the settings of a call, by name, and the weights that it will have."""


def load_program(path: Path) -> fx.GraphModule:
    """Reads a `.pt2` program and gives it back as layers.

    Raises:
        CompressError: The file cannot be read, or takes or gives more than tensors.
    """
    if not path.is_file():
        raise CompressError(f"{path}: there is no such file")
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds for files that are no programs
        raise CompressError(f"{path}: cannot be read as a .pt2 program: {error}") from error
    try:
        return layered(program)
    except CompressError as error:
        raise CompressError(f"{path}: {error}") from None


def layered(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Makes a module with the layers that a program's functions came from, in eval mode.

    Convolutions, linear layers, embeddings, batch, layer, group and RMS normalisation, PReLU and dropout are
    recognised; other functions stay functions, and other weights parameters of the module. Dropout inside
    `scaled_dot_product_attention` is lost, for a program that was traced in eval mode does not have it.

    Raises:
        CompressError: The program takes or gives more than tensors, such as a list of them.
    """
    model = _as_module(program)
    graph = model.graph
    layers: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _is_check(node) or _counts_batches(node):
            graph.erase_node(node)
        elif node.target in LAYERS:
            _replace(model, node, layers)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    _drop_unread(model, layers)
    graph.lint()
    model.recompile()
    return model.eval()


def _as_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program's functions in a module that takes and gives tensors, by the names of its `forward`."""
    source = program.module(check_guards=False)
    assert isinstance(source, fx.GraphModule)
    signature = program.module_call_graph[0].signature
    assert signature is not None
    names = signature.forward_arg_names or []
    graph = fx.Graph()
    outputs = graph.graph_copy(source.graph, {})
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(names) != len(placeholders):
        raise CompressError(
            "the program takes lists or tables of tensors; plain tensors alone can be compressed"
        )
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
    if not isinstance(outputs, tuple | list) or len(outputs) != 1:
        raise CompressError("the program gives several outputs; a classifier gives its logits alone")
    graph.output(outputs[0])
    return fx.GraphModule(copy.deepcopy(_attributes(source)), graph)


def _attributes(source: fx.GraphModule) -> dict[str, Any]:
    """What a graph reads, by the name it has there."""
    found: dict[str, Any] = {}
    for node in source.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            value: Any = source
            for part in node.target.split("."):
                value = getattr(value, part)
            found[node.target] = value
    return found


def _is_check(node: fx.Node) -> bool:
    """Whether a call only checks what was assumed in tracing."""
    return not node.users and str(node.target).startswith(("aten._assert", "aten.sym_constrain"))


def _counts_batches(node: fx.Node) -> bool:
    """Whether a call counts the batches that a normalisation saw: the layer does that itself."""
    first = node.args[0] if node.args else None
    return (
        not node.users
        and node.target is aten.add_.Tensor
        and isinstance(first, fx.Node)
        and str(first.target).endswith("num_batches_tracked")
    )


def _replace(model: fx.GraphModule, node: fx.Node, layers: dict[str, str]) -> None:
    """Puts a layer in the place of a call, if all its weights are the model's own.

    Args:
        model: Is changed.
        node: A call of one of `LAYERS`.
        layers: What each layer made so far was made from, by its name.
    """
    make, reads = LAYERS[node.target]
    arguments = node.target._schema.arguments  # type: ignore[union-attr] # noqa: SLF001 - the operator's signature
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    values |= dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    taken = "indices" if node.target is aten.embedding.default else arguments[0].name
    inputs = values.pop(taken)
    places: dict[str, str] = {}
    for name in reads:
        value = values.pop(name, None)
        if value is None:
            continue
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return  # computed on the way
        places[name] = str(value.target)
    if any(isinstance(value, fx.Node) for value in values.values()):
        return
    values["rank"] = inputs.meta["val"].ndim if "val" in inputs.meta else 0
    made_from = f"{node.target} {places} {values}"
    place = _place(node, places)
    while layers.get(place, made_from) != made_from:  # one weight, used in two ways
        place += "_again"
    if place not in layers:
        weights = {name: _attribute(model, target) for name, target in places.items()}
        _adopt(model, make(values, weights), place, weights)
        layers[place] = made_from
    with node.graph.inserting_before(node):
        call = node.graph.call_module(place, (inputs,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)


def _place(node: fx.Node, places: Mapping[str, str]) -> str:
    """The name of a layer: what stands before `.weight`; without weights, where in the code the call was."""
    target = places.get("weight") or places.get("running_mean")
    if target is not None:
        holder, _, own = target.rpartition(".")
        own = own.removesuffix("weight").removesuffix("running_mean").rstrip("_")
        return ".".join(part for part in (holder, own) if part) or "layer"
    stack = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1].partition("@")[0] if stack and stack[-1] else node.name


def _attribute(model: nn.Module, target: str) -> Any:
    holder, _, own = target.rpartition(".")
    return getattr(model.get_submodule(holder), own)


def _adopt(model: nn.Module, layer: nn.Module, place: str, weights: Mapping[str, Tensor]) -> None:
    """Gives a layer the program's own weights, and puts it in the place of what held them."""
    for name, value in weights.items():
        if name in layer._buffers:  # noqa: SLF001 - to tell a buffer from a parameter
            setattr(layer, name, value)
        else:
            known = isinstance(value, nn.Parameter)
            setattr(layer, name, value if known else nn.Parameter(value, requires_grad=False))
    holder = model
    *path, last = place.split(".")
    for part in path:
        if not isinstance(getattr(holder, part, None), nn.Module):
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    before = getattr(holder, last, None)
    if isinstance(before, nn.Module):
        for name, child in before.named_children():
            layer.add_module(name, child)
        for name, value in (*before.named_parameters(recurse=False), *before.named_buffers(recurse=False)):
            if name not in weights:
                setattr(layer, name, value)  # such as the count of batches that a normalisation saw
    elif before is not None:
        delattr(holder, last)
    setattr(holder, last, layer)


def _drop_unread(model: fx.GraphModule, layers: Mapping[str, str]) -> None:
    """Removes what nothing reads any more: weights that went into layers under other names."""
    read = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    for name, module in list(model.named_modules()):
        if name in layers:
            continue
        for own in [*module._parameters, *module._buffers]:  # noqa: SLF001 - of this module alone
            if ".".join(part for part in (name, own) if part) not in read:
                delattr(module, own)


# Layers


def _convolution(kind: type[nn.Module], *, transposed: bool = False) -> Make:
    def make(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
        groups = values["groups"]
        first, second = weights["weight"].shape[:2]
        inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
        kernel = tuple(weights["weight"].shape[2:])
        axes = len(kernel)
        settings = {
            name: value if isinstance(value, str) else _each(value, axes)
            for name, value in values.items()
            if name in ("stride", "padding", "output_padding", "dilation")
        }
        return kind(inputs, outputs, kernel, groups=groups, bias="bias" in weights, device="meta", **settings)

    return make


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A setting of each axis; one alone is for all."""
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    return found * axes if len(found) == 1 else found


def _linear(_values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    outputs, inputs = weights["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in weights, device="meta")


def _embedding(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    padding = values["padding_idx"]
    rows, columns = weights["weight"].shape
    return nn.Embedding(
        rows,
        columns,
        padding_idx=None if padding < 0 else padding,
        scale_grad_by_freq=values["scale_grad_by_freq"],
        device="meta",
    )


def _batch_norm(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(values["rank"], nn.BatchNorm1d)
    known = weights.get("weight", weights.get("running_mean"))
    assert known is not None
    layer = kind(
        len(known),
        eps=values["eps"],
        momentum=values["momentum"],
        affine="weight" in weights,
        track_running_stats="running_mean" in weights,
        device="meta",
    )
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked = torch.tensor(0)
    return layer


def _layer_norm(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    return nn.LayerNorm(
        list(values["normalized_shape"]),
        eps=values["eps"],
        elementwise_affine="weight" in weights,
        bias="bias" in weights,
        device="meta",
    )


def _rms_norm(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    affine = "weight" in weights
    shape = list(values["normalized_shape"])
    return nn.RMSNorm(shape, eps=values["eps"], elementwise_affine=affine, device="meta")


def _group_norm(values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    channels = len(weights["weight"])
    return nn.GroupNorm(values["num_groups"], channels, eps=values["eps"], device="meta")


def _prelu(_values: Values, weights: Mapping[str, Tensor]) -> nn.Module:
    return nn.PReLU(weights["weight"].numel(), device="meta")


def _dropout(values: Values, _weights: Mapping[str, Tensor]) -> nn.Module:
    return nn.Dropout(values["p"])


_WEIGHTS = ("weight", "bias")
LAYERS: Mapping[Any, tuple[Make, tuple[str, ...]]] = {
    aten.conv1d.default: (_convolution(nn.Conv1d), _WEIGHTS),
    aten.conv2d.default: (_convolution(nn.Conv2d), _WEIGHTS),
    aten.conv3d.default: (_convolution(nn.Conv3d), _WEIGHTS),
    aten.conv1d.padding: (_convolution(nn.Conv1d), _WEIGHTS),
    aten.conv2d.padding: (_convolution(nn.Conv2d), _WEIGHTS),
    aten.conv3d.padding: (_convolution(nn.Conv3d), _WEIGHTS),
    aten.conv_transpose1d.default: (_convolution(nn.ConvTranspose1d, transposed=True), _WEIGHTS),
    aten.conv_transpose2d.input: (_convolution(nn.ConvTranspose2d, transposed=True), _WEIGHTS),
    aten.linear.default: (_linear, _WEIGHTS),
    aten.embedding.default: (_embedding, ("weight",)),
    aten.batch_norm.default: (_batch_norm, (*_WEIGHTS, "running_mean", "running_var")),
    aten.layer_norm.default: (_layer_norm, _WEIGHTS),
    aten.rms_norm.default: (_rms_norm, ("weight",)),
    aten.group_norm.default: (_group_norm, _WEIGHTS),
    aten.prelu.default: (_prelu, ("weight",)),
    aten.dropout.default: (_dropout, ()),
}
"""By what a program calls: how to make the layer, and which arguments are its weights."""
