"""The network inside a budget fewest changes away from a row: changes of hubs are tried, those of units matched.

A set of changes is one of hubs, of which there are few, and one of units, whose costs add up (see `moves`). Pairs of
moves are sorted by what they add to the costs, so that those which go with a move or with another pair into a band are
found by bisection: every triple and quadruple is weighed without being made (Horowitz and Sahni, 1974). Where many are
expected inside, by the normal law, is looked first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.space.elimination import Floats, Ints
from bsconv_nas.space.moves import Moves
from bsconv_nas.space.neighbours import neighbours
from bsconv_nas.space.table import Architecture, Population

__all__ = ["Nearest"]

Accepted = Callable[[Population], Architecture | None]
FARTHEST = 16  # changes
MATCHED = 4  # moves that are found by bisection, at most
LEVELS, ANCHORS = 12, 64  # hubs that are changed at once, and how many sets of so many changes are kept
USUAL = 3  # moves of units
ATTEMPTS = 12  # matchings for each number of changes
EXPECTED = math.log(0.01)  # sets of moves, below which none is sought
PAIRS, SETS = 1 << 16, 1 << 14  # of sets that are matched, and sets
HITS, CHUNK = 1 << 12, 1 << 6  # rows, of which so many are checked at once
BARRED = 99  # changes of units, where none help


@dataclass(frozen=True, slots=True)
class _Anchors:
    """Rows whose hubs differ from the start in equally many dimensions, and what moves of units do to them.

    Attributes:
        rows: shape (n, D).
        room: by how much the costs have to rise and may, two arrays of shape (columns, n).
        deltas: what each move adds to the costs, shape (columns, n, moves).
        allowed: whether a move keeps the bound on memory, shape (n, moves).
        forced: whether a unit has to change for it, shape (n, units).
        fewest: changes of units without which the budget is not kept, shape (n,).
        moments: of `deltas`.
    """

    rows: Population
    room: tuple[Floats, Floats]
    deltas: Floats
    allowed: npt.NDArray[np.bool_]
    forced: npt.NDArray[np.bool_]
    fewest: Ints
    moments: tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class _Place:
    """One of the anchors, with the moves that may be made from it."""

    row: Population
    room: tuple[Floats, Floats]  # (columns,)
    deltas: Floats  # (columns, moves)
    changes: Ints  # of each move; 0 for one that makes none or is not allowed
    forced: Ints  # units

    def sums(self, sets: Ints) -> Floats:
        """Return what sets of moves add to the costs, shape (columns, n)."""
        return np.asarray(self.deltas[:, sets].sum(axis=2))

    def fits(self, sums: Floats) -> npt.NDArray[np.bool_]:
        """Return whether the costs are inside after that, shape (n,)."""
        low, high = self.room
        return np.asarray(((sums >= low[:, None]) & (sums <= high[:, None])).all(axis=0))


class Nearest:
    """Searches near rows for networks inside a budget."""

    def __init__(self, model: CostModel, budget: Budget) -> None:
        self._model, self._budget = model, budget
        self._columns = [column for column in model.additive if column in budget.bounds] or ["macs"]
        pairs = np.array([budget.bounds.get(column, (0.0, np.inf)) for column in self._columns], dtype=np.float64)
        self._limits = np.where(pairs[:, 0] <= 0, -np.inf, pairs[:, 0]), pairs[:, 1]
        self._memory = budget.bounds.get("memory", (0.0, np.inf))[1]
        self._moves = Moves(model, self._columns, self._memory < np.inf)

    def found(self, start: Population, accepted: Accepted, rng: np.random.Generator) -> Architecture | None:
        """Return an accepted network inside the budget few changes from a row; None where none was found.

        Args:
            start: option indices, shape (D,).
            accepted: the first acceptable one of canonical rows, named.
            rng: the source of randomness.
        """
        changes = self._moves.changes(start)
        levels: list[_Anchors] = []
        for total in range(FARTHEST):
            if total <= min(LEVELS, len(self._moves.hubs)):
                levels.append(self._level(start, levels))
            for rows in self._candidates(levels, changes, total, rng):
                if (architecture := self._first(rows, accepted)) is not None:
                    return architecture
        return None

    def _first(self, rows: Population, accepted: Accepted) -> Architecture | None:
        columns = tuple(self._budget.bounds) or ("macs",)
        for begin in range(0, len(rows), CHUNK):
            some = rows[begin : begin + CHUNK]
            inside = some[self._budget.violations(self._model.costs(some, columns)) <= 0]
            if len(inside) and (found := accepted(self._model.table.canonical(inside))) is not None:
                return found
        return None

    def _level(self, start: Population, levels: list[_Anchors]) -> _Anchors:
        """Return the rows with one changed hub more than those of the last level, the most hopeful ones."""
        if not levels:
            return self._anchors(start[None], self._costs(start[None]))
        hubs = list(self._moves.hubs)
        parts = neighbours(levels[-1].rows[:, hubs], self._model.table.sizes[hubs])
        parts = np.unique(parts, axis=0)
        rows = np.repeat(start[None], len(parts), axis=0)
        rows[:, hubs] = parts
        rows = rows[(rows != start).sum(axis=1) == len(levels)]
        costs = self._costs(rows)
        scale = costs / self._costs(start[None])  # with which moves grow, about
        mean, spread = levels[0].moments
        logs = _log_hits(self._room(costs), scale * mean, scale * scale[:, None] * spread, USUAL)
        best = np.lexsort((-logs, np.maximum(self._moves.floor(rows), self._memory)))[:ANCHORS]
        return self._anchors(rows[best], costs[:, best])

    def _costs(self, rows: Population) -> Floats:
        costs = self._model.costs(rows, self._columns)
        return np.stack([costs[column] for column in self._columns]).astype(np.float64)

    def _room(self, costs: Floats) -> tuple[Floats, Floats]:
        slack = 1e-9 * costs
        return self._limits[0][:, None] - costs - slack, self._limits[1][:, None] - costs + slack

    def _anchors(self, rows: Population, costs: Floats) -> _Anchors:
        own = self._moves.own(rows)
        room, deltas = self._room(costs), self._moves.deltas(rows, own)
        allowed = self._moves.peaks(rows) <= self._memory
        forced = ~np.take_along_axis(allowed, own, axis=1)
        fewest = np.maximum(self._fewest(room, deltas), forced.sum(axis=1))
        fewest[self._moves.floor(rows) > self._memory] = BARRED
        return _Anchors(rows, room, deltas, allowed, forced, fewest, _moments(deltas))

    def _fewest(self, room: tuple[Floats, Floats], deltas: Floats) -> Ints:
        """Return the least number of units whose greatest moves bring the costs inside; more than all if none do."""
        out = np.zeros(deltas.shape[1], dtype=np.int64)
        for gap, signed in ((room[0], deltas), (-room[1], -deltas)):
            most = np.maximum.reduceat(signed, self._moves.starts, axis=2)
            most.sort(axis=2)
            sums = np.cumsum(most[:, :, ::-1], axis=2)
            short = (sums < gap[:, :, None]).sum(axis=2) + (gap > 0)
            out = np.maximum(out, short.max(axis=0))
        return out

    def _candidates(
        self, levels: list[_Anchors], changes: Ints, total: int, rng: np.random.Generator
    ) -> Iterator[Population]:
        """Yield rows that differ from the start in `total` dimensions and have the right MACs and parameters."""
        attempts: list[tuple[float, int, int]] = []
        for hubs, anchors in enumerate(levels[: total + 1]):
            moves = total - hubs
            hopeful = anchors.fewest <= moves
            if moves <= 1:
                yield rng.permutation(self._few(anchors, hopeful, changes, moves))
            elif hopeful.any():
                sets = [
                    _log_binomial(self._moves.none, min(moves - forced, MATCHED))
                    for forced in anchors.forced.sum(axis=1)
                ]
                logs = _log_hits(anchors.room, *anchors.moments, moves) + sets
                hopeful &= (logs > EXPECTED) | (np.array(sets) < math.log(SETS))
                attempts += [(float(logs[i]), hubs, int(i)) for i in np.flatnonzero(hopeful)]
        for _, hubs, i in sorted(attempts, reverse=True)[:ATTEMPTS]:
            place = self._place(levels[hubs], i, changes)
            for chosen in self._chosen(place, total - hubs, rng):
                yield self._moves.moved(place.row[None], chosen)

    def _few(self, anchors: _Anchors, hopeful: npt.NDArray[np.bool_], changes: Ints, moves: int) -> Population:
        """Return rows after no move or a single one that have the right costs."""
        if moves == 0:
            return anchors.rows[hopeful]
        low, high = (gap[:, :, None] for gap in anchors.room)
        fits = anchors.allowed & (changes == 1)
        fits &= ((anchors.deltas >= low) & (anchors.deltas <= high)).all(axis=0)
        free = np.logical_not(anchors.forced.any(axis=1, keepdims=True))
        fits &= hopeful[:, None] & (anchors.forced[:, self._moves.unit] | free)
        of_row, move = np.nonzero(fits)
        return self._moves.moved(anchors.rows[of_row], move[:, None])

    def _place(self, anchors: _Anchors, i: int, changes: Ints) -> _Place:
        room = anchors.room[0][:, i], anchors.room[1][:, i]
        allowed = np.where(anchors.allowed[i], changes, 0)
        return _Place(anchors.rows[i], room, anchors.deltas[:, i], allowed, np.flatnonzero(anchors.forced[i]))

    def _chosen(self, place: _Place, moves: int, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield sets of moves that make so many changes and the right costs, shape (n, k)."""
        unit, changes = self._moves.unit, place.changes
        options = [np.flatnonzero((unit == i) & (changes > 0)) for i in place.forced]
        mended = list(itertools.islice(itertools.product(*options), SETS))
        fixed = np.array(mended, dtype=np.int64).reshape(len(mended), len(options))
        made = changes[fixed].sum(axis=1)
        for made_once in np.unique(made[made <= moves]):
            yield self._completed(place, fixed[made == made_once], moves - int(made_once), rng)

    def _completed(self, place: _Place, fixed: Ints, left: int, rng: np.random.Generator) -> Ints:
        """Return sets of moves with so many changes more, of other units, that have the right costs."""
        unit = self._moves.unit
        taken = self._greatest(place, max(left - MATCHED, 0))
        barred = np.isin(unit, [*place.forced, *unit[taken]])
        single, double = (np.flatnonzero((place.changes == n) & ~barred) for n in (1, 2))
        fixed = np.concatenate([fixed, np.broadcast_to(taken, (len(fixed), len(taken)))], axis=1)
        left -= len(taken)
        parts = (self._sets(single, double, n) for n in (min(left, 2), max(left - 2, 0)))
        return self._matched(place, next(parts), self._product(fixed, next(parts), rng), rng)

    def _greatest(self, place: _Place, n: int) -> Ints:
        """Return `n` moves of different units, none of them forced, that bring the costs nearest to the bounds."""
        scale = place.deltas.std(axis=1) + 1e-9
        gains = np.clip(0, *place.room) / scale @ (place.deltas / scale[:, None])
        single = np.flatnonzero((place.changes == 1) & ~np.isin(self._moves.unit, place.forced))
        order = single[np.argsort(-gains[single], kind="stable")]
        _, first = np.unique(self._moves.unit[order], return_index=True)
        return order[np.sort(first)[:n]]

    def _sets(self, single: Ints, double: Ints, changes: int) -> Ints:
        """Return the sets of moves that make 0, 1 or 2 changes, shape (n, 2 at most)."""
        if changes == 0:
            return np.zeros((1, 0), dtype=np.int64)
        if changes == 1:
            return single[:, None]
        a, b = (single[i] for i in np.triu_indices(len(single), 1))
        apart = self._moves.unit[a] != self._moves.unit[b]
        pairs = np.stack([a[apart], b[apart]], axis=1)
        return np.concatenate([pairs, np.stack([double, np.full_like(double, self._moves.none)], axis=1)])

    def _product(self, left: Ints, right: Ints, rng: np.random.Generator) -> Ints:
        """Return each set of one kind with each of another, shape (n, k); a random part of too many."""
        count = len(left) * len(right)
        cells = np.arange(count) if count <= SETS else rng.integers(0, count, SETS)
        a, b = np.divmod(cells, max(len(right), 1))
        return np.concatenate([left[a], right[b]], axis=1)

    def _matched(self, place: _Place, left: Ints, right: Ints, rng: np.random.Generator) -> Ints:
        """Return unions of two kinds of sets, of different units, that have the right costs; of many a random part."""
        a, b = place.sums(left), place.sums(right)
        low, high = place.room
        i = int(np.argmin((high - low) / (place.deltas.std(axis=1) + 1e-9)))
        order = np.argsort(a[i], kind="stable")
        first, last = (
            np.searchsorted(a[i][order], *edge) for edge in ((low[i] - b[i], "left"), (high[i] - b[i], "right"))
        )
        ends = np.cumsum(last - first)
        count = int(ends[-1]) if len(ends) else 0
        pairs = rng.permutation(count) if count <= PAIRS else rng.integers(0, count, PAIRS)
        of_right = np.searchsorted(ends, pairs, side="right")
        of_left = order[last[of_right] - (ends[of_right] - pairs)]
        fits = place.fits(a[:, of_left] + b[:, of_right])
        left, right = left[of_left[fits]], right[of_right[fits]]
        apart = np.ones(len(left), dtype=np.bool_)
        unit, none = self._moves.unit, self._moves.none
        for x, y in itertools.product(left.T, right.T):
            apart &= (unit[x] != unit[y]) | (x == none)
        return np.concatenate([left, right], axis=1)[apart][:HITS]


def _moments(deltas: Floats) -> tuple[Floats, Floats]:
    """Return the mean, shape (columns, n), and the covariance, (columns, columns, n), of what moves add to costs."""
    mean = deltas.mean(axis=2)
    off = deltas - mean[:, :, None]
    return mean, np.einsum("anm,bnm->abn", off, off) / deltas.shape[2]


def _log_hits(room: tuple[Floats, Floats], mean: Floats, spread: Floats, moves: int) -> Floats:
    """Return the log of the chance that the costs are inside after so many random moves, by the normal law, (n,).

    One column after the other, each given that those before it come as near to their mean as their bounds let them.
    """
    mean, spread = moves * mean, moves * spread
    out = np.zeros(mean.shape[1])
    for i, (low, high) in enumerate(zip(*room, strict=True)):
        deviation = np.sqrt(np.maximum(spread[i, i], 1e-9))
        off = np.clip(mean[i], low, high) - mean[i]
        out += np.log(np.minimum((high - low) / deviation / 2.5, 1.0)) - (off / deviation) ** 2 / 2
        slope = spread[i] / deviation**2
        mean = mean + slope * off
        spread = spread - slope[:, None] * spread[i]
    return out


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if n >= k >= 0 else -math.inf
