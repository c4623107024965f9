"""What tracing a module found, frozen, torch-free and JSON-able: operations, width groups, droppable blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bsconv_nas.decompositions import ConvSpec
from bsconv_nas.space.places import Place

__all__ = ["Block", "Fixed", "Graph", "Group", "Node", "tuples"]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the traced graph; `shape` is its output's without the batch.

    `inputs` are node indices. `group` is the width group of the output's channel axis, `features` how many values of
    the first axis one channel stands for (H W behind a flatten). A convolution has a `place`, from whose plan its costs
    follow; `parts` are the paths of its layers, several for a run, "" for one that is inside the layer before. The
    costs of a linear layer follow from its two groups and `bias`, which others have not. Others have parameters that
    are linear in the output's channels, `params_per_channel`, or constant, `params`, and constant `macs`.

    `element` is the path of the element of a sequential that the node is in, `form` that of the inverted residual that
    it is a half of, `alias` the node whose memory it writes.
    """

    name: str
    op: str
    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    group: int
    features: int = 1
    place: Place | None = None
    parts: tuple[str, ...] = ()
    form: str = ""
    bias: bool | None = None
    shared: bool = False
    params_per_channel: int = 0
    macs: int = 0
    params: int = 0
    alias: int | None = None
    block: int | None = None
    element: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether this is a place or a linear layer that reads one width group and writes another."""
        return self.bias is not None or (self.place is not None and self.place.role != "depthwise")

    @property
    def pixels(self) -> int:
        """Values of the output per unit of its channel group."""
        size = self.shape[1:] if len(self.shape) > 1 else ()
        return int(np.prod(size, dtype=np.int64)) * self.features


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must change together, named by the first layer that writes them; `reason` says why fixed."""

    name: str
    channels: int
    resolution: tuple[int, ...]
    reason: str = ""
    block: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block that can be dropped: number `position` of its `stage`."""

    path: str
    stage: str
    position: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """What does not vary, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Graph:
    """What tracing a module found, in execution order."""

    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]
    fixed: tuple[Fixed, ...]
    input_size: tuple[int, int, int]
    num_classes: int

    def once(self, members: Iterable[int]) -> list[int]:
        """Return these nodes, with one for the two halves of an inverted residual where both are among them."""
        found = {i: self.nodes[i] for i in members}
        roles = ((node.form, node.place.role) for node in found.values() if node.place)
        halves: Counter[tuple[str, str]] = Counter(roles)
        others = {"expansion": "projection", "projection": "expansion"}

        def stands(node: Node) -> bool:
            """Whether a node stands for its residual: the more frequent half does, else the first."""
            role = node.place.role if node.place else ""
            missing = halves[node.form, role] - halves[node.form, others[role]] if role in others else 1
            return missing > 0 or (missing == 0 and role == "expansion")

        return [i for i, node in found.items() if stands(node)]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """Return the graph of a table that `Table.to_json` wrote, also after a trip through a JSON file."""
        return cls(
            nodes=tuple(_node(row) for row in data["nodes"]),
            groups=tuple(Group(**tuples(row)) for row in data["groups"]),
            blocks=tuple(Block(**row) for row in data["blocks"]),
            fixed=tuple(Fixed(**row) for row in data["fixed"]),
            input_size=_tuple(data["input_size"]),
            num_classes=data["num_classes"],
        )


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with tuples for its lists, at every depth."""
    return {key: _tuple(value) for key, value in row.items()}


def _node(row: Mapping[str, Any]) -> Node:
    place = row["place"]
    return Node(**{**tuples(row), "place": None if place is None else _place(place)})


def _place(row: Mapping[str, Any]) -> Place:
    return Place(**{**tuples(row), "spec": ConvSpec(**tuples(row["spec"]))})
