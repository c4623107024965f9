"""What runs as one thing in a network, as readable text: the units whose latencies add up to that of a network.

A unit is one primitive of a place's plan, a linear layer, or another operation that writes a tensor. Equal texts are
equal work, wherever in whichever network: `conv 16->32 k3x3 s2x2 p1x1 @32x32`, `linear 64->10`, `relu 16@32x32`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache

from bsconv_nas.cost.analytic import node_dimensions
from bsconv_nas.decompositions import Conv, Norm, Primitive, primitive_shapes
from bsconv_nas.space.table import At, Table

__all__ = ["conv_key", "kind_of", "linear_key", "network_units", "node_units", "operation_key", "reachable", "work"]

Shape = tuple[int, ...]
Cell = tuple[tuple[int, ...], tuple[int, ...]]  # dimensions, and an option of each
FREE = frozenset({"placeholder", "get_attr"})  # operations that do nothing


def conv_key(conv: Conv, size: Shape) -> str:
    """Return the text of a convolution that reads images of `size` (H, W) [pixels].

    >>> conv_key(Conv("depthwise", 16, 16, (3, 3), (2, 2), (1, 1), groups=16, bias=True), (32, 32))
    'conv 16->16 k3x3 s2x2 p1x1 g16 bias @32x32'
    """
    padding = conv.padding if isinstance(conv.padding, str) else _by(conv.padding)
    parts = [f"conv {conv.c_in}->{conv.c_out} k{_by(conv.kernel)} s{_by(conv.stride)} p{padding}"]
    parts += [f"d{_by(conv.dilation)}"] if max(conv.dilation) > 1 else []
    parts += [f"g{conv.groups}"] if conv.groups > 1 else []
    parts += [conv.padding_mode] if conv.padding_mode != "zeros" else []
    return " ".join([*parts, *(["bias"] if conv.bias else []), f"@{_by(size)}"])


def linear_key(c_in: int, c_out: int) -> str:
    """Return the text of a linear layer."""
    return f"linear {c_in}->{c_out}"


def operation_key(name: str, reads: Shape, writes: Shape) -> str:
    """Return the text of another operation by its name and the shapes (C, ...) of its first input and its output.

    >>> operation_key("MaxPool2d", (16, 32, 32), (16, 16, 16)), operation_key("leaky_relu", (8, 4, 4), (8, 4, 4))
    ('maxpool2d 16@32x32->16@16x16', 'leakyrelu 8@4x4')
    """
    before = "" if reads == writes else f"{_image(reads)}->"
    return f"{name.lower().replace('_', '')} {before}{_image(writes)}"


def _by(sizes: Shape) -> str:
    return "x".join(map(str, sizes))


def _image(shape: Shape) -> str:
    return f"{shape[0]}@{_by(shape[1:])}" if len(shape) > 1 else _by(shape)


def kind_of(key: str) -> str:
    """Return what units are compared and corrected with.

    >>> kind_of("conv 16->16 k1x1 s1x1 p0x0 @8x8"), kind_of("conv 8->8 k3x3 s1x1 p1x1 g8 @8x8"), kind_of("relu 8@4x4")
    ('pointwise', 'depthwise', 'relu')
    """
    kind = key.partition(" ")[0]
    if kind != "conv":
        return kind
    return "depthwise" if re.search(r" g\d", key) else "pointwise" if " k1x1 " in key else "conv"


@cache
def work(key: str) -> tuple[int, int]:
    """Return the multiply-adds of a unit and how many values it reads and writes, at batch 1.

    >>> work("conv 16->32 k3x3 s2x2 p1x1 @32x32")
    (1179648, 29184)
    """
    if key.startswith("conv "):
        return _conv_work(key)
    if key.startswith("linear "):
        c_in, c_out = map(int, re.findall(r"\d+", key))
        return c_in * c_out, c_in * c_out + c_in + c_out
    shapes = [math.prod(map(int, re.findall(r"\d+", shape))) for shape in key.partition(" ")[2].split("->")]
    return 0, shapes[0] + shapes[-1]


def _conv_work(key: str) -> tuple[int, int]:
    c_in, c_out = map(int, re.findall(r"\d+", key.split()[1]))
    found = {
        part[0]: tuple(map(int, part[1:].split("x"))) for part in key.split()[2:] if re.fullmatch(r".[\dx]+", part)
    }
    groups, padding = found.get("g", (1,))[0], "same" if " psame " in key else _pair(found.get("p", (0, 0)))
    conv = Conv("", c_in, c_out, _pair(found["k"]), _pair(found["s"]), padding, _pair(found.get("d", (1, 1))), groups)
    written = c_out * math.prod(conv.output_size(_pair(found["@"])))
    return conv.fan_in * written, conv.parameters + c_in * math.prod(found["@"]) + written


def _pair(values: Shape) -> tuple[int, int]:
    return values[0], values[1]


def node_units(table: Table, index: int, at: At) -> list[str]:
    """Return the units of a node of one network, in the order in which they run; none for what does nothing.

    Args:
        table: the space.
        index: the node.
        at: the network's indices, or the chosen options of the dimensions that the node's costs depend on.
    """
    node = table.graph.nodes[index]
    if node.op in FREE or not node.inputs:
        return []
    before = table.graph.nodes[node.inputs[0]]
    if node.place is not None:
        return _plan_units(table.plan_at(index, at), before.shape[1:])
    writes = (table.channels_at(node.group, at) * node.features, *node.shape[1:])
    reads = (table.channels_at(before.group, at) * before.features, *before.shape[1:])
    return [linear_key(reads[0], writes[0]) if node.bias is not None else operation_key(node.op, reads, writes)]


def _plan_units(primitives: tuple[Primitive, ...], size: Shape) -> list[str]:
    found = []
    for primitive, shape in zip(primitives, primitive_shapes(primitives, _pair(size)), strict=True):
        if isinstance(primitive, Conv):
            found.append(conv_key(primitive, size))
        else:
            name = "batchnorm2d" if isinstance(primitive, Norm) else primitive.kind
            found.append(operation_key(name, shape, shape))
        size = shape[1:]
    return found


def reachable(table: Table) -> dict[str, list[Cell]]:
    """Return every unit that a network of the space can have, with the options of some node that bring it about."""
    found: dict[str, list[Cell]] = {}
    for index, node in enumerate(table.graph.nodes):
        groups = {node.group, *(table.graph.nodes[i].group for i in node.inputs[:1])}
        dimensions = node_dimensions(table, index, sorted(groups))
        for cell in _cells(table, dimensions):
            at = dict(zip(dimensions, cell, strict=True))
            if table.is_alive(node.block, at):
                for key in node_units(table, index, at):
                    found.setdefault(key, []).append((dimensions, cell))
    return found


def _cells(table: Table, dimensions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(table.dimensions[d].options)) for d in dimensions))


def network_units(table: Table, row: At) -> Iterator[str]:
    """Yield the units of one network."""
    for index, node in enumerate(table.graph.nodes):
        if table.is_alive(node.block, row):
            yield from node_units(table, index, row)
