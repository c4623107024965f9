"""A search space as a frozen, torch-free, JSON-able table; a network is one index per dimension.

`Graph` is what tracing a module found: nodes, width groups, droppable blocks. `Table` adds the dimensions that a search
may choose along. A population is an integer array (n, D), one row a network, one column a dimension; everything here is
vectorised over it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsconv_nas.decompositions import ConvSpec, parse_option
from bsconv_nas.errors import SpaceError, suggest

__all__ = ["Architecture", "Block", "Dimension", "Fixed", "Graph", "Group", "Node", "Population", "Table"]

Population = npt.NDArray[np.int64]
Value = str | float | int


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the traced graph; `shape` is its output's without the batch.

    `inputs` are node indices. `group` is the width group of the output's channel axis, `features` how many values of
    the first axis one channel stands for (H W behind a flatten). Costs that are linear in the output's channels are
    `macs_per_channel` and `params_per_channel`, constant ones `macs` and `params`; those of an ungrouped convolution
    follow from `spec` and the plan, those of a linear layer from its two groups and `bias`, which others have not.
    `element` is the path of the element of a sequential that the node is in, `alias` the node whose memory it writes.
    """

    name: str
    op: str
    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    group: int
    features: int = 1
    spec: ConvSpec | None = None
    bias: bool | None = None
    shared: bool = False
    macs_per_channel: int = 0
    params_per_channel: int = 0
    macs: int = 0
    params: int = 0
    alias: int | None = None
    block: int | None = None
    element: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether this is an ungrouped convolution or a linear layer: it reads one width group and writes another."""
        return self.spec is not None or self.bias is not None

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


@dataclass(frozen=True, slots=True)
class Dimension:
    """One choice: its name, its options, and what they act on.

    `members` are conv nodes (kind "conv"), width groups ("width") or blocks ("depth"). A width dimension lists the
    channels of each member under each option in `channels`; the options of a depth dimension are blocks kept.
    """

    name: str
    kind: Literal["conv", "width", "depth"]
    options: tuple[Value, ...]
    members: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network of a space: one option index per dimension, canonical, and its key.

    Two architectures of a space are the same network if and only if their keys are equal.
    """

    indices: tuple[int, ...]
    key: str

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class Table:
    """A search space: what was traced and what may be chosen."""

    graph: Graph
    dimensions: tuple[Dimension, ...]
    fixed: tuple[Fixed, ...] = ()

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of options of each dimension, shape (D,)."""
        return np.array([len(d.options) for d in self.dimensions], dtype=np.int64)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the dimensions, in order."""
        return tuple(d.name for d in self.dimensions)

    def _member_dimension(self, kind: str) -> dict[int, int]:
        return {m: i for i, d in enumerate(self.dimensions) if d.kind == kind for m in d.members}

    @cached_property
    def conv_dimension(self) -> dict[int, int]:
        """The dimension that chooses the decomposition of a conv node; fixed nodes are absent."""
        return self._member_dimension("conv")

    @cached_property
    def width_dimension(self) -> dict[int, int]:
        """The dimension that chooses the channels of a width group; fixed groups are absent."""
        return self._member_dimension("width")

    @cached_property
    def depth_dimension(self) -> dict[int, int]:
        """The dimension that may drop a block; blocks that always stay are absent."""
        return self._member_dimension("depth")

    @cached_property
    def group_channels(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Channels of each group by option of its width dimension; a fixed group has one entry."""
        found = {m: d.channels[i] for d in self.dimensions if d.kind == "width" for i, m in enumerate(d.members)}
        groups = enumerate(self.graph.groups)
        return tuple(np.array(found.get(g, (group.channels,)), dtype=np.int64) for g, group in groups)

    def channels(self, population: Population, group: int) -> npt.NDArray[np.int64]:
        """Return the channels of `group` in each network, shape (n,)."""
        options = self.group_channels[group]
        dimension = self.width_dimension.get(group)
        return np.broadcast_to(options, len(population)) if dimension is None else options[population[:, dimension]]

    def alive(self, population: Population, block: int | None) -> npt.NDArray[np.bool_]:
        """Return whether `block` is kept in each network, shape (n,); what stands in no block always is."""
        dimension = None if block is None else self.depth_dimension.get(block)
        if block is None or dimension is None:
            return np.ones(len(population), dtype=np.bool_)
        kept = np.array(self.dimensions[dimension].options, dtype=np.int64)
        return kept[population[:, dimension]] > self.graph.blocks[block].position

    @cached_property
    def _meanings(self) -> dict[int, tuple[npt.NDArray[np.int64], list[list[str]]]]:
        """Per searched conv node: ids (option, input width option) of what each option resolves to, and the texts."""
        found = {}
        for node, dimension in self.conv_dimension.items():
            options = [parse_option(str(option)) for option in self.dimensions[dimension].options]
            spec = self.graph.nodes[node].spec
            assert spec is not None
            widths = self.group_channels[self.input_group(node)].tolist()
            texts = [[option.resolve(spec.resized(width, spec.c_out)) for width in widths] for option in options]
            ids: dict[str, int] = {}
            found[node] = np.array([[ids.setdefault(t, len(ids)) for t in row] for row in texts]), texts
        return found

    def input_group(self, node: int) -> int:
        """Return the width group that a node reads."""
        return self.graph.nodes[self.graph.nodes[node].inputs[0]].group

    def meanings(self, population: Population, node: int) -> npt.NDArray[np.int64]:
        """Return ids of what the options mean at a searched conv node, shape (n, options): equal ids, equal layers."""
        ids = self._meanings[node][0]
        dimension = self.width_dimension.get(self.input_group(node))
        return (
            np.broadcast_to(ids[:, 0], (len(population), len(ids)))
            if dimension is None
            else ids.T[population[:, dimension]]
        )

    def _same(self, population: Population, index: int, option: int) -> npt.NDArray[np.bool_]:
        """Return where `option` of dimension `index` would give the network that stands in the row, shape (n,)."""
        dimension = self.dimensions[index]
        chosen = population[:, index]
        same = np.ones(len(population), dtype=np.bool_)
        for i, member in enumerate(dimension.members):
            if dimension.kind == "width":
                block = self.graph.groups[member].block
                table = np.array(dimension.channels[i])
                equal = table[chosen] == table[option]
            else:
                block = self.graph.nodes[member].block
                meanings = self.meanings(population, member)
                equal = np.take_along_axis(meanings, chosen[:, None], axis=1)[:, 0] == meanings[:, option]
            same &= equal | ~self.alive(population, block)
        return same

    def canonical(self, population: Population) -> Population:
        """Return the population with every row replaced by the canonical row of the same network.

        What lives only in dropped blocks, and options that mean the same at the chosen widths, become the first one.
        Depth comes first, then widths, then operators: each depends only on those before it.
        """
        out = np.array(population, dtype=np.int64)
        for kind in ("width", "conv"):
            for index, dimension in enumerate(self.dimensions):
                if dimension.kind == kind:
                    out[:, index] = self.canonical_option(out, index)
        return out

    def canonical_option(self, population: Population, index: int) -> npt.NDArray[np.int64]:
        """Return the first option of dimension `index` that gives the same network as the chosen one, shape (n,)."""
        first = population[:, index].copy()
        if self.dimensions[index].kind != "depth":
            for option in reversed(range(len(self.dimensions[index].options))):
                first[self._same(population, index, option)] = option
        return first

    def resolve(self, indices: Sequence[int]) -> dict[str, Value]:
        """Return what the network consists of: operator of each place, channels of each group, blocks of each stage.

        Names are those of the finest scope, so that ties, the order of options and masked choices leave no trace.
        """
        out: dict[str, Value] = {}
        for dimension, chosen in zip(self.dimensions, indices, strict=True):
            if dimension.kind == "depth":
                out[dimension.name] = dimension.options[chosen]
            for i, member in enumerate(dimension.members):
                if dimension.kind == "width" and self.is_alive(indices, self.graph.groups[member].block):
                    out[f"width.{self.graph.groups[member].name}"] = dimension.channels[i][chosen]
                elif dimension.kind == "conv" and self.is_alive(indices, self.graph.nodes[member].block):
                    reads = self.width_dimension.get(self.input_group(member))
                    text = self._meanings[member][1][chosen][0 if reads is None else indices[reads]]
                    out[f"conv.{self.graph.nodes[member].path}"] = text
        return out

    def channels_of(self, indices: Sequence[int], group: int) -> int:
        """Return the channels of `group` in one network."""
        dimension = self.width_dimension.get(group)
        return int(self.group_channels[group][0 if dimension is None else indices[dimension]])

    def is_alive(self, indices: Sequence[int], block: int | None) -> bool:
        """Return whether `block` is kept in one network."""
        dimension = None if block is None else self.depth_dimension.get(block)
        if block is None or dimension is None:
            return True
        return int(self.dimensions[dimension].options[indices[dimension]]) > self.graph.blocks[block].position

    def architecture(self, indices: Sequence[int]) -> Architecture:
        """Return the canonical architecture of one row of indices.

        Raises:
            SpaceError: a row of another length, or an index outside its dimension's options.
        """
        row = np.asarray(indices, dtype=np.int64)
        if row.shape != self.sizes.shape or (row < 0).any() or (row >= self.sizes).any():
            raise SpaceError(
                f"An architecture of this space has {len(self.sizes)} indices below {self.sizes.tolist()}, "
                f"but got {list(indices)}."
            )
        return self.architectures(row[None])[0]

    def architectures(self, population: Population) -> list[Architecture]:
        """Return the canonical architecture of each row of a population whose indices are valid."""
        return [self.named(row) for row in self.canonical(population).tolist()]

    def named(self, canonical: Sequence[int]) -> Architecture:
        """Return the architecture of a row that is canonical already."""
        text = json.dumps(self.resolve(canonical), sort_keys=True, separators=(",", ":"))
        return Architecture(tuple(canonical), hashlib.sha256(text.encode()).hexdigest()[:16])

    def describe(self, architecture: Architecture) -> dict[str, Value]:
        """Return the chosen option of each dimension by name."""
        return {d.name: d.options[i] for d, i in zip(self.dimensions, architecture.indices, strict=True)}

    def from_values(self, values: Mapping[str, Value]) -> Architecture:
        """Return the architecture with these options by dimension name; the inverse of `describe`.

        Raises:
            SpaceError: a missing or unknown dimension, or an option that it does not have.
        """
        if unknown := set(values) - set(self.names):
            name = min(unknown)
            raise SpaceError(f"Unknown dimension {name!r}: {suggest(name, self.names)}.")
        if missing := set(self.names) - set(values):
            raise SpaceError(f"An architecture needs every dimension of its space, but {min(missing)!r} is missing.")
        indices = []
        for dimension in self.dimensions:
            value = values[dimension.name]
            if value not in dimension.options:
                raise SpaceError(
                    f"Dimension {dimension.name!r} must be one of {list(dimension.options)}, but got {value!r}."
                )
            indices.append(dimension.options.index(value))
        return self.architecture(indices)

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Return the table that `to_json` wrote, also after a trip through a JSON file."""
        graph = data["graph"]
        return cls(
            graph=Graph(
                nodes=tuple(_node(row) for row in graph["nodes"]),
                groups=tuple(Group(**_tuples(row)) for row in graph["groups"]),
                blocks=tuple(Block(**row) for row in graph["blocks"]),
                fixed=tuple(Fixed(**row) for row in graph["fixed"]),
                input_size=_tuple(graph["input_size"]),
                num_classes=graph["num_classes"],
            ),
            dimensions=tuple(Dimension(**_tuples(row)) for row in data["dimensions"]),
            fixed=tuple(Fixed(**row) for row in data["fixed"]),
        )


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in row.items()}


def _node(row: Mapping[str, Any]) -> Node:
    spec = row["spec"]
    return Node(**{**_tuples(row), "spec": None if spec is None else ConvSpec(**_tuples(spec))})
