"""Mutation and crossover of networks, kept inside the budget and away from what is known; whole populations at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from bsconv_nas.search.table_sampler import identities
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Population

__all__ = ["admitted", "crossed", "mutated"]


def mutated(
    rows: Population, sizes: npt.NDArray[np.int64], changes: npt.NDArray[np.int64], rng: np.random.Generator
) -> Population:
    """Return each network with another option in `changes` of its dimensions.

    Args:
        rows: option indices, shape (n, D).
        sizes: options of each dimension, shape (D,); those with one never change.
        changes: of each row, shape (n,); all dimensions with a choice where it is more.
        rng: the source of randomness.

    >>> rows = np.zeros((4, 3), dtype=np.int64)
    >>> out = mutated(rows, np.array([2, 1, 5]), np.array([1, 1, 2, 9]), np.random.default_rng(0))
    >>> (out > 0).sum(axis=1).tolist(), int(out[:, 1].max())
    ([1, 1, 2, 2], 0)
    """
    order = rng.random(rows.shape)
    order[:, sizes == 1] = 2.0
    chosen = order.argsort(axis=1).argsort(axis=1) < changes[:, None]
    shifts = rng.integers(1, np.maximum(sizes, 2), size=rows.shape)
    return np.where(chosen, (rows + shifts) % sizes, rows)


def crossed(first: Population, second: Population, rng: np.random.Generator) -> Population:
    """Return networks that have each option from one of two parents, shape (n, D)."""
    return np.where(rng.random(first.shape) < 0.5, first, second)


def admitted(feasible: FeasibleSet, rows: Population, known: Collection[bytes]) -> Population:
    """Return the networks inside the budget, canonical, each once and none of `known`, in their order, shape (n', D).

    Args:
        feasible: the networks inside the budget.
        rows: option indices, shape (n, D).
        known: identities of canonical rows not to return.
    """
    inside = feasible.table.canonical(rows[feasible.violations(rows) <= 0])
    first = {identity: i for i, identity in reversed(list(enumerate(identities(inside)))) if identity not in known}
    return inside[sorted(first.values())]
