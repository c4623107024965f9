"""Regularised evolution: a mutation of the best of a few of the youngest networks (Real et al., AAAI 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

from bsconv_nas.search.table_sampler import Floats, History, TableSampler
from bsconv_nas.search.variation import admitted, mutated
from bsconv_nas.space.sampling import FeasibleSet

__all__ = ["EvolutionSampler", "ranking"]

TRIES = 64  # mutations of one size from which a feasible and untried one is taken
CHANGES = 4  # dimensions that a mutation changes at most, where smaller ones lead nowhere new


class EvolutionSampler(TableSampler):
    """Regularised evolution (https://arxiv.org/abs/1802.01548) over the feasible networks.

    The population are the last finished trials: a network leaves it by age, however good it was, so that one lucky
    training does not breed for ever. With several objectives a tournament is won by non-dominated rank, then by
    crowding distance, costs counted in octaves: the two need no reference point, and ageing needs no archive.

    Args:
        feasible: the networks inside the budget.
        population: how many of the last finished trials may breed.
        tournament: how many of them are drawn; the best breeds.
        seed: of the generator.
    """

    def __init__(
        self, *, feasible: FeasibleSet, population: int = 50, tournament: int = 10, seed: int | None = None
    ) -> None:
        if not 1 <= tournament <= population:
            raise ValueError(f"tournament must be at least 1 and at most the population, {population}: {tournament}")
        super().__init__(feasible=feasible, seed=seed)
        self._population, self._tournament = population, tournament

    def choose(self, history: History, rng: np.random.Generator) -> Sequence[int] | None:
        """Return a mutation of the winner of a tournament."""
        alive = history.finished[-self._population :]
        if len(alive) == 0:
            return None
        places = ranking(history.targets(self.feasible)[-self._population :])
        drawn = rng.choice(len(alive), size=min(self._tournament, len(alive)), replace=False)
        parent = history.rows[alive[drawn[places[drawn].argmin()]]]
        for changes in range(1, CHANGES + 1):
            copies = np.repeat(parent[None], TRIES, axis=0)
            children = mutated(copies, self.feasible.table.sizes, np.full(TRIES, changes), rng)
            found = admitted(self.feasible, children, history.tried)
            if len(found):
                return [int(index) for index in found[0]]
        return None


def ranking(targets: Floats) -> npt.NDArray[np.int64]:
    """Return the place of each network, 0 for the best, by non-dominated rank and then crowding distance, shape (n,).

    Args:
        targets: objectives, more is better, shape (n, m).

    >>> ranking(np.array([[0.0, 2.0], [1.0, 1.0], [0.9, 0.9], [2.0, 0.0]])).tolist()
    [0, 2, 3, 1]
    """
    ranks = moocore.pareto_rank(targets, maximise=True)
    crowding = np.zeros(len(targets))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        crowding[members] = _crowding(targets[members])
    order = np.lexsort((-crowding, ranks))
    places = np.empty(len(targets), dtype=np.int64)
    places[order] = np.arange(len(targets))
    return places


def _crowding(targets: Floats) -> Floats:
    """Return how far the neighbours of each member of one rank lie apart over all objectives, shape (n,)."""
    out = np.zeros(len(targets))
    for values in targets.T:
        order = values.argsort(kind="stable")
        spread = values[order[-1]] - values[order[0]] or 1.0
        out[order[[0, -1]]] = np.inf
        out[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
    return out
