"""Plain random search: the yardstick of every sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bsconv_nas.search.table_sampler import History, TableSampler

__all__ = ["UniformSampler"]

TRIES = 20  # draws before what was tried is left out by name, which takes longer


class UniformSampler(TableSampler):
    """Draws uniformly over the distinct feasible networks and learns nothing; it is random from its first proposal."""

    def choose(self, history: History, rng: np.random.Generator) -> Sequence[int] | None:
        """Return an untried network."""
        for _ in range(TRIES):
            drawn = self.feasible.sample(1, rng)[0]
            if np.array(drawn.indices, dtype=np.int64).tobytes() not in history.tried:
                return drawn.indices
        return None
