"""Networks inside a budget: sampling, repair, neighbours and uniform baselines; vectorised, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget, format_quantity
from bsconv_nas.errors import BudgetError
from bsconv_nas.space.drawing import Bounds, Box, Drawing
from bsconv_nas.space.elimination import Floats
from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.nearest import Nearest
from bsconv_nas.space.neighbours import changes, reverted
from bsconv_nas.space.table import Architecture, Population, Table
from bsconv_nas.space.uniform import operators, uniform

__all__ = ["FeasibleSet"]

LISTED = 1 << 17  # networks, up to which all are listed
HOPE = 8.0  # log of how far the bound on their number may exceed that
COMPARED = 1 << 11  # networks, up to which the nearest is sought among all
PATIENCE = 8  # batches without a new network before the space counts as exhausted
IMPATIENCE = 4  # of them before a band is widened
NARROW = 0.01  # of the interval of log MACs
FINEST = 1e-3  # octaves: networks whose MACs are as near as that count as equally dear
RUNGS = 32  # tilts towards parts of the interval of log MACs
SMALLEST, EACH = 1 << 9, 1 << 6  # draws with one of them, and for each stratum
NEAR = 0.02, 0.06  # of the interval of log MACs: how far away stands in for an empty stratum


@dataclass(frozen=True)
class _Strata:
    """Networks and the stratum of each; those of one stratum are in a random order."""

    rows: Population
    strata: npt.NDArray[np.int64]

    @cached_property
    def _order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = np.argsort(self.strata, kind="stable")
        return order, np.searchsorted(self.strata[order], np.arange(self.strata.max(initial=0) + 2))

    def near(self, stratum: int, reach: int) -> Iterator[Population]:
        """Yield the networks of a stratum, then those of the strata beside it up to `reach` away."""
        order, first = self._order
        for distance in range(reach + 1):
            for other in dict.fromkeys((stratum - distance, stratum + distance)):
                if 0 <= other < len(first) - 1:
                    yield from self.rows[order[first[other] : first[other + 1]]]


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
        for i, column in enumerate(self.model.columns):
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

    @cached_property
    def _drawing(self) -> Drawing:
        return Drawing(self.model, self.budget.bounds.get("memory", (0, np.inf)))

    @cached_property
    def _box(self) -> Box:
        return self._drawing.aimed(self.budget.bounds)

    @cached_property
    def _listed(self) -> Population | None:
        """Every network inside the budget, canonical, where those are not too many."""
        if self._box.log_count > np.log(LISTED) + HOPE:
            return None
        rows = self._drawing.listed(self.budget.bounds, LISTED)
        return None if rows is None else rows[self.violations(rows) <= 0]

    def sample(self, n: int, rng: np.random.Generator, exclude: Collection[str] = frozenset()) -> list[Architecture]:
        """Return `n` distinct networks inside the budget, uniform over all of them; fewer if there are no more.

        Args:
            n: how many.
            rng: the source of randomness.
            exclude: keys of networks not to return.
        """
        return self._taken(n, self._batches({}, n, rng), exclude, PATIENCE)

    def stratified(
        self, n: int, rng: np.random.Generator, exclude: Collection[str] = frozenset()
    ) -> list[Architecture]:
        """Return `n` distinct networks inside the budget, evenly over log MACs; fewer if there are no more.

        The interval between the cheapest and the costliest is cut into `n` strata, and one network is drawn uniformly
        from each; where a stratum is empty, from what is near it.

        Args:
            n: how many.
            rng: the source of randomness.
            exclude: keys of networks not to return.
        """
        if self._reach(0) >= 1:
            return self.sample(n, rng, exclude)
        taken = set(exclude)
        found = self._chosen(self._strewn(n, rng), n, taken)
        for stratum in (s for s in range(n) if s not in found):
            drawn = self._drawn_near((stratum + 0.5) / n, 0.5 / n, rng, taken)
            if drawn is None:
                break
            found[stratum] = drawn
            taken.add(drawn.key)
        return [found[stratum] for stratum in sorted(found)]

    def _chosen(self, pool: _Strata, n: int, taken: set[str]) -> dict[int, Architecture]:
        """Return a network for each stratum: of its own first, then for what is left of those near it; names them."""
        found: dict[int, Architecture] = {}
        for reach in (0, *(max(1, round(near * n)) for near in NEAR)):
            for stratum in (s for s in range(n) if s not in found):
                near = map(self._named, pool.near(stratum, reach))
                drawn = next((a for a in near if a.key not in taken), None)
                if drawn is not None:
                    found[stratum] = drawn
                    taken.add(drawn.key)
        return found

    def _strewn(self, n: int, rng: np.random.Generator) -> _Strata:
        """Return networks all over the interval of log MACs, uniform inside each of `n` strata."""
        low, high = self._log_macs
        rows = rng.permutation(self._tilted(n, rng) if self._listed is None else self._listed)
        rows = rows[self.violations(rows) <= 0]
        places = (np.log2(np.maximum(self.model.costs(rows, ("macs",))["macs"], 1)) - low) / (high - low) * n
        return _Strata(rows, np.clip(places.astype(np.int64), 0, n - 1))

    def _tilted(self, n: int, rng: np.random.Generator) -> Population:
        """Return draws with tilts from the cheapest to the costliest, uniform inside each of `n` strata of log MACs."""
        if not self._drawing.whole:
            return np.zeros((0, len(self.table.sizes)), dtype=np.int64)
        edges = 2 ** np.linspace(*self._log_macs, n + 1)
        edges[[0, -1]] *= 1 - 1e-9, 1 + 1e-9
        draws = max(SMALLEST, EACH * n // RUNGS)
        strewn, tilts = self._drawing.strewn, map(self._tilt, range(RUNGS + 1))
        return np.concatenate([strewn(self.budget.bounds, ("macs", edges), tilt, draws, rng) for tilt in tilts])

    def draw_at(
        self, position: float, rng: np.random.Generator, exclude: Collection[str] = frozenset()
    ) -> Architecture | None:
        """Return a network inside the budget whose log MACs lie near a position between the cheapest and the costliest.

        It is drawn uniformly from a narrow band, which is widened while it is empty. None means that the space is
        exhausted.

        Args:
            position: 0 is the cheapest network, 1 the costliest.
            rng: the source of randomness.
            exclude: keys of networks not to return.
        """
        return self._drawn_near(position, NARROW, rng, exclude)

    def _drawn_near(
        self, position: float, reach: float, rng: np.random.Generator, exclude: Collection[str]
    ) -> Architecture | None:
        start = None if self._listed is not None else self._tilt(round(min(max(position, 0), 1) * RUNGS))
        reach = self._reach(reach)
        while reach < 1:
            batches = self._batches({"macs": self._macs_at(position, reach)}, 1, rng, start)
            if found := self._taken(1, batches, exclude, IMPATIENCE):
                return found[0]
            reach *= 3
        return next(iter(self.sample(1, rng, exclude)), None)

    def _reach(self, reach: float) -> float:
        """Return a part of the interval of log MACs, no finer than what tells networks apart."""
        low, high = self._log_macs
        return max(reach, FINEST / max(high - low, FINEST))

    def _macs_at(self, position: float, reach: float) -> tuple[float, float]:
        """Return the MACs `reach` below and above a position between the cheapest and the costliest network."""
        low, high = self._log_macs
        return 2 ** (low + (high - low) * (position - reach)), 2 ** (low + (high - low) * (position + reach))

    @cached_property
    def _log_macs(self) -> tuple[float, float]:
        """Log2 of the MACs of the cheapest and the costliest network inside the budget."""
        if self._listed is not None:
            macs = self.model.costs(self._listed, ("macs",))["macs"]
            low, high = float(macs.min(initial=2**62)), float(macs.max(initial=1))
        else:
            low, high = self._drawing.range_of("macs", self.budget.bounds)
        return float(np.log2(max(low, 1))), float(np.log2(max(high, 1)))

    def _tilt(self, rung: int) -> Floats:
        """Return the tilt towards one of `RUNGS` positions, found from its neighbour's nearer to the middle."""
        if rung not in self._tilts:
            inner = rung + (1 if rung < RUNGS // 2 else -1)
            start = self._box.tilted.tilt if rung == RUNGS // 2 else self._tilt(inner)
            bounds = self._bounds({"macs": self._macs_at(rung / RUNGS, NARROW)})
            self._tilts[rung] = self._drawing.aimed(bounds, start).tilted.tilt
        return self._tilts[rung]

    @cached_property
    def _tilts(self) -> dict[int, Floats]:
        return {}

    def _batches(
        self, band: Bounds, n: int, rng: np.random.Generator, start: Floats | None = None
    ) -> Iterator[Population]:
        """Yield canonical networks inside the budget and a band, uniform; where they are listed, all at once."""
        if self._listed is not None:
            yield rng.permutation(self._listed[self._within(self._listed, band)])
            return
        box = self._drawing.aimed(self._bounds(band), start) if band else self._box
        for rows in self._drawing.batches(box, n, rng):
            inside = rows[self._within(rows, band)]
            yield inside[self.violations(inside) <= 0]

    def _bounds(self, band: Bounds) -> Bounds:
        """Return the budget's bounds, narrowed to a band."""
        bounds: dict[str, tuple[float, float]] = dict(self.budget.bounds)
        for column, (low, high) in band.items():
            least, most = bounds.get(column, (0.0, np.inf))
            bounds[column] = max(low, least), min(high, most)
        return bounds

    def _within(self, rows: Population, band: Bounds) -> npt.NDArray[np.bool_]:
        inside = np.ones(len(rows), dtype=np.bool_)
        for column, (low, high) in band.items():
            values = self.model.costs(rows, (column,))[column]
            inside &= (values >= low) & (values <= high)
        return inside

    def _taken(
        self, n: int, batches: Iterable[Population], exclude: Collection[str], patience: int
    ) -> list[Architecture]:
        """Return `n` distinct networks of canonical batches; fewer after `patience` batches without a new one."""
        found: dict[bytes, Architecture] = {}
        fruitless = 0
        for rows in batches if n > 0 else ():
            before = len(found)
            for row in rows:
                architecture = self._named(row)
                if architecture.key not in exclude:
                    found[row.tobytes()] = architecture
                if len(found) == n:
                    return list(found.values())
            fruitless = 0 if len(found) > before else fruitless + 1
            if fruitless == patience:
                break
        return list(found.values())

    def _named(self, row: Population) -> Architecture:
        """Return the architecture of a canonical row; naming takes longer than drawing, so names are kept."""
        identity = row.tobytes()
        if identity not in self._names:
            self._names[identity] = self.table.named(row.tolist())
        return self._names[identity]

    @cached_property
    def _names(self) -> dict[bytes, Architecture]:
        return {}

    def repair(self, indices: Sequence[int], rng: np.random.Generator) -> Architecture:
        """Return a network inside the budget near `indices`: itself, if it keeps it.

        As few options change as can be, or about as few; where no few do, it is the nearest of many draws.

        Raises:
            BudgetError: no network inside the budget was found.
        """
        found = self._nearest(np.asarray(indices, dtype=np.int64), frozenset(), rng)
        if found is None:
            raise BudgetError(f"No network of the space was found with {self.budget}: widen it.")
        return found

    def nearest_untried(
        self, architecture: Architecture, tried: Collection[str], rng: np.random.Generator
    ) -> Architecture | None:
        """Return `architecture` or the network fewest changes away that is inside the budget and not in `tried`.

        None means that the space is exhausted.
        """
        return self._nearest(np.asarray(architecture.indices, dtype=np.int64), tried, rng)

    def _nearest(self, start: Population, tried: Collection[str], rng: np.random.Generator) -> Architecture | None:
        def accepted(rows: Population) -> Architecture | None:
            return next(iter(self._taken(1, [rows], tried, 1)), None)

        if self._listed is None or len(self._listed) > COMPARED:
            found = self._nearby.found(start, accepted, rng)
            if found is not None:
                return found
        if self._listed is not None:
            return accepted(self._by_changes(self._listed, start, rng))
        drawn = self._taken(COMPARED // 8, self._batches({}, COMPARED // 8, rng), tried, PATIENCE)
        if not drawn:
            return None
        nearest = self._by_changes(np.array([a.indices for a in drawn]), start, rng)[0]
        return reverted(nearest, start, self.violations, accepted, rng)

    @cached_property
    def _nearby(self) -> Nearest:
        return Nearest(self.model, self.budget)

    def _by_changes(self, rows: Population, start: Population, rng: np.random.Generator) -> Population:
        """Return canonical networks, nearest first; of many, only those that look nearest are compared exactly."""
        rough = (rows != self.table.canonical(start[None])).sum(axis=1)
        order = np.lexsort((rng.random(len(rows)), rough))
        first = rows[order[:COMPARED]]
        exact = np.argsort(changes(self.table, first, start), kind="stable")
        return np.concatenate([first[exact], rows[order[COMPARED:]]])

    def baselines(self, limit: int) -> list[Architecture]:
        """Return the costliest uniform networks that fit, evenly over the decompositions, at most `limit`.

        A uniform network has one operator everywhere, all widths at one rank and all depths at one rank.
        """
        if limit == 0:
            return []
        out: dict[str, Architecture] = {}
        ranked = [self._ranked(operator) for operator in operators(self.table)]
        for position in range(max(map(len, ranked), default=0)):
            for candidates in ranked:
                if position < len(candidates) and len(out) < limit:
                    out.setdefault(candidates[position].key, candidates[position])
        return list(out.values())

    def _ranked(self, operator: str) -> list[Architecture]:
        """Return the uniform networks of one operator inside the budget, costliest first."""
        population = uniform(self.table, operator)
        inside = population[self.violations(population) <= 0]
        order = np.argsort(-self.model.costs(inside, ("macs",))["macs"], kind="stable")
        return self._taken(len(order), [self.table.canonical(inside[order])], frozenset(), 1)
