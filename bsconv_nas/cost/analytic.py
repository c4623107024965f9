"""MACs, parameters and activation memory of whole populations, without torch and before anything is built.

Each column is a sum of factors: a factor is a table over the few dimensions that one layer depends on, and its value
for a population is one gather. Memory is a maximum over the steps of the graph of what is live there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

import numpy as np
import numpy.typing as npt

from bsconv_nas.decompositions import plan_macs, plan_parameters, primitive_shapes
from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.space.graph import Node
from bsconv_nas.space.table import Architecture, At, Population, Table

__all__ = ["ADDITIVE", "ALL_COLUMNS", "COLUMNS", "LATENCY", "CostModel", "Costs", "NodeLatency", "node_dimensions"]

COLUMNS = ("macs", "params", "memory")  # of every space
ADDITIVE = ("macs", "params")  # sums of tables; memory is a maximum
LATENCY = "latency_ns"  # of a space with a table of measured latencies: a sum of tables as well
ALL_COLUMNS = (*COLUMNS, LATENCY)
BYTES = 4  # fp32
Ints = npt.NDArray[np.int64]
NodeLatency = Callable[[int, At], int]  # of a node under the options of `place_dimensions` and of its width [ns]


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of one network: multiply-adds of conv and linear layers at batch 1, parameters, bytes of live tensors.

    The predicted latency [ns] is None where the space has no table of measured ones.
    """

    macs: int
    params: int
    memory: int
    latency_ns: int | None = None

    def known(self) -> dict[str, int]:
        """Return the costs by column, without those that are not known."""
        found = {column: getattr(self, column) for column in ALL_COLUMNS}
        return {column: value for column, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Factor:
    """A table over some dimensions, flattened; `strides` are those of its row-major order."""

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    table: npt.NDArray[np.int64]

    def index(self, columns: Ints) -> Ints | int:
        """Return the flat index of each network; `columns` is the population transposed, (D, n)."""
        return sum(
            (columns[d] * s if s > 1 else columns[d] for d, s in zip(self.dimensions, self.strides, strict=True)),
            start=np.zeros((), dtype=np.int64),
        )


def _merge(factors: Iterable[tuple[tuple[int, ...], Ints]]) -> list[_Factor]:
    """Add up the tables over equal dimensions, and those over a subset into one that has them all."""
    by_dimensions: dict[tuple[int, ...], Ints] = {}
    for dimensions, table in factors:
        known = by_dimensions.get(dimensions)
        by_dimensions[dimensions] = table if known is None else known + table
    merged: dict[tuple[int, ...], Ints] = {}
    for dimensions in sorted(by_dimensions, key=len, reverse=True):
        table = by_dimensions[dimensions]
        host = next((h for h in merged if set(dimensions) <= set(h)), None)
        if host is None:
            merged[dimensions] = table
        else:
            merged[host] = merged[host] + _spread(table, dimensions, host)
    return [_flat(dimensions, table) for dimensions, table in merged.items()]


def _spread(table: Ints, dimensions: tuple[int, ...], host: tuple[int, ...]) -> Ints:
    """Return a view of `table` that broadcasts over the axes of `host`; the last axis holds the columns."""
    order = [dimensions.index(d) for d in host if d in dimensions]
    shape = [table.shape[dimensions.index(d)] if d in dimensions else 1 for d in host]
    return np.transpose(table, (*order, len(dimensions))).reshape(*shape, table.shape[-1])


def _flat(dimensions: tuple[int, ...], table: Ints) -> _Factor:
    sizes = table.shape[:-1]
    strides = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
    return _Factor(dimensions, strides, np.ascontiguousarray(table.reshape(-1, table.shape[-1])))


@dataclass(frozen=True, slots=True)
class _Step:
    """A moment of the graph's execution: what is live beside the running node, and the node's own need.

    `others` is the number of values per channel of each width group that stays live; `own` the node's peak.
    """

    others: npt.NDArray[np.float64]
    block: int | None
    own: _Factor | None


class CostModel:
    """Costs of the networks of a table.

    Args:
        table: the space.
        latency: of a node; the column `LATENCY` is their sum.

    Attributes:
        columns: what a network costs, in order.
        additive: those of them that are sums of tables.

    >>> import numpy as np, torchvision
    >>> from bsconv_nas.space.trace import trace
    >>> from bsconv_nas.space.dimensions import make_table
    >>> from bsconv_nas.space.files import Choices
    >>> table = make_table(trace(torchvision.models.resnet18(), (3, 224, 224)), Choices(operators=["regular"]))
    >>> model = CostModel(table)
    >>> int(model.costs(table.sizes[None] - 1)["params"][0])
    11689512
    """

    def __init__(self, table: Table, latency: NodeLatency | None = None) -> None:
        self.table = table
        self._latency = latency
        measured = () if latency is None else (LATENCY,)
        self.columns, self.additive = (*COLUMNS, *measured), (*ADDITIVE, *measured)
        self._additive = _merge(self._additive_factors())

    def costs(self, population: Population, columns: Sequence[str] | None = None) -> dict[str, Ints]:
        """Return the asked columns of each network: counts, memory [bytes] and latency [ns], each of shape (n,).

        Args:
            population: indices, shape (n, D).
            columns: which of `columns`; all without it.
        """
        columns = self.columns if columns is None else columns
        if unknown := set(columns) - set(self.columns):
            raise SpaceError(f"Unknown cost column {min(unknown)!r}: {suggest(min(unknown), self.columns)}.")
        by_dimension = np.ascontiguousarray(np.asarray(population, dtype=np.int64).T)
        out: dict[str, Ints] = {}
        if not set(columns).isdisjoint(self.additive):
            total = np.zeros((len(population), len(self.additive)), dtype=np.int64)
            for factor in self._additive:
                total += factor.table.take(factor.index(by_dimension), axis=0)
            out = dict(zip(self.additive, total.T, strict=True))
        if "memory" in columns:
            out["memory"] = self._memory(population, by_dimension)
        return {column: out[column] for column in columns}

    def cost(self, architecture: Architecture) -> Costs:
        """Return the costs of one network."""
        costs = self.costs(np.array([architecture.indices]))
        return Costs(*(int(costs[column][0]) for column in self.columns))

    def shares(self, column: str, row: Population) -> list[tuple[str, int]]:
        """Return what each layer of one network contributes to a column, largest first; for memory the largest tensors.

        Args:
            column: one of `columns`.
            row: the network's indices, shape (D,).
        """
        at = row.tolist()
        found = []
        for index, node in enumerate(self.table.graph.nodes):
            if column == "memory":
                value = BYTES * self.table.channels_at(node.group, at) * node.pixels
            else:
                value = self._node_costs(index, at)[self.additive.index(column)]
            if self.table.is_alive(node.block, at):
                found.append((node.path or node.name, value))
        return sorted(found, key=lambda pair: -pair[1])

    def tables(self) -> Iterable[tuple[tuple[int, ...], Ints]]:
        """Yield the tables that the `additive` columns are sums of: over which dimensions, and (*options, columns)."""
        for factor in self._additive:
            sizes = [len(self.table.dimensions[d].options) for d in factor.dimensions]
            yield factor.dimensions, factor.table.reshape(*sizes, len(self.additive))

    def _tabulate(
        self, index: int, groups: Sequence[int], cost: Callable[[At], Sequence[int]]
    ) -> tuple[tuple[int, ...], Ints]:
        """Return `cost(chosen options)` over the dimensions of a node, zero where it is dropped.

        Args:
            index: the node.
            groups: the width groups whose channels `cost` depends on, beside those of a place.
            cost: several values, the table's last axis.
        """
        node = self.table.graph.nodes[index]
        dimensions = node_dimensions(self.table, index, groups)
        shape = [len(self.table.dimensions[d].options) for d in dimensions]
        cells = []
        for cell in np.ndindex(*shape):
            at = dict(zip(dimensions, cell, strict=True))
            alive = self.table.is_alive(node.block, at)
            cells.append([value if alive else 0 for value in cost(at)])
        return dimensions, np.array(cells, dtype=np.int64).reshape(*shape, -1)

    def _additive_factors(self) -> Iterable[tuple[tuple[int, ...], Ints]]:
        """Yield the additive costs of every node as tables."""
        for index, node in enumerate(self.table.graph.nodes):
            yield self._tabulate(index, self._groups_of(index, node), partial(self._node_costs, index))

    def _groups_of(self, index: int, node: Node) -> list[int]:
        return [*([self.table.input_group(index)] if node.is_layer else []), node.group]

    def _size(self, node: Node) -> tuple[int, ...]:
        """Return the size (H, W) that a convolution reads, or the values per channel that a linear layer reads."""
        if not (node.is_layer or node.place):
            return ()
        before = self.table.graph.nodes[node.inputs[0]]
        return before.shape[1:] if node.place else (before.features,)

    def _node_costs(self, index: int, at: At) -> tuple[int, ...]:
        """Return the additive costs of one node."""
        measured = () if self._latency is None else (self._latency(index, at),)
        return *self._node_counts(index, at), *measured

    def _node_counts(self, index: int, at: At) -> tuple[int, int]:
        """Return MACs and parameters of one node; weights of a shared layer count at its first call."""
        node, size = self.table.graph.nodes[index], self._size(self.table.graph.nodes[index])
        width = self.table.channels_at(node.group, at)
        if node.place is not None:
            primitives = self.table.plan_at(index, at)
            macs, params = plan_macs(primitives, (size[0], size[1])), plan_parameters(primitives)
        elif node.bias is not None:
            macs = self.table.channels_at(self.table.input_group(index), at) * size[0] * width
            params = macs + width * node.bias
        else:
            macs, params = 0, node.params_per_channel * width
        return macs + node.macs, node.params + (0 if node.shared else params)

    # Memory: what is live at each step.

    def peaks(self, population: Population) -> npt.NDArray[np.float64]:
        """Return the values that are live at each step of the graph, shape (n, steps); memory is their maximum."""
        return self._peaks(population, np.ascontiguousarray(np.asarray(population, dtype=np.int64).T))

    @cached_property
    def peak_dimensions(self) -> tuple[frozenset[int], ...]:
        """The dimensions that decide what is live at each step of `peaks`."""
        found = []
        for step in self._steps:
            groups = chain.from_iterable(self.table.group_dimensions[g] for g in np.flatnonzero(step.others))
            depth = None if step.block is None else self.table.depth_dimension.get(step.block)
            own = () if step.own is None else step.own.dimensions
            found.append(frozenset([*groups, *own, *([] if depth is None else [depth])]))
        return tuple(found)

    def _memory(self, population: Population, by_dimension: Ints) -> Ints:
        peaks: npt.NDArray[np.float64] = self._peaks(population, by_dimension).max(axis=1)
        return BYTES * peaks.astype(np.int64)

    def _peaks(self, population: Population, by_dimension: Ints) -> npt.NDArray[np.float64]:
        groups = range(len(self.table.graph.groups))
        channels = np.stack([self.table.channels(population, g) for g in groups], axis=1)
        live = channels.astype(np.float64) @ self._others.T
        for i, step in enumerate(self._steps):
            if step.own is not None:
                live[:, i] += step.own.table[:, 0].take(step.own.index(by_dimension))
            if step.block is not None:
                live[:, i] *= self.table.alive(population, step.block)
        return live

    @cached_property
    def _others(self) -> npt.NDArray[np.float64]:
        return np.stack([step.others for step in self._steps])

    @cached_property
    def _steps(self) -> list[_Step]:
        """Return the steps that can be the peak: of equal ones in a stage the first, none that another contains."""
        kept: list[_Step] = []
        for step in self._all_steps():
            if not any(_contains(other, step, self.table) for other in kept):
                kept = [other for other in kept if not _contains(step, other, self.table)]
                kept.append(step)
        return kept

    def _all_steps(self) -> Iterable[_Step]:
        nodes = self.table.graph.nodes
        storage = _storages(nodes)
        last = {storage[source]: i for i, node in enumerate(nodes) for source in node.inputs}
        last[storage[len(nodes) - 1]] = len(nodes)
        trained = {storage[i] for i, node in enumerate(nodes) if node.op == "get_attr"}
        live: set[int] = set()
        for i, node in enumerate(nodes):
            reads = {storage[source] for source in node.inputs} - trained
            if node.place is not None and node.alias is None:
                dying = {s for s in reads if last[s] == i}
                yield _Step(self._values(live - dying), node.block, self._peak(i, node, dying))
            live |= {storage[i]} - trained
            if node.place is None:
                yield _Step(self._values(live), node.block, None)
            live = {s for s in live if last.get(s, -1) > i}

    def _values(self, storages: set[int]) -> npt.NDArray[np.float64]:
        out = np.zeros(len(self.table.graph.groups))
        for storage in storages:
            node = self.table.graph.nodes[storage]
            out[node.group] += node.pixels
        return out

    def _peak(self, index: int, node: Node, dying: set[int]) -> _Factor:
        """Return the peak inside a place: its input, if it dies here, and its primitives' outputs in turn."""
        size = self._size(node)
        entering = [self.table.graph.nodes[s] for s in dying]

        def peak(at: At) -> list[int]:
            held = sum(self.table.channels_at(before.group, at) * before.pixels for before in entering)
            shapes = primitive_shapes(self.table.plan_at(index, at), (size[0], size[1]))
            written = [math.prod(shape) for shape in shapes]
            return [max(a + b for a, b in zip([held, *written], written, strict=False))]

        return _flat(*self._tabulate(index, [before.group for before in entering], peak))


def node_dimensions(table: Table, index: int, groups: Iterable[int]) -> tuple[int, ...]:
    """Return the dimensions that a node's cost depends on, without repetition; `groups` are those of its channels."""
    node = table.graph.nodes[index]
    depth = None if node.block is None else table.depth_dimension.get(node.block)
    own = table.place_dimensions(index) if node.place else ()
    widths = chain.from_iterable(table.group_dimensions[g] for g in groups)
    return tuple(dict.fromkeys([*own, *widths, *([] if depth is None else [depth])]))


def _storages(nodes: Sequence[Node]) -> list[int]:
    """Return for each node the node whose memory it writes to: its own, or another's for views and in-place work."""
    return [i if node.alias is None else node.alias for i, node in enumerate(nodes)]


def _contains(outer: _Step, inner: _Step, table: Table) -> bool:
    """Whether `outer` needs at least what `inner` does in every network."""
    return (
        (inner.own is None or inner.own is outer.own)
        and bool((outer.others >= inner.others).all())
        and _outlives(table, outer.block, inner.block)
    )


def _outlives(table: Table, outer: int | None, inner: int | None) -> bool:
    """Whether `outer` is kept in every network that keeps `inner`."""
    if outer is None or outer == inner or outer not in table.depth_dimension:
        return True
    if inner is None:
        return False
    a, b = table.graph.blocks[outer], table.graph.blocks[inner]
    return table.depth_dimension.get(inner) == table.depth_dimension[outer] and a.position <= b.position
