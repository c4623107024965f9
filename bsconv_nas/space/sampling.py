"""Networks inside a budget: sampling, repair, neighbours and uniform baselines; vectorised, without torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import COLUMNS, CostModel
from bsconv_nas.cost.budget import Budget, format_quantity
from bsconv_nas.errors import BudgetError
from bsconv_nas.space.table import KINDS, Architecture, Dimension, Population, Table

__all__ = ["FeasibleSet", "extremes"]

BATCH = 4096
PATIENCE = 50  # batches without a new network before the space counts as exhausted
RESTARTS = 20
Pick = Callable[[npt.NDArray[np.int64]], np.intp]


def extremes(model: CostModel) -> tuple[Population, Population]:
    """Return the cheapest and the costliest network of each column, two populations of len(COLUMNS) rows.

    Costs grow with every width, ratio, kernel and depth whatever the operators, and each operator dimension acts on its
    own, so the ends of one dimension after the other are the ends of the space.
    """
    return _ends(model, np.argmin), _ends(model, np.argmax)


def _ends(model: CostModel, pick: Pick) -> Population:
    rows = []
    for column in COLUMNS:
        row = np.zeros((1, len(model.table.sizes)), dtype=np.int64)
        for kind in KINDS:
            for index, dimension in enumerate(model.table.dimensions):
                if dimension.kind == kind:
                    trial = np.repeat(row, len(dimension.options), axis=0)
                    trial[:, index] = np.arange(len(dimension.options))
                    row[0, index] = pick(_sizes(model, trial, dimension, column))
        rows.append(row[0])
    return np.array(rows)


def _sizes(model: CostModel, trial: Population, dimension: Dimension, column: str) -> npt.NDArray[Any]:
    """Return what orders the options of a dimension, each in a row of `trial`, by what they contribute to a column."""
    sizes: npt.NDArray[Any]
    if dimension.kind == "width":
        sizes = np.array(dimension.channels).sum(axis=0)
    elif dimension.kind != "conv":
        sizes = np.array(dimension.options, dtype=np.float64)
    elif column != "memory":
        sizes = model.costs(trial, (column,))[column]
    else:  # memory itself would hide the options behind the peak of another place
        peaks = model.peaks(trial)
        sizes = peaks[:, (peaks != peaks[0]).any(axis=0)].max(axis=1, initial=0)
    return sizes


@dataclass(frozen=True)
class FeasibleSet:
    """The networks of a space that keep a budget."""

    model: CostModel
    budget: Budget

    @property
    def table(self) -> Table:
        """The space."""
        return self.model.table

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        return tuple(self.budget.bounds) or ("macs",)

    def violations(self, population: Population) -> npt.NDArray[np.float64]:
        """Return by how much each network breaks the budget, shape (n,); 0 inside."""
        return self.budget.violations(self.model.costs(population, self._columns))

    def check(self) -> None:
        """Refuse a budget that no network meets.

        Raises:
            BudgetError: with the smallest reachable value (or the largest, for a lower bound) and what bounds it.
        """
        least, most = extremes(self.model)
        for i, column in enumerate(COLUMNS):
            low, high = self.budget.bounds.get(column, (0, np.inf))
            smallest = int(self.model.costs(least[i : i + 1])[column][0])
            largest = int(self.model.costs(most[i : i + 1])[column][0])
            if smallest > high:
                raise BudgetError(self._impossible(column, "upper", high, "smallest", smallest, least[i]))
            if largest < low:
                raise BudgetError(self._impossible(column, "lower", low, "largest", largest, most[i]))
        if not self.sample(1, np.random.default_rng(0)):
            raise BudgetError(
                f"No network of the space was found with {self.budget}: each bound can be kept alone, so widen one."
            )

    def _impossible(self, column: str, side: str, bound: float, end: str, value: int, row: Population) -> str:
        reached, asked = (f"{v:,.0f} ({format_quantity(v, column)})" for v in (value, bound))
        bounding = self._bounding(column, row)
        return (
            f"The {side} bound on {column} must be reachable, but is {asked} and the {end} network of this space has "
            f"{reached}, most of it in {bounding}: move the bound or give the space other widths, depths or operators."
        )

    def _bounding(self, column: str, row: Population) -> str:
        """Name the layers that contribute most to a network's cost."""
        shares = self.model.shares(column, row)[:3]
        return ", ".join(f"{path} ({format_quantity(value, column)})" for path, value in shares)

    def sample(self, n: int, rng: np.random.Generator, exclude: Collection[str] = frozenset()) -> list[Architecture]:
        """Return `n` distinct networks inside the budget; fewer if there are no more.

        Options are drawn uniformly by dimension; what breaks the budget is repaired when too little keeps it.

        Args:
            n: how many.
            rng: the source of randomness.
            exclude: keys of networks not to return.
        """
        found: dict[str, Architecture] = {}
        fruitless = 0
        while len(found) < n and fruitless < PATIENCE:
            population = rng.integers(0, self.table.sizes, size=(BATCH, len(self.table.sizes)))
            inside = population[self.violations(population) <= 0]
            if len(inside) == 0:
                inside = self._repaired(population[: max(1, min(n, 32))], rng)
            known = {*exclude, *found}
            fresh = (a for a in self._distinct(inside) if a.key not in known)
            drawn = {a.key: a for a in itertools.islice(fresh, n - len(found))}
            found |= drawn
            fruitless = 0 if drawn else fruitless + 1
        return list(found.values())

    def _distinct(self, population: Population) -> Iterator[Architecture]:
        """Yield the networks of a population, each once, in order; they are named as they are asked for."""
        rows = self.table.canonical(population)
        _, first = np.unique(rows, axis=0, return_index=True)
        yield from map(self.table.named, rows[np.sort(first)].tolist())

    def _repaired(self, population: Population, rng: np.random.Generator) -> Population:
        rows = [row for start in population if (row := self._walk(start, rng)) is not None]
        return np.array(rows, dtype=np.int64).reshape(-1, len(self.table.sizes))

    def repair(self, indices: Sequence[int], rng: np.random.Generator) -> Architecture:
        """Return a network inside the budget near `indices`: itself, if it keeps it.

        One option changes at a time, towards the budget, until a single change reaches it.

        Raises:
            BudgetError: no network inside the budget was found.
        """
        start = np.asarray(indices, dtype=np.int64)
        for _ in range(RESTARTS):
            row = self._walk(start, rng)
            if row is not None:
                return self.table.architecture(row.tolist())
            start = rng.integers(0, self.table.sizes)
        raise BudgetError(f"No network of the space was found with {self.budget}: widen it.")

    def _walk(self, start: Population, rng: np.random.Generator) -> Population | None:
        """Return a feasible row reached by single changes that each lower the violation, or None at a dead end."""
        row = start
        violation = float(self.violations(row[None])[0])
        while violation > 0:
            near = self._neighbours(row)
            found = self.violations(near)
            better = np.flatnonzero((found <= 0) if (found <= 0).any() else (found < violation))
            if len(better) == 0:
                return None
            chosen = int(rng.choice(better))
            row, violation = near[chosen], float(found[chosen])
        return row

    def _neighbours(self, row: Population) -> Population:
        """Return every row that differs from `row` in one dimension."""
        sizes = self.table.sizes
        dimensions = np.repeat(np.arange(len(sizes)), sizes)
        options = np.concatenate([np.arange(size) for size in sizes])
        changed = options != row[dimensions]
        out = np.repeat(row[None], int(changed.sum()), axis=0)
        out[np.arange(len(out)), dimensions[changed]] = options[changed]
        return out

    def nearest_untried(
        self, architecture: Architecture, tried: Collection[str], rng: np.random.Generator
    ) -> Architecture | None:
        """Return `architecture` or the network fewest changes away that is inside the budget and not in `tried`.

        None means that the space is exhausted.
        """
        frontier = np.array([architecture.indices])
        if architecture.key not in tried and self.violations(frontier)[0] <= 0:
            return architecture
        for _ in range(3):
            near = np.concatenate([self._neighbours(row) for row in frontier[:64]])
            near = near[self.violations(near) <= 0]
            rng.shuffle(near)
            candidate = next((a for a in self._distinct(near) if a.key not in tried), None)
            if candidate is not None:
                return candidate
            if len(near) == 0:
                break
            frontier = near
        fresh = self.sample(1, rng, exclude=tried)
        return fresh[0] if fresh else None

    def baselines(self, limit: int) -> list[Architecture]:
        """Return the costliest uniform networks that fit, evenly over the decompositions, at most `limit`.

        A uniform network has one operator everywhere, all widths at one rank and all depths at one rank.
        """
        if limit == 0:
            return []
        operators = self._operators()
        out: dict[str, Architecture] = {}
        ranked = [self._ranked(operator) for operator in operators]
        for position in range(max(map(len, ranked), default=0)):
            for candidates in ranked:
                if position < len(candidates) and len(out) < limit:
                    out.setdefault(candidates[position].key, candidates[position])
        return list(out.values())

    def _operators(self) -> list[str]:
        options = [d.options for d in self.table.dimensions if d.kind == "conv"]
        return list(dict.fromkeys(str(option) for row in options for option in row)) or ["regular"]

    def _ranked(self, operator: str) -> list[Architecture]:
        """Return the uniform networks of one operator inside the budget, costliest first."""
        population = np.array(list(self._uniform(operator)), dtype=np.int64).reshape(-1, len(self.table.sizes))
        inside = population[self.violations(population) <= 0]
        order = np.argsort(-self.model.costs(inside, ("macs",))["macs"], kind="stable")
        return list(self._distinct(inside[order]))

    def _uniform(self, operator: str) -> Iterable[list[int]]:
        """Yield rows with `operator` wherever it is an option, at every pair of width rank and depth rank.

        Elsewhere the base's own option stands, or what is nearest to it; so do the base's kernels and expansions.
        """
        ranks = {
            kind: max((len(d.options) for d in self.table.dimensions if d.kind == kind), default=1)
            for kind in ("width", "depth")
        }
        for width in range(ranks["width"]):
            for depth in range(ranks["depth"]):
                yield [_at_rank(d, operator, {"width": width, "depth": depth}) for d in self.table.dimensions]


def _at_rank(dimension: Dimension, operator: str, ranks: Mapping[str, int]) -> int:
    """Return the index of `operator`, or of the option that is as many places below the largest as its kind's rank."""
    if dimension.kind not in ranks:
        return dimension.index_of(operator)
    order = np.argsort([-float(option) for option in dimension.options], kind="stable")
    return int(order[min(ranks[dimension.kind], len(order) - 1)])
