"""Bucket elimination over the options of a space: weights, moments, bounds, draws and listings of networks.

Distinctness is a product of small 0/1 tables and a cost a sum of small tables, so that the sum over all networks of
exp(-tilt * costs), the cheapest completion of a partial network, or a network drawn with that weight each take one pass
over a tree of tables (Dechter, Bucket elimination, 1999). Partial networks are integer arrays (variables, n), one row
a variable in the order of its rank: variables are eliminated from rank 0 on and drawn from the last rank down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Elimination", "Factor", "Floats", "Ints", "Tilted", "Variable"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Variable = tuple[int, int]
LARGEST = 1 << 18  # cells of a table


@dataclass(frozen=True, slots=True)
class Factor:
    """A table over some variables: what it allows, and what it adds to each cost.

    Attributes:
        owner: factors of one owner hold only together.
        scope: the variables, one an axis.
        support: where a network may be.
        costs: shape (columns, *support.shape); (1, *support.shape) for the same in every column.
    """

    owner: tuple[str, int]
    scope: tuple[Variable, ...]
    support: npt.NDArray[np.bool_]
    costs: Floats


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What one variable is eliminated with: its own axis is the last, before it those of `rest`, by falling rank."""

    rest: tuple[int, ...]
    support: npt.NDArray[np.bool_]
    costs: Floats
    children: tuple[tuple[int, tuple[int, ...]], ...]  # a rank, and the shape in which its message broadcasts here

    def sum(self, messages: Sequence[Floats], start: Floats) -> Floats:
        """Return `start` and the children's messages added up over the bucket's table; axes may lead it."""
        lead = start.shape[: start.ndim - self.support.ndim]
        for child, shape in self.children:
            start = start + messages[child].reshape(*lead, *shape)
        return start

    def cells(self, values: Ints) -> Ints:
        """Return the flat index of the rest in each partial network, shape (n,)."""
        out = np.zeros(values.shape[1], dtype=np.int64)
        for rank, size in zip(self.rest, self.support.shape, strict=False):
            out *= size
            out += values[rank]
        return out


@dataclass(frozen=True, slots=True)
class Tilted:
    """Networks weighted with exp(-tilt * costs).

    Attributes:
        tilt: one a column.
        log_total: log of the summed weights.
        messages: by rank, the log of the summed weights of what hangs on the rest of its bucket.
        shares: by rank, the conditional probabilities of the options, shape (*rest, options).
    """

    tilt: Floats
    log_total: float
    messages: tuple[Floats, ...]
    shares: tuple[Floats, ...]

    def cumulative(self, rank: int) -> Floats:
        """Return the distribution function of a variable without its last value, 1, shape (cells, options - 1)."""
        shares = self.shares[rank]
        return np.asarray(shares.reshape(-1, shares.shape[-1]).cumsum(axis=1)[:, :-1])


