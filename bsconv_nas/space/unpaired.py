"""Why a depthwise convolution is no half of a separable pair."""

from __future__ import annotations

from bsconv_nas.space.graph import Graph, Node

__all__ = ["why_unpaired"]


def why_unpaired(graph: Graph, index: int) -> str:
    """Return what keeps depthwise convolution number `index` of a graph from being one place with a pointwise one."""
    return f"depthwise convolution outside a separable pair: {_obstacle(graph, index)}"


def _obstacle(graph: Graph, index: int) -> str:
    between: list[str] = []
    while True:
        readers = [i for i, node in enumerate(graph.nodes) if index in node.inputs]
        if len(readers) != 1:
            return f"{len(readers)} operations read {_shown(graph.nodes[index])}"
        (index,) = readers
        node = graph.nodes[index]
        if node.place is not None and node.place.role != "depthwise" and node.place.spec.kernel == (1, 1):
            return _between(node.path, between)
        if node.is_layer or node.place or len(node.inputs) != 1 or node.group != graph.nodes[node.inputs[0]].group:
            return f"{_shown(node)} follows, and no pointwise convolution"
        between.append(_shown(node))


def _between(pointwise: str, between: list[str]) -> str:
    if not between:
        return f"its pointwise convolution {pointwise} is part of another place"
    shown = ", ".join(between)
    return f"before {pointwise} stands {shown}, but a pair holds a batch norm and an activation at most, as modules"


def _shown(node: Node) -> str:
    """Name a module with its class, or a function."""
    return f"{node.path} ({node.op})" if node.path else f"the function {node.op}"
