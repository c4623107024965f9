"""Random networks spread evenly over log MACs: how every search starts, and a yardstick for samplers.

Networks drawn uniformly pile up at middling costs; drawn evenly over log MACs they show the whole range of a front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bsconv_nas.search.table_sampler import History, TableSampler, identities
from bsconv_nas.space.sampling import FeasibleSet

__all__ = ["StratifiedSampler", "position"]

TRIES = 20  # draws before what was tried is left out by name, which takes longer


def position(seed: int, count: int) -> float:
    """Return where draw `count` of a sequence lies in [0, 1): van der Corput's in base 2, shifted by the seed.

    Any first n positions leave no gap wider than 2/n, so that a start of any length covers the range.

    >>> [round(position(0, n) - position(0, 0), 3) % 1 for n in range(4)]
    [0.0, 0.5, 0.25, 0.75]
    """
    bits = f"{count:b}"[::-1]
    shift = np.random.default_rng((seed, 0)).random()
    return float((int(bits, 2) / 2 ** len(bits) + shift) % 1.0)


class StratifiedSampler(TableSampler):
    """Draws evenly over log MACs and learns nothing."""

    def __init__(self, *, feasible: FeasibleSet, seed: int | None = None) -> None:
        super().__init__(feasible=feasible, seed=seed)
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed

    def choose(self, history: History, rng: np.random.Generator) -> Sequence[int] | None:
        """Return a network at the next position; every trial of the study counts as a draw."""
        place = position(self._seed, len(history.rows))
        for _ in range(TRIES):
            drawn = self.feasible.draw_at(place, rng)
            if drawn is not None and identities(np.array([drawn.indices]))[0] not in history.tried:
                return drawn.indices
        tried = {self.feasible.table.named(row).key for row in history.rows.tolist()}
        found = self.feasible.draw_at(place, rng, tried)
        return None if found is None else found.indices
