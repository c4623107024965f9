"""How the options of a space act on its costs: few hubs on which many depend, and units that act apart given those.

Two dimensions interact where one layer's cost depends on both. Without its hubs, mostly widths and depths, a space
falls into units of one or two dimensions, so that the additive costs of a network are those of its hubs plus a sum over
units, and its memory is the greatest of theirs: changes of several units are weighed by adding up tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.space.elimination import Floats, Ints
from bsconv_nas.space.factors import peak_tables
from bsconv_nas.space.table import Population

__all__ = ["Moves"]

UNIT = 2  # dimensions of a unit, at most


Tables = Iterable[tuple[tuple[int, ...], Floats]]  # dimensions, and (columns, *options)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One table of each unit, and where rows and moves point in them; a unit without one points at a cell of zeros."""

    strides: Ints  # (D, units)
    offsets: Ints  # (moves,)

    def cells(self, rows: Population, unit: Ints) -> Ints:
        """Return the cells of each move in each row, shape (n, moves)."""
        return np.asarray((rows @ self.strides)[:, unit] + self.offsets)


@dataclass(frozen=True, slots=True)
class _Stack:
    """Tables over hubs and one unit each, end to end, as layers of one for each unit."""

    layers: list[_Layer]
    table: Floats  # (columns, cells)


class Moves:
    """The hubs and units of a space; a move gives a unit one row of its options, and the last one does nothing.

    Args:
        model: the space and its costs.
        columns: which of the model's additive ones are asked for; all without it.
        memory: whether what is live is asked for.

    Attributes:
        hubs: dimensions on which the costs of several units depend.
        unit: of each move, shape (moves,).
        none: the move that does nothing, in a unit of its own.
        starts: the first move of each unit.
    """

    def __init__(self, model: CostModel, columns: Sequence[str] | None = None, memory: bool = False) -> None:
        sizes = model.table.sizes
        columns = model.additive if columns is None else columns
        chosen = [model.additive.index(column) for column in columns]
        tables = [(dimensions, np.moveaxis(t, -1, 0)[chosen].astype(np.float64)) for dimensions, t in model.tables()]
        self.hubs, self._units = _parted([dimensions for dimensions, _ in tables], sizes)
        self._grids = [np.array(list(itertools.product(*(range(sizes[d]) for d in unit)))) for unit in self._units]
        self.unit = np.repeat(np.arange(len(self._units) + 1), [*map(len, self._grids), 1])
        self.none = len(self.unit) - 1
        self.starts = np.flatnonzero(np.diff(self.unit, prepend=-1))
        self._patches = np.full((len(self.unit), len(sizes)), -1)
        self._own = np.zeros((len(sizes), len(self._units) + 1), dtype=np.int64)
        for i, (unit, grid) in enumerate(zip(self._units, self._grids, strict=True)):
            self._patches[np.ix_(self.unit == i, unit)] = grid
            self._own[list(unit), i] = _strides(sizes[list(unit)])
        self._costs = self._stacked(tables, len(columns))
        peaks = [(dimensions, p[None]) for dimensions, p in peak_tables(model) if p is not None] if memory else []
        self._peaks = self._stacked(peaks, 1)
        self._floors = self._least(peaks)

    def _touched(self, dimensions: Iterable[int]) -> list[int]:
        return [i for i, unit in enumerate(self._units) if not set(unit).isdisjoint(dimensions)]

    def _stacked(self, tables: Tables, columns: int) -> _Stack:
        """Return the tables of each unit; those of two, which only memory has, are left out."""
        flat, end, depth = [np.zeros((columns, 1))], 1, [0] * len(self._units)
        layers: list[_Layer] = []
        for dimensions, table in tables:
            if len(touched := self._touched(dimensions)) != 1:
                continue
            i = touched[0]
            if depth[i] == len(layers):
                layers.append(_Layer(np.zeros_like(self._own), np.zeros_like(self.unit)))
            layer, strides = layers[depth[i]], dict(zip(dimensions, _strides(table.shape[1:]), strict=True))
            for dimension, stride in strides.items():
                if dimension not in self._units[i]:
                    layer.strides[dimension, i] = stride
            inner = np.array([strides.get(d, 0) for d in self._units[i]])
            layer.offsets[self.unit == i] = end + self._grids[i] @ inner
            depth[i] += 1
            end += math.prod(table.shape[1:])
            flat.append(table.reshape(columns, -1))
        return _Stack(layers, np.concatenate(flat, axis=1))

    def _least(self, tables: Tables) -> list[tuple[list[int], Ints, Floats]]:
        """Return the least that units can make of tables: over which hubs, the strides and the flat table."""
        found: dict[tuple[int, ...], Floats] = {}
        for dimensions, table in tables:
            axes = tuple(i + 1 for i, d in enumerate(dimensions) if d not in self.hubs)
            scope = tuple(d for d in dimensions if d in self.hubs)
            least = table.min(axis=axes)[0]
            found[scope] = np.maximum(found.get(scope, least), least)
        return [(list(scope), _strides(table.shape), table.ravel()) for scope, table in found.items()]

    def own(self, rows: Population) -> Ints:
        """Return the move of each unit that leaves a row as it is, shape (n, units)."""
        return np.asarray(rows @ self._own + self.starts)

    def changes(self, start: Population) -> Ints:
        """Return in how many dimensions each move differs from a row, shape (moves,)."""
        return np.asarray(((self._patches >= 0) & (self._patches != start)).sum(axis=1))

    def deltas(self, rows: Population, own: Ints) -> Floats:
        """Return what each move adds to the costs of each row, shape (columns, n, moves), given `own` moves."""
        out = np.zeros((len(self._costs.table), len(rows), len(self.unit)))
        for layer in self._costs.layers:
            out += self._costs.table.take(layer.cells(rows, self.unit), axis=1)
        out -= np.take_along_axis(out, own[None], axis=2)[:, :, self.unit]
        return out

    def peaks(self, rows: Population) -> Floats:
        """Return how much is live, after each move, at the steps that its unit decides, shape (n, moves) [bytes]."""
        out = np.zeros((len(rows), len(self.unit)))
        for layer in self._peaks.layers:
            np.maximum(out, self._peaks.table[0].take(layer.cells(rows, self.unit)), out=out)
        return out

    def floor(self, rows: Population) -> Floats:
        """Return what is live at least, whatever the units are, shape (n,) [bytes]."""
        out = np.zeros(len(rows))
        for hubs, strides, table in self._floors:
            np.maximum(out, table.take(rows[:, hubs] @ strides), out=out)
        return out

    def moved(self, rows: Population, chosen: Ints) -> Population:
        """Return each row after several moves of different units at once; of one row all, shape (n, D).

        Args:
            rows: shape (n, D) or (1, D).
            chosen: moves, shape (n, k).
        """
        out = np.broadcast_to(rows, (len(chosen), rows.shape[1]))
        for moves in chosen.T:
            patch = self._patches[moves]
            out = np.where(patch >= 0, patch, out)
        return out