class Elimination:
    """A tree of buckets for the sum of all factors.

    Where a table would get too large, factors are left out, owner by owner: what is drawn then may break them.

    Args:
        factors: tables over variables.
        columns: how many costs a factor has.

    Attributes:
        variables: by rank.
        kept: owners of the factors that are not left out.
        constant: costs that every network has, shape (columns,).
    """

    def __init__(self, factors: Sequence[Factor], columns: int) -> None:
        self._sizes = {v: n for f in factors for v, n in zip(f.scope, f.support.shape, strict=True)}
        scopes, kept = _affordable(factors, self._sizes)
        self.kept = frozenset(f.owner for f in kept)
        self.variables = _postorder(scopes)
        self.rank = {variable: i for i, variable in enumerate(self.variables)}
        self.constant = sum((f.costs for f in kept if not f.scope), start=np.zeros(columns))
        self._possible = all(f.support.all() for f in kept if not f.scope)
        self._columns = columns
        rests = [tuple(sorted((self.rank[u] for u in scopes[v]), reverse=True)) for v in self.variables]
        own: dict[int, list[Factor]] = {}
        for factor in kept:
            if factor.scope:
                own.setdefault(min(self.rank[v] for v in factor.scope), []).append(factor)
        self.buckets = tuple(self._bucket(i, rests, own.get(i, ())) for i in range(len(rests)))
        # All tables end to end, so that a tilt weights them at once.
        ends = np.cumsum([0, *(bucket.support.size for bucket in self.buckets)])
        self._parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        self._costs = np.concatenate([np.zeros((columns, 0)), *(b.costs.reshape(columns, -1) for b in self.buckets)], 1)
        self._barred = np.where(np.concatenate([[], *(b.support.ravel() for b in self.buckets)]), 0.0, -np.inf)

    def _bucket(self, rank: int, rests: Sequence[tuple[int, ...]], factors: Iterable[Factor]) -> _Bucket:
        axes = *rests[rank], rank
        shape = tuple(self._sizes[self.variables[r]] for r in axes)
        support, costs = np.ones(shape, dtype=np.bool_), np.zeros((self._columns, *shape))
        for factor in factors:
            ranks = [self.rank[v] for v in factor.scope]
            order = sorted(range(len(ranks)), key=lambda i: -ranks[i])
            spread = [n if r in ranks else 1 for r, n in zip(axes, shape, strict=True)]
            support &= factor.support.transpose(order).reshape(spread)
            costs += factor.costs.transpose(0, *(i + 1 for i in order)).reshape(-1, *spread)
        children = tuple(
            (i, tuple(n if r in rest else 1 for r, n in zip(axes, shape, strict=True)))
            for i, rest in enumerate(rests[:rank])
            if rest and min(rest) == rank
        )
        return _Bucket(rests[rank], support, costs, children)

    @cached_property
    def _roots(self) -> list[int]:
        return [rank for rank, bucket in enumerate(self.buckets) if not bucket.rest]

    def tilted(self, tilt: Floats) -> Tilted:
        """Return the networks weighted with exp(-tilt * costs); the total is -inf if there are none."""
        messages: list[Floats] = []
        shares: list[Floats] = []
        logs = self._barred - tilt @ self._costs
        with np.errstate(divide="ignore"):
            for bucket, part in zip(self.buckets, self._parts, strict=True):
                own = bucket.sum(messages, logs[part].reshape(bucket.support.shape))
                top = np.maximum(own.max(axis=-1, keepdims=True), -1e300)  # where nothing is allowed
                weights = np.exp(own - top)
                total = weights.sum(axis=-1, keepdims=True)
                messages.append((top + np.log(total))[..., 0])
                shares.append(weights / np.maximum(total, 1e-300))
        log_total = sum(float(messages[root]) for root in self._roots) - float(tilt @ self.constant)
        return Tilted(tilt, log_total if self._possible else -np.inf, tuple(messages), tuple(shares))

    def sizes(self, ranks: Iterable[int]) -> tuple[int, ...]:
        """Return how many values variables have."""
        return tuple(self._sizes[self.variables[rank]] for rank in ranks)

    def tops(self, cut: int) -> list[int]:
        """Return the ranks below `cut` on which, with their subtrees, all others below it hang."""
        return [r for r in range(cut) if not self.buckets[r].rest or min(self.buckets[r].rest) >= cut]

    def frontier(self, cut: int) -> tuple[int, ...]:
        """Return the ranks from `cut` on that the variables below it depend on."""
        return tuple(sorted({r for top in self.tops(cut) for r in self.buckets[top].rest}))

    def moments(self, tilted: Tilted) -> tuple[Floats, Floats]:
        """Return the mean costs, shape (columns,), and their covariance, (columns, columns), of tilted networks."""
        means: list[Floats] = []
        spreads: list[Floats] = []
        for bucket, shares in zip(self.buckets, tilted.shares, strict=True):
            mean = bucket.sum(means, bucket.costs)
            means.append((shares * mean).sum(axis=-1))
            off = mean - means[-1][..., None]
            spread = bucket.sum(spreads, off[:, None] * off[None])
            spreads.append((shares * spread).sum(axis=-1))
        mean = sum((means[root] for root in self._roots), start=self.constant)
        return mean, sum((spreads[root] for root in self._roots), start=np.zeros((self._columns, self._columns)))

    def draw(self, tilted: Tilted, values: Ints, ranks: range, rng: np.random.Generator) -> Floats:
        """Draw variables of falling `ranks` into the partial networks `values` and return what they add to the costs.

        Args:
            tilted: the weights.
            values: shape (variables, n); what `ranks` depend on is in it. Changed in place.
            ranks: as `range(a, b)`, drawn from b - 1 to a.
            rng: the source of randomness.

        Returns:
            Shape (columns, n).
        """
        n = int(values.shape[1])
        costs = np.zeros((self._columns, n))
        for rank in reversed(ranks):
            bucket, cumulative = self.buckets[rank], tilted.cumulative(rank)
            cells = bucket.cells(values)
            below = rng.random(n)[:, None] >= cumulative.take(cells, axis=0)
            values[rank] = below.sum(axis=1)
            cells *= bucket.support.shape[-1]
            cells += values[rank]
            if bucket.costs.any():
                costs += bucket.costs.reshape(self._columns, -1).take(cells, axis=1)
        return costs

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the least and the most of each cost among the networks, each of shape (columns,); inf if none."""
        (_, least), (_, most) = self._ends
        return (
            sum((least[root] for root in self._roots), start=self.constant),
            -sum((most[root] for root in self._roots), start=-self.constant),
        )

    def end(self, column: int, is_most: bool) -> Ints:
        """Return a network with the least or the most of a cost, shape (variables, 1); there must be a network."""
        tables, _ = self._ends[int(is_most)]
        values = np.zeros((len(self.buckets), 1), dtype=np.int64)
        for rank in reversed(range(len(self.buckets))):
            bucket = self.buckets[rank]
            options = tables[rank][column].reshape(-1, bucket.support.shape[-1])
            values[rank] = options[bucket.cells(values)].argmin(axis=1)
        return values

    @cached_property
    def _ends(self) -> tuple[tuple[list[Floats], list[Floats]], tuple[list[Floats], list[Floats]]]:
        """By rank, the tables and messages of the least costs, and of the least negated costs."""
        return self._least(1), self._least(-1)

    def _least(self, sign: int) -> tuple[list[Floats], list[Floats]]:
        tables: list[Floats] = []
        messages: list[Floats] = []
        for bucket in self.buckets:
            tables.append(bucket.sum(messages, np.where(bucket.support, sign * bucket.costs, np.inf)))
            messages.append(tables[-1].min(axis=-1))
        return tables, messages

    def listed(self, low: Floats, high: Floats, limit: int) -> Ints | None:
        """Return all networks with each cost between `low` and `high`, shape (variables, n); None where that is much.

        Partial networks grow by one variable after the other; those whose completions are all outside are dropped.

        Args:
            low: least costs, shape (columns,).
            high: greatest costs, shape (columns,).
            limit: of how many partial networks it gives up.
        """
        least, most = self.bounds()
        if not (self._possible and np.isfinite(least).all() and (least <= high).all() and (most >= low).all()):
            return np.zeros((len(self.buckets), 0), dtype=np.int64)
        values = np.zeros((len(self.buckets), 1), dtype=np.int64)
        at = np.stack([least, -most])[:, :, None]
        worst = np.stack([high, -low])[:, :, None]
        for rank in reversed(range(len(self.buckets))):
            bucket, k = self.buckets[rank], self.buckets[rank].support.shape[-1]
            cells = bucket.cells(values)
            with np.errstate(invalid="ignore"):  # where nothing is allowed
                tables = np.stack([(t[rank] - m[rank][..., None]).reshape(self._columns, -1, k) for t, m in self._ends])
            grown = (at[..., None] + tables.take(cells, axis=2)).reshape(2, self._columns, -1)
            near = (grown <= worst + 1e-9 * np.abs(worst)) & np.isfinite(grown)
            fits = np.flatnonzero(near.all(axis=(0, 1)))
            if len(fits) > limit:
                return None
            at, values = grown[..., fits], values[:, fits // k]
            values[rank] = fits % k
        return values


def _affordable(
    factors: Sequence[Factor], sizes: Mapping[Variable, int]
) -> tuple[dict[Variable, frozenset[Variable]], list[Factor]]:
    """Return what each variable is eliminated with, in order, and the factors left after those that cost too much."""
    kept = list(factors)
    while True:
        scopes, clique = _order([f.scope for f in kept], sizes)
        if clique is None:
            return scopes, kept
        worst = max(kept, key=lambda f: len(clique.intersection(f.scope)))
        kept = [f for f in kept if f.owner != worst.owner]


def _order(
    scopes: Iterable[tuple[Variable, ...]], sizes: Mapping[Variable, int]
) -> tuple[dict[Variable, frozenset[Variable]], frozenset[Variable] | None]:
    """Return what each variable is eliminated with, smallest tables first, and the clique that is too large, if any."""
    near: dict[Variable, set[Variable]] = {v: set() for v in sorted(sizes)}
    for scope in scopes:
        for v in scope:
            near[v] |= {*scope} - {v}
    cells = {v: math.prod(sizes[u] for u in (v, *near[v])) for v in near}
    order: dict[Variable, frozenset[Variable]] = {}
    while near:
        v = min(near, key=lambda u: (cells[u], u))
        rest = near.pop(v)
        order[v] = frozenset(rest)
        if cells[v] > LARGEST:
            return order, order[v] | {v}
        for u in rest:
            near[u] |= rest
            near[u] -= {u, v}
            cells[u] = math.prod(sizes[w] for w in (u, *near[u]))
    return order, None


def _postorder(scopes: Mapping[Variable, frozenset[Variable]]) -> tuple[Variable, ...]:
    """Return the variables, each directly after the subtrees that hang on it; a subtree is contiguous."""
    position = {v: i for i, v in enumerate(scopes)}
    children: dict[Variable | None, list[Variable]] = {}
    for v, rest in scopes.items():
        children.setdefault(min(rest, key=position.__getitem__, default=None), []).append(v)

    order: list[Variable] = []
    stack = list(children.get(None, ()))
    while stack:
        order.append(stack.pop())
        stack += children.get(order[-1], ())
    return tuple(reversed(order))
