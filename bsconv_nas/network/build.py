"""From an architecture to a plain module: the base network with its layers resized, replaced or dropped."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bsconv_nas.decompositions import Conv, Norm
from bsconv_nas.errors import SpaceError, first_line, suggest
from bsconv_nas.network.layers import layer
from bsconv_nas.space.base import Base
from bsconv_nas.space.graph import Node
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.space.trace_activations import with_own_activations
from bsconv_nas.space.trace_failures import check_shapes, copied

__all__ = ["build", "instantiate", "seeded_build"]


def instantiate(base: Base) -> nn.Module:
    """Return the base network, freshly initialised.

    `num_classes` and `in_channels` (or `in_chans`) are passed on where the factory takes them.

    Raises:
        SpaceError: the factory cannot be imported or called, or returns no module, or one whose weights lack shapes.

    >>> base = Base(factory="torchvision.models:resnet18", num_classes=7)
    >>> instantiate(base).fc.out_features
    7
    """
    factory = _import(base.factory)
    if not callable(factory):
        kind = type(factory).__name__
        raise SpaceError(f"Factory {base.factory!r} must be a function or a class, but is {kind!r}: name the function.")
    arguments = {**_declared(factory, base), **base.arguments}
    try:
        module = factory(**arguments)
    except (Exception, SystemExit) as error:  # whatever the user's factory raises
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SpaceError(
            f"Factory {base.factory!r} must accept ({shown}), but: {_reason(error)}; see base.arguments."
        ) from None
    if not isinstance(module, nn.Module):
        raise SpaceError(
            f"Factory {base.factory!r} must return a torch.nn.Module, but returned {type(module).__name__!r}."
        )
    check_shapes(module)
    return module


def _import(name: str) -> Any:
    path, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # whatever the user's module raises when it is run
        raise SpaceError(
            f"Module {path!r} of base.factory {name!r} must be importable, but: {_reason(error)}; install it or set "
            "PYTHONPATH."
        ) from None
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise SpaceError(f"{path!r} has no {attribute!r} (base.factory {name!r}): {_suggest(attribute, found)}.")
        found = getattr(found, attribute)
    return found


def _reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its class; of an exit, that it is one."""
    return f"it exits ({error})" if isinstance(error, SystemExit) else first_line(error)


def _suggest(attribute: str, module: Any) -> str:
    public = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
    return suggest(attribute, difflib.get_close_matches(attribute, public, n=5, cutoff=0.0) or public)