def _strides(sizes: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the strides of a table in row-major order."""
    return np.array([math.prod(map(int, sizes[i + 1 :])) for i in range(len(sizes))], dtype=np.int64)


def _parted(
    scopes: Iterable[tuple[int, ...]], sizes: npt.NDArray[np.int64]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the hubs, and the units that are left without them: what interacts with most is taken away first."""
    near: dict[int, set[int]] = {int(d): set() for d in np.flatnonzero(sizes > 1)}
    for scope in scopes:
        varied = {d for d in scope if sizes[d] > 1}
        for d in varied:
            near[d] |= varied - {d}
    hubs, units = list[int](), list[tuple[int, ...]]()
    pending = list(_components(near, set(near)))
    while pending:
        part = pending.pop()
        if len(part) <= UNIT:
            units.append(tuple(sorted(part)))
        else:
            hub = max(sorted(part), key=lambda d: len(near[d] & part))
            hubs.append(hub)
            pending += _components(near, part - {hub})
    return tuple(sorted(hubs)), tuple(sorted(units))


def _components(near: dict[int, set[int]], left: set[int]) -> Iterator[set[int]]:
    """Yield the parts of some dimensions between which nothing interacts."""
    while left:
        found: set[int] = set()
        stack = [min(left)]
        while stack:
            found.add(d := stack.pop())
            stack += near[d] & (left - found)
        left = left - found
        yield found
