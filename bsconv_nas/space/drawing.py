"""Draws that are uniform over the distinct networks of a space whose costs lie inside bounds.

Networks are drawn with weights exp(-tilt * costs), the tilt being the one that makes networks at the bounds most likely
(Chernoff's), and accepted with the inverse of their weight: what is left is uniform, and about one in ten is left at
any upper bound, however rare. Bounds on memory, a maximum over steps, are factors like distinctness itself. Where a
band is so narrow that few draws hit it, many halves of networks are drawn that share what lies between them, and those
pairs are taken whose costs add up: n halves of each kind make n * n networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.space.counting import canonical_factors
from bsconv_nas.space.elimination import Elimination, Factor, Floats, Ints, Tilted
from bsconv_nas.space.factors import memory_factors, table_factor
from bsconv_nas.space.table import Population

__all__ = ["Bounds", "Box", "Drawing"]

Bounds = Mapping[str, tuple[float, float]]
SMALLEST, PLAIN, MATCHED = 1 << 8, 1 << 13, 1 << 17  # networks, and halves of networks, a batch
GROWTH = 4  # of batches
RARE = 64  # draws a hit, from where on halves are matched
PAIRS = 1 << 16
STEPS, HALVINGS = 40, 10  # of Newton's method
BISECTIONS = 10


@dataclass(frozen=True, slots=True)
class Box:
    """Bounds on the additive columns, widened by what left-out factors may add, and the tilt towards them.

    Bounds are of shape (columns,), or (columns, n) where each draw has its own.
    """

    low: Floats
    high: Floats
    tilted: Tilted

    def excess(self, costs: Floats) -> Floats:
        """Return the log of the chance with which a draw with these costs is kept, shape (n,); -inf outside."""
        tilt = self.tilted.tilt
        on = np.flatnonzero(tilt)
        low, high = (limit.reshape(len(tilt), -1) for limit in (self.low, self.high))
        edge = np.where(tilt[:, None] > 0, high, low)
        logs = (tilt[on, None] * (costs[on] - edge[on])).sum(axis=0)
        slack = 1e-9 * np.abs(costs)
        inside = ((costs >= low - slack) & (costs <= high + slack)).all(axis=0)
        return np.where(inside, logs, -np.inf)

    @property
    def log_count(self) -> float:
        """An upper bound of the log of the number of networks inside."""
        tilt = self.tilted.tilt
        on = np.flatnonzero(tilt)
        return self.tilted.log_total + float(tilt[on] @ np.where(tilt > 0, self.high, self.low)[on])


class Drawing:
    """Uniform draws from a space, under bounds on memory that are part of it.

    Args:
        model: the space and its costs.
        memory: the least and the greatest memory [bytes].
    """

    def __init__(self, model: CostModel, memory: tuple[float, float] = (0, math.inf)) -> None:
        self.table, self._columns = model.table, model.additive
        distinct = [
            table_factor(("distinct", index), scope, counts > 0)
            for index in range(len(self.table.dimensions))
            for scope, counts in canonical_factors(self.table, index)
        ]
        costs = [_cost_factor(i, *pair) for i, pair in enumerate(model.tables())]
        factors = [*distinct, *costs, *memory_factors(model, *memory)]
        self.elimination = Elimination(factors, len(self._columns))
        left = [f.costs.reshape(len(self._columns), -1) for f in costs if f.owner not in self.elimination.kept]
        self._left_out = (
            sum((c.min(axis=1) for c in left), start=np.zeros(len(self._columns))),
            sum((c.max(axis=1) for c in left), start=np.zeros(len(self._columns))),
        )
        self._exact = all(f.owner in self.elimination.kept for f in distinct)

    def range_of(self, column: str, bounds: Bounds) -> tuple[float, float]:
        """Return the least and the most of an additive column that networks inside the bounds can have.

        Where other columns are bounded too these are ends beyond which no network lies, and about where they begin.
        """
        i = self._columns.index(column)
        low, high = bounds.get(column, (0.0, math.inf))
        least, most = (end[i] + left[i] for end, left in zip(self.elimination.bounds(), self._left_out, strict=True))
        ends = max(low, float(least)), min(high, float(most))
        if not set(bounds) & ({*self._columns} - {column}):
            return ends
        return self._end(column, bounds, *ends), self._end(column, bounds, *ends[::-1])

    def end(self, column: str, is_most: bool) -> Population:
        """Return the network with the least or the most of an additive column, as far as no cost is left out, (D,)."""
        row: Population = self._rows(self.elimination.end(self._columns.index(column), is_most))[0]
        return row

    def _end(self, column: str, bounds: Bounds, end: float, other: float) -> float:
        """Return how near to `end` a column can come, by bisection of its logarithm."""
        near, far = (math.log(max(value, 1)) for value in (end, other))
        tilt = self.aimed(bounds).tilted.tilt
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            part = min(end, math.exp(middle)), max(end, math.exp(middle))
            box = self.aimed({**bounds, column: part}, tilt)
            if box.log_count < 0:
                near = middle
            else:
                far, tilt = middle, box.tilted.tilt
        return math.exp(near)

    def limits(self, bounds: Bounds) -> tuple[Floats, Floats]:
        """Return the bounds of the additive columns as arrays, each of shape (columns,)."""
        pairs = np.array([bounds.get(column, (0.0, np.inf)) for column in self._columns], dtype=np.float64)
        return pairs[:, 0] - self._left_out[1], pairs[:, 1] - self._left_out[0]

    def aimed(self, bounds: Bounds, start: Floats | None = None) -> Box:
        """Return the bounds with the tilt that makes them most likely, by Newton's method from the tilt `start`."""
        low, high = self.limits(bounds)
        least, most = self.elimination.bounds()
        low = np.where(low <= least, -np.inf, low)
        high = np.where(high >= most, np.inf, high)
        tilt = np.zeros(len(self._columns)) if start is None else start
        tilt = np.where(np.isfinite(np.where(tilt > 0, high, low)), tilt, 0.0)
        box = Box(low, high, self.elimination.tilted(tilt))
        for _ in range(STEPS):
            step = None if box.log_count < -1 else self._step(box)
            nearer = None if step is None else self._moved(box, step)
            if nearer is None:
                break
            box = nearer
        return box

    def _step(self, box: Box) -> Floats | None:
        """Return the change of the tilt that brings the mean costs to the bounds that are pressed; None if they are."""
        tilt = box.tilted.tilt
        mean, spread = self.elimination.moments(box.tilted)
        gap = mean - np.where(tilt > 0, box.high, np.where(tilt < 0, box.low, np.clip(mean, box.low, box.high)))
        deviation = np.sqrt(np.maximum(np.diag(spread), 1e-12))
        pressed = np.flatnonzero((tilt != 0) | (gap != 0))
        if (np.abs(gap) <= 0.1 * deviation)[pressed].all():
            return None
        scaled, gaps = spread / np.outer(deviation, deviation) + 1e-6 * np.eye(len(gap)), gap / deviation
        while True:
            direction = np.zeros(len(gap))
            direction[pressed] = np.linalg.solve(scaled[np.ix_(pressed, pressed)], gaps[pressed])
            against = (tilt == 0) & (direction * gap < 0)  # what the tilt of another column keeps
            if not against.any():
                return np.asarray(direction * min(1.0, 2.0 / np.abs(direction).max()) / deviation)
            pressed = np.setdiff1d(pressed, np.flatnonzero(against))

    def _moved(self, box: Box, step: Floats) -> Box | None:
        """Return the box with its tilt changed by a step, halved until fewer networks may be inside; None if never."""
        tilt = box.tilted.tilt
        for _ in range(HALVINGS):
            changed = np.where((tilt + step) * tilt < 0, 0.0, tilt + step)
            nearer = replace(box, tilted=self.elimination.tilted(changed))
            if nearer.log_count < box.log_count:
                return nearer
            step = step / 2
        return None

    def listed(self, bounds: Bounds, limit: int) -> Population | None:
        """Return what may be inside the bounds, canonical, shape (n, D); None where that is more than `limit`."""
        values = self.elimination.listed(*self.limits(bounds), limit)
        return None if values is None else self._rows(values)

    def batches(self, box: Box, n: int, rng: np.random.Generator) -> Iterator[Population]:
        """Yield batches of canonical networks inside a box, each uniform and with repetition, shape (n', D).

        Batches start at what `n` networks need at a hit in eight draws, and grow.
        """
        size = min(max(SMALLEST, 8 * n), PLAIN)
        matched = False
        while box.log_count > -1e-6:  # else it is empty
            rows = self._rows(self._matched(box, size, rng) if matched else self._plain(box, size, rng))
            yield rows
            if matched or len(rows) * RARE >= size or self._cut is None:
                size = min(GROWTH * size, MATCHED if matched else PLAIN)
            else:
                matched = True

    def strewn(
        self, bounds: Bounds, edges: tuple[str, Floats], tilt: Floats, n: int, rng: np.random.Generator
    ) -> Population:
        """Return what is left of `n` tilted draws: canonical networks, uniform between any edge and the next.

        Args:
            bounds: of all columns.
            edges: an additive column, and rising values of it.
            tilt: how the draws are weighted.
            n: how many draws.
            rng: the source of randomness.
        """
        column, values = self._columns.index(edges[0]), np.zeros((len(self.elimination.variables), n), dtype=np.int64)
        tilted = self.elimination.tilted(tilt)
        costs = self.elimination.draw(tilted, values, range(len(values)), rng)
        own = costs[column] + self.elimination.constant[column]
        part = np.clip(np.searchsorted(edges[1], own, side="right"), 1, len(edges[1]) - 1)
        low, high = (np.repeat(limit[:, None], n, axis=1) for limit in self.limits(bounds))
        low[column] = np.maximum(low[column], edges[1][part - 1])
        high[column] = np.minimum(high[column], edges[1][part])
        return self._rows(values[:, self._kept(Box(low, high, tilted), costs, rng)])

    @property
    def whole(self) -> bool:
        """Whether no cost is left out of the sums."""
        return not any(left.any() for left in self._left_out)

    def _rows(self, values: Ints) -> Population:
        """Return the canonical networks of values by rank, shape (n, D)."""
        rows = np.zeros((values.shape[1], len(self.table.dimensions)), dtype=np.int64)
        for (dimension, place), value in zip(self.elimination.variables, values, strict=True):
            if place == 0 and dimension < rows.shape[1]:
                rows[:, dimension] = value
        return rows if self._exact else rows[(self.table.canonical(rows) == rows).all(axis=1)]

    def _plain(self, box: Box, n: int, rng: np.random.Generator) -> Ints:
        values = np.zeros((len(self.elimination.variables), n), dtype=np.int64)
        costs = self.elimination.draw(box.tilted, values, range(len(values)), rng)
        return values[:, self._kept(box, costs, rng)]

    def _kept(self, box: Box, costs: Floats, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        chance = box.excess(costs + self.elimination.constant[:, None])
        return np.asarray(-rng.exponential(size=costs.shape[1]) < chance)

    @cached_property
    def _cut(self) -> int | None:
        """The rank that parts networks into halves with much choice each and few states between them."""
        free = self.elimination.tilted(np.zeros(len(self._columns)))
        gains = []
        for cut in range(1, len(self.elimination.variables)):
            frontier = self.elimination.frontier(cut)
            states = math.prod(self.elimination.sizes(frontier))
            below = sum(float(free.messages[rank].max()) for rank in self.elimination.tops(cut))
            lower = min(math.log(MATCHED / states) if states < MATCHED else 0.0, below)
            gains.append((lower + min(math.log(MATCHED), free.log_total - below), -cut))
        return -max(gains)[1] if gains else None

    def _matched(self, box: Box, n: int, rng: np.random.Generator) -> Ints:
        """Return networks made of drawn halves, kept as single draws are."""
        cut, total = self._cut, len(self.elimination.variables)
        assert cut is not None
        upper = np.zeros((total, n), dtype=np.int64)
        above = self.elimination.draw(box.tilted, upper, range(cut, total), rng)
        frontier = self.elimination.frontier(cut)
        cells = (
            np.ravel_multi_index(tuple(upper[list(frontier)]), self.elimination.sizes(frontier))
            if frontier
            else np.zeros(n, dtype=np.int64)
        )
        _, first, state = np.unique(cells, return_index=True, return_inverse=True)
        each = -(-n // len(first))  # as many for every state, so that a pair's chance is that of its network
        lower = np.repeat(upper[:, first], each, axis=1)
        below = self.elimination.draw(box.tilted, lower, range(cut), rng)
        a, b = self._pairs(box, (above, state), (below, np.repeat(np.arange(len(first)), each)), rng)
        kept = self._kept(box, above[:, a] + below[:, b], rng)
        values = upper[:, a[kept]]
        values[:cut] = lower[:cut, b[kept]]
        return values

    def _pairs(
        self, box: Box, upper: tuple[Floats, Ints], lower: tuple[Floats, Ints], rng: np.random.Generator
    ) -> tuple[Ints, Ints]:
        """Return indices of halves in one state whose costs add up to the narrowest band; of many a random part."""
        (above, state), (below, group) = upper, lower
        least, most = self.elimination.bounds()
        widths = (np.minimum(box.high, most) - np.maximum(box.low, least)) / np.maximum(most - least, 1)
        i = int(np.argmin(widths))
        offset = below[i].min()
        reach = float(below[i].max() - offset)
        keys = group * (reach + 4) + below[i] - offset
        order = np.argsort(keys, kind="stable")
        slack = 1e-9 * most[i]
        wanted = [
            edge - above[i] - self.elimination.constant[i] - offset
            for edge in (box.low[i] - slack, box.high[i] + slack)
        ]
        left, right = (np.searchsorted(keys[order], state * (reach + 4) + np.clip(w, -1, reach + 1)) for w in wanted)
        ends = np.cumsum(right - left)
        count = int(ends[-1])
        chosen = rng.permutation(count) if count <= PAIRS else rng.integers(0, count, PAIRS)
        a = np.searchsorted(ends, chosen, side="right")
        return a, order[right[a] - (ends[a] - chosen)]


def _cost_factor(index: int, dimensions: tuple[int, ...], table: Ints) -> Factor:
    costs = np.moveaxis(table, -1, 0).astype(np.float64)
    return table_factor(
        ("cost", index), tuple((d, 0) for d in dimensions), np.ones(table.shape[:-1], dtype=np.bool_), costs
    )
