"""A search space as a frozen, torch-free, JSON-able table; a network is one index per dimension.

A `Table` adds to a graph the dimensions that a search may choose along. A population is an integer array (n, D), one
row a network, one column a dimension; everything here is vectorised over it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsconv_nas.decompositions import Plan
from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.space.graph import Fixed, Graph, tuples
from bsconv_nas.space.places import Place

__all__ = ["KINDS", "Architecture", "At", "Dimension", "Population", "Table", "Value"]

Population = npt.NDArray[np.int64]
Value = str | float | int
At = Mapping[int, int] | Sequence[int]  # the chosen option of each dimension that matters
Kind = Literal["depth", "width", "expand", "kernel", "conv"]
TABULATED = 1 << 12  # cells, up to which canonical options are looked up
KINDS: tuple[Kind, ...] = ("depth", "width", "expand", "kernel", "conv")  # what each means depends on those before it


@dataclass(frozen=True, slots=True)
class Dimension:
    """One choice: its name, its options, and what they act on.

    Attributes:
        name: `conv.`, `block.`, `kernel.`, `expand.`, `width.` or `depth.` and what it is tied over.
        kind: `block.` dimensions are of kind "conv" as well: they choose the layers at a place.
        members: nodes ("conv", "kernel"), width groups ("width", "expand") or blocks ("depth").
        options: operators, forms, kernel sizes [pixels], multipliers, expansion ratios, or blocks kept.
        base: index of the option that the base has, or that is nearest to it.
        channels: of each member under each option; where it has a parent, under each pair of an option and one of the
            parent's (row by row).
        parents: of "expand": the width groups whose channels the ratios multiply.
    """

    name: str
    kind: Kind
    options: tuple[Value, ...]
    members: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...] = ()
    parents: tuple[int, ...] = ()
    base: int = 0

    def index_of(self, option: Value) -> int:
        """Return the index of `option`, or the base's where it is none of this dimension's."""
        return self.options.index(option) if option in self.options else self.base


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
    def kernel_dimension(self) -> dict[int, int]:
        """The dimension that chooses the kernel of a node; those with the base's kernel are absent."""
        return self._member_dimension("kernel")

    @cached_property
    def depth_dimension(self) -> dict[int, int]:
        """The dimension that may drop a block; blocks that always stay are absent."""
        return self._member_dimension("depth")

    @cached_property
    def group_dimensions(self) -> tuple[tuple[int, ...], ...]:
        """The dimensions that decide the channels of each group: none, a width, or a ratio and its parent's width."""
        own = self._member_dimension("width")
        found: dict[int, tuple[int, ...]] = {g: (d,) for g, d in own.items()}
        for d, dimension in enumerate(self.dimensions):
            if dimension.kind == "expand":
                parents = zip(dimension.members, dimension.parents, strict=True)
                found |= {g: (d, own[parent]) if parent in own else (d,) for g, parent in parents}
        return tuple(found.get(g, ()) for g in range(len(self.graph.groups)))

    @cached_property
    def group_channels(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Channels of each group, an array with one axis for each of its `group_dimensions`."""
        found = {m: d.channels[i] for d in self.dimensions if d.channels for i, m in enumerate(d.members)}
        shapes = [[len(self.dimensions[d].options) for d in scope] for scope in self.group_dimensions]
        groups = enumerate(zip(self.graph.groups, shapes, strict=True))
        return tuple(np.array(found.get(g, group.channels), dtype=np.int64).reshape(s) for g, (group, s) in groups)

    def channels(self, population: Population, group: int) -> npt.NDArray[np.int64]:
        """Return the channels of `group` in each network, shape (n,)."""
        chosen = tuple(population[:, d] for d in self.group_dimensions[group])
        return np.broadcast_to(self.group_channels[group][chosen], len(population))

    def channels_at(self, group: int, at: At) -> int:
        """Return the channels of `group` in one network."""
        return int(self.group_channels[group][tuple(at[d] for d in self.group_dimensions[group])])

    def alive(self, population: Population, block: int | None) -> npt.NDArray[np.bool_]:
        """Return whether `block` is kept in each network, shape (n,); what stands in no block always is."""
        dimension = None if block is None else self.depth_dimension.get(block)
        if block is None or dimension is None:
            return np.ones(len(population), dtype=np.bool_)
        kept = np.array(self.dimensions[dimension].options, dtype=np.int64)
        return kept[population[:, dimension]] > self.graph.blocks[block].position

    def is_alive(self, block: int | None, at: At) -> bool:
        """Return whether `block` is kept in one network."""
        dimension = None if block is None else self.depth_dimension.get(block)
        if block is None or dimension is None:
            return True
        return int(self.dimensions[dimension].options[at[dimension]]) > self.graph.blocks[block].position

    def place(self, node: int) -> Place:
        """Return the place that a node is."""
        place = self.graph.nodes[node].place
        assert place is not None
        return place

    def operator_at(self, node: int, at: At) -> str:
        """Return the option chosen at a place: its own where there is no choice."""
        dimension = self.conv_dimension.get(node)
        return self.place(node).own if dimension is None else str(self.dimensions[dimension].options[at[dimension]])

    def kernel_at(self, node: int, at: At) -> int | None:
        """Return the kernel size chosen at a place [pixels]; None stands for the base's."""
        dimension = self.kernel_dimension.get(node)
        return None if dimension is None else int(self.dimensions[dimension].options[at[dimension]])

    def plan_at(self, node: int, at: At) -> Plan:
        """Return the layers at a place of one network.

        Args:
            node: index of a node that is a place.
            at: the network's indices, or the chosen options of `place_dimensions` alone.
        """
        c_in, c_out = (self.channels_at(g, at) for g in (self.input_group(node), self.graph.nodes[node].group))
        return self.place(node).plan(self.operator_at(node, at), c_in, c_out, self.kernel_at(node, at))

    def place_dimensions(self, node: int) -> tuple[int, ...]:
        """Return the dimensions that decide the layers at a place: operator, kernel, the channels in and out."""
        groups = self.input_group(node), self.graph.nodes[node].group
        widths = itertools.chain.from_iterable(self.group_dimensions[g] for g in groups)
        found = (self.conv_dimension.get(node), self.kernel_dimension.get(node), *widths)
        return tuple(dict.fromkeys(d for d in found if d is not None))

    def input_group(self, node: int) -> int:
        """Return the width group that a node reads."""
        return self.graph.nodes[self.graph.nodes[node].inputs[0]].group

    def meaning_dimensions(self, node: int) -> tuple[int, ...]:
        """Return the dimensions that decide what the options at a place mean: those of what it reads, its kernel."""
        kernel = self.kernel_dimension.get(node)
        return *self.group_dimensions[self.input_group(node)], *(() if kernel is None else (kernel,))

    @cached_property
    def _meanings(self) -> dict[int, tuple[npt.NDArray[np.int64], dict[tuple[int, ...], list[str]]]]:
        """Per searched place: ids of what each option means over `meaning_dimensions`, and the texts."""
        found = {}
        for node, dimension in self.conv_dimension.items():
            scope = self.meaning_dimensions(node)
            shape = [len(self.dimensions[d].options) for d in scope]
            texts = {
                cell: self._texts(node, dimension, dict(zip(scope, cell, strict=True))) for cell in np.ndindex(*shape)
            }
            ids: dict[str, int] = {}
            rows = [[ids.setdefault(text, len(ids)) for text in row] for row in texts.values()]
            found[node] = np.array(rows).reshape(*shape, -1), texts
        return found

    def _texts(self, node: int, dimension: int, at: At) -> list[str]:
        c_in, kernel = self.channels_at(self.input_group(node), at), self.kernel_at(node, at)
        return [self.place(node).meaning(str(option), c_in, kernel) for option in self.dimensions[dimension].options]

    def meanings(self, population: Population, node: int) -> npt.NDArray[np.int64]:
        """Return ids of what the options mean at a searched place, shape (n, options): equal ids, equal layers."""
        ids = self._meanings[node][0]
        chosen = tuple(population[:, d] for d in self.meaning_dimensions(node))
        return np.broadcast_to(ids[chosen], (len(population), ids.shape[-1]))

    def home(self, index: int, member: int) -> int | None:
        """Return the block that a member of a dimension lives in."""
        of_groups = self.dimensions[index].kind in ("width", "expand")
        return self.graph.groups[member].block if of_groups else self.graph.nodes[member].block

    def _effects(self, population: Population, index: int, member: int) -> npt.NDArray[np.int64]:
        """Return ids of what each option of a dimension gives one member, (n, options): equal ids, same effect."""
        dimension = self.dimensions[index]
        if dimension.kind == "conv":
            return self.meanings(population, member)
        if dimension.kind in ("width", "expand"):
            scope = self.group_dimensions[member]
            channels = np.moveaxis(self.group_channels[member], scope.index(index), -1)
            effects = channels[tuple(population[:, d] for d in scope if d != index)]
        else:
            effects = np.arange(len(dimension.options))
        return np.broadcast_to(effects, (len(population), len(dimension.options)))

    def canonical(self, population: Population) -> Population:
        """Return the population with every row replaced by the canonical row of the same network.

        What lives only in dropped blocks, and options that mean the same at the chosen widths, become the first one.
        """
        out = np.array(population, dtype=np.int64)
        for kind in KINDS[1:]:
            for index in (i for i, dimension in enumerate(self.dimensions) if dimension.kind == kind):
                out[:, index] = self.canonical_option(out, index)
        return out

    def canonical_option(self, population: Population, index: int) -> npt.NDArray[np.int64]:
        """Return the first option of dimension `index` that gives the same network as the chosen one, shape (n,)."""
        scope, table = self._canonical_options[index]
        return self._first_alike(population, index) if table is None else table[tuple(population[:, d] for d in scope)]

    @cached_property
    def _canonical_options(self) -> list[tuple[tuple[int, ...], npt.NDArray[np.int64] | None]]:
        """Per dimension: those that decide its canonical option, and it as a table over them, where that is small."""
        found = []
        for index, dimension in enumerate(self.dimensions):
            scope = tuple(dict.fromkeys(d for m in dimension.members for d in self.deciding(index, m))) or (index,)
            sizes = self.sizes[list(scope)]
            table = None
            if math.prod(sizes.tolist()) <= TABULATED:
                rows = np.zeros((math.prod(sizes.tolist()), len(self.dimensions)), dtype=np.int64)
                rows[:, list(scope)] = list(np.ndindex(*sizes))
                table = self._first_alike(rows, index).reshape(sizes)
            found.append((scope, table))
        return found

    def _first_alike(self, population: Population, index: int) -> npt.NDArray[np.int64]:
        chosen, dimension = population[:, index], self.dimensions[index]
        if dimension.kind == "depth":
            return chosen.copy()
        same = np.ones((len(population), len(dimension.options)), dtype=np.bool_)
        for member in dimension.members:
            effects = self._effects(population, index, member)
            alike = effects == np.take_along_axis(effects, chosen[:, None], axis=1)
            same &= alike | ~self.alive(population, self.home(index, member))[:, None]
        return np.asarray(same.argmax(axis=1))

    def resolve(self, indices: Sequence[int]) -> dict[str, Value]:
        """Return what the network consists of: operator of each place, channels of each group, blocks of each stage.

        Names are those of the finest scope, and the base's own kernels are left out, so that ties, the order of
        options, masked choices and kernels that nobody asked for leave no trace.
        """
        out: dict[str, Value] = {}
        for part, scope, known in self._parts:
            cell = tuple([indices[d] for d in scope])
            if cell not in known:
                known[cell] = self._resolved(*part, dict(zip(scope, cell, strict=True)))
            out |= known[cell]
        return out

    @cached_property
    def _parts(self) -> list[tuple[tuple[int, int], tuple[int, ...], dict[tuple[int, ...], dict[str, Value]]]]:
        """Each dimension and member, the dimensions that decide what it is, and that as far as it was asked for."""
        return [
            ((index, member), self.deciding(index, member), {})
            for index, dimension in enumerate(self.dimensions)
            for member in (dimension.members if dimension.kind != "depth" else (0,))
        ]

    def deciding(self, index: int, member: int) -> tuple[int, ...]:
        """Return the dimensions that decide what a dimension gives one member."""
        kind, found = self.dimensions[index].kind, [index]
        if kind == "depth":
            return (index,)
        if kind == "conv":
            found += self.meaning_dimensions(member)
        elif kind in ("width", "expand"):
            found += self.group_dimensions[member]
        block = self.home(index, member)
        if block is not None and block in self.depth_dimension:
            found.append(self.depth_dimension[block])
        return tuple(dict.fromkeys(found))

    def _resolved(self, index: int, member: int, at: At) -> dict[str, Value]:
        dimension = self.dimensions[index]
        if dimension.kind == "depth":
            return {dimension.name: dimension.options[at[index]]}
        if not self.is_alive(self.home(index, member), at):
            return {}
        if dimension.kind in ("width", "expand"):
            return {f"width.{self.graph.groups[member].name}": self.channels_at(member, at)}
        path = self.graph.nodes[member].path
        if dimension.kind == "kernel":
            size = self.kernel_at(member, at)
            return {} if size is None or size == self.place(member).spec.kernel[0] else {f"kernel.{path}": size}
        meaning = self._meanings[member][1][tuple(at[d] for d in self.meaning_dimensions(member))][at[index]]
        return {f"{dimension.name.partition('.')[0]}.{path}": meaning}

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

    @property
    def base(self) -> Architecture:
        """The base network itself, or the one that is nearest to it."""
        return self.architecture([dimension.base for dimension in self.dimensions])

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
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Return the table that `to_json` wrote, also after a trip through a JSON file."""
        return cls(
            graph=Graph.from_json(data["graph"]),
            dimensions=tuple(Dimension(**tuples(row)) for row in data["dimensions"]),
            fixed=tuple(Fixed(**row) for row in data["fixed"]),
        )