def _declared(factory: Any, base: Base) -> dict[str, int]:
    """Return the arguments among `num_classes`, `in_channels` and `in_chans` that the factory takes."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # what is written in C may not tell
        return {}
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    channels = {name: base.input_size[0] for name in ("in_channels", "in_chans") if name in parameters}
    return {**channels, **({"num_classes": base.num_classes} if keywords or "num_classes" in parameters else {})}


def build(base: Base | nn.Module, table: Table, architecture: Architecture) -> nn.Module:
    """Return the network of `architecture`: a plain module of torch layers, in training mode.

    Layers that the search can change are initialised anew by one rule (see `bsconv_nas.network.layers`) with torch's
    global generator; the others keep the initialisation of the base.

    Args:
        base: the reference to the base network, or the traced module itself (copied, not changed).
        table: the space.
        architecture: one of its networks.
    """
    module = with_own_activations(instantiate(base) if isinstance(base, Base) else copied(base))
    row, places = architecture.indices, _places(module)
    for index, node in enumerate(table.graph.nodes):
        if not node.path or node.shared or not table.is_alive(node.block, row) or not _varies(table, index):
            continue
        if node.op == "get_attr":
            _resize_parameter(module, node.path, table.channels_at(node.group, row))
            continue
        for path, replacement in _layers(module, table, row, index):
            _replace(module, places[module.get_submodule(path)], replacement)
    for number, block in enumerate(table.graph.blocks):
        if not table.is_alive(number, row):
            _replace(module, [block.path], nn.Identity())
    return module.train()


def _places(root: nn.Module) -> dict[nn.Module, list[str]]:
    """Return every path of each module: one that is shared has several."""
    places: dict[nn.Module, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)
    return places


def _varies(table: Table, index: int) -> bool:
    """Return whether the search may change a node: its operator, its kernel, or a width that it reads or writes."""
    node = table.graph.nodes[index]
    groups = {node.group, *(table.graph.nodes[i].group for i in node.inputs)}
    chosen = index in table.conv_dimension or index in table.kernel_dimension
    return chosen or any(table.group_dimensions[group] for group in groups)


def _replace(root: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    """Put `module` at some paths, on the device, with the type and as frozen as what stands there."""
    weight = next(root.get_submodule(paths[0]).parameters(), None)
    if weight is not None:
        module = module.to(weight.device, weight.dtype)
        if not any(p.requires_grad for p in root.get_submodule(paths[0]).parameters()):
            module.requires_grad_(False)
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, module)


def _resize_parameter(root: nn.Module, path: str, channels: int) -> None:
    """Give a bare parameter with one value a channel other channels."""
    owner, _, name = path.rpartition(".")
    host = root.get_parameter(path)
    root.get_submodule(owner).register_parameter(name, _like(host, _cut(host, channels)))


def _cut(weight: Tensor, channels: int) -> Tensor:
    """Return the values of a parameter that has one a channel, repeated or cut to `channels`."""
    values = weight.detach()
    index = torch.arange(channels, device=values.device) % values.numel()
    return values.index_select(values.shape.index(values.numel()), index)


def _layers(root: nn.Module, table: Table, row: tuple[int, ...], index: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield what stands in for the layers of a node, each with its path; layers that stay as they are are left out."""
    node = table.graph.nodes[index]
    if node.place is None:
        c_in = _reads(table, row, node) if node.inputs else 0
        resized = _resized(root.get_submodule(node.path), c_in, table.channels_at(node.group, row) * node.features)
        yield from [] if resized is None else [(node.path, resized)]
        return
    primitives = table.plan_at(index, row)
    if node.place.keeps(table.operator_at(index, row)):
        for path, primitive in zip(node.parts, primitives, strict=True):
            if isinstance(primitive, Conv):
                yield path, layer((primitive,))
            elif isinstance(primitive, Norm):
                yield path, _norm(root.get_submodule(path), primitive.channels)
    else:
        yield node.parts[0], layer(primitives)
        yield from ((path, nn.Identity()) for path in node.parts[1:] if path)


def _reads(table: Table, row: tuple[int, ...], node: Node) -> int:
    """Return the size of the first axis that a node reads."""
    before = table.graph.nodes[node.inputs[0]]
    return table.channels_at(before.group, row) * before.features


def _resized(host: nn.Module, c_in: int, c_out: int) -> nn.Module | None:
    """Return a layer like `host` for other channels, or None for one that does not know its channels."""
    if isinstance(host, nn.Linear):
        return nn.Linear(c_in, c_out, host.bias is not None)
    if isinstance(host, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
        return _norm(host, c_out)
    if isinstance(host, nn.PReLU) and host.num_parameters > 1:
        return _prelu(host, c_out)
    return None


def _norm(host: Any, channels: int) -> nn.Module:
    """Return `host` afresh for other channels; what its class adds stays, and a start as the identity stays one."""
    is_silent = host.affine and not host.weight.is_meta and not host.weight.any()
    for name, value in (*host.named_parameters(recurse=False), *host.named_buffers(recurse=False)):
        if value.dim():
            empty = value.detach().new_empty(channels)
            setattr(host, name, _like(value, empty) if isinstance(value, nn.Parameter) else empty)
    host.num_features = channels
    host.reset_parameters()
    if is_silent:
        nn.init.zeros_(host.weight)
    return cast(nn.Module, host)


def _like(host: nn.Parameter, values: Tensor) -> nn.Parameter:
    """Return other values as a parameter, frozen if the host is."""
    return nn.Parameter(values, host.requires_grad)


def _prelu(host: nn.PReLU, channels: int) -> nn.PReLU:
    module = nn.PReLU(channels)
    with torch.no_grad():
        module.weight.copy_(_cut(host.weight, channels))
    return module


def seeded_build(base: Base | nn.Module, table: Table, architecture: Architecture, seed: int) -> nn.Module:
    """Return `build` under its own seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(base, table, architecture)
