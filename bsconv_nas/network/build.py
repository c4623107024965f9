"""From an architecture to a plain module: the base network with its layers resized, replaced or dropped."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

import torch
from torch import nn

from bsconv_nas.decompositions import parse_option, plan
from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.network.layers import layer
from bsconv_nas.space.base import Base
from bsconv_nas.space.table import Architecture, Node, Table

__all__ = ["build", "instantiate"]


def instantiate(base: Base) -> nn.Module:
    """Return the base network, freshly initialised.

    `num_classes` and `in_channels` (or `in_chans`) are passed on where the factory takes them.

    Raises:
        SpaceError: the factory cannot be imported or called, or returns no module.

    >>> base = Base(factory="torchvision.models:resnet18", num_classes=7)
    >>> instantiate(base).fc.out_features
    7
    """
    factory = _import(base.factory)
    arguments = {**_declared(factory, base), **base.arguments}
    try:
        module = factory(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = str(error).splitlines()[0].rstrip(".")
        raise SpaceError(
            f"Factory {base.factory!r} must accept ({shown}), but: {reason}; see base.arguments."
        ) from None
    if not isinstance(module, nn.Module):
        raise SpaceError(
            f"Factory {base.factory!r} must return a torch.nn.Module, but returned {type(module).__name__!r}."
        )
    return module


def _import(name: str) -> Any:
    path, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        raise SpaceError(
            f"Module {path!r} of base.factory {name!r} must be importable, but: {error}; install it or set PYTHONPATH."
        ) from None
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise SpaceError(f"{path!r} has no {attribute!r} (base.factory {name!r}): {_suggest(attribute, found)}.")
        found = getattr(found, attribute)
    return found


def _suggest(attribute: str, module: Any) -> str:
    public = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
    return suggest(attribute, public) if len(public) <= 30 else suggest(attribute, [*public[:0], attribute])


def _declared(factory: Any, base: Base) -> dict[str, int]:
    """Return the arguments among `num_classes`, `in_channels` and `in_chans` that the factory takes."""
    parameters = inspect.signature(factory).parameters
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
    module = instantiate(base) if isinstance(base, Base) else copy.deepcopy(base)
    row = architecture.indices
    for index, node in enumerate(table.graph.nodes):
        if node.path and not node.shared and table.is_alive(row, node.block) and node.op != "get_attr":
            replacement = _layer(module.get_submodule(node.path), table, row, index)
            if replacement is not None:
                _replace(module, node.path, replacement)
    for number, block in enumerate(table.graph.blocks):
        if not table.is_alive(row, number):
            _replace(module, block.path, nn.Identity())
    return module.train()


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _layer(host: nn.Module, table: Table, row: tuple[int, ...], index: int) -> nn.Module | None:
    """Return what stands in for `host`, or None where it stays as it is."""
    node = table.graph.nodes[index]
    place = table.conv_dimension.get(index)
    groups = {node.group, *(table.graph.nodes[i].group for i in node.inputs)}
    if place is None and not any(group in table.width_dimension for group in groups):
        return None
    c_out = table.channels_of(row, node.group)
    if node.spec is not None:
        operator = "regular" if place is None else str(table.dimensions[place].options[row[place]])
        return layer(plan(node.spec.resized(_reads(table, row, node), c_out), parse_option(operator)))
    return _resized(host, _reads(table, row, node) if node.inputs else 0, c_out * node.features)


def _reads(table: Table, row: tuple[int, ...], node: Node) -> int:
    """Return the size of the first axis that a node reads."""
    before = table.graph.nodes[node.inputs[0]]
    return table.channels_of(row, before.group) * before.features


def _resized(host: nn.Module, c_in: int, c_out: int) -> nn.Module | None:
    """Return a layer like `host` for other channels, or None for one that does not know its channels."""
    if isinstance(host, nn.Linear):
        return nn.Linear(c_in, c_out, host.bias is not None)
    if isinstance(host, nn.Conv2d):  # depthwise: what else is grouped is fixed
        return _depthwise(host, c_out)
    if isinstance(host, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
        kind: Any = type(host)
        norm: nn.Module = kind(c_out, host.eps, host.momentum, host.affine, host.track_running_stats)
        if host.affine and not host.weight.is_meta and not host.weight.any():
            nn.init.zeros_(norm.get_parameter("weight"))  # blocks that start as the identity stay so
        return norm
    if isinstance(host, nn.PReLU):
        return nn.PReLU(c_out if host.num_parameters > 1 else 1)
    return None


def _depthwise(host: nn.Conv2d, channels: int) -> nn.Conv2d:
    kind: Any = nn.Conv2d
    like = (host.kernel_size, host.stride, host.padding, host.dilation, channels, host.bias is not None)
    depthwise: nn.Conv2d = kind(channels, channels, *like, host.padding_mode)
    return depthwise


def seeded_build(base: Base | nn.Module, table: Table, architecture: Architecture, seed: int) -> nn.Module:
    """Return `build` under its own seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(base, table, architecture)
