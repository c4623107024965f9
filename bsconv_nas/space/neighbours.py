"""What is near a network: rows a change away, how many changes lie between two, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bsconv_nas.space.table import Architecture, Population, Table

__all__ = ["changes", "neighbours", "reverted"]

Violations = Callable[[Population], npt.NDArray[np.float64]]
Accepted = Callable[[Population], Architecture | None]


def neighbours(rows: Population, sizes: npt.NDArray[np.int64]) -> Population:
    """Return every row that differs in one dimension from one of `rows`, shape (n * changes, D).

    >>> neighbours(np.array([[0, 1]]), np.array([3, 2])).tolist()
    [[1, 1], [2, 1], [0, 0]]
    """
    dimensions = np.repeat(np.arange(len(sizes)), sizes - 1)
    shifts = np.concatenate([np.arange(1, size) for size in sizes])
    out = np.repeat(rows[:, None], len(dimensions), axis=1)
    out[:, np.arange(len(dimensions)), dimensions] += shifts
    return np.asarray((out % sizes).reshape(-1, len(sizes)))


def changes(table: Table, rows: Population, start: Population) -> npt.NDArray[np.int64]:
    """Return in how many dimensions each canonical row differs from `start` so that it makes another network, (n,)."""
    count = np.zeros(len(rows), dtype=np.int64)
    for index in range(len(table.sizes)):
        other = rows.copy()
        other[:, index] = start[index]
        count += table.canonical_option(other, index) != rows[:, index]
    return count


def reverted(
    row: Population, start: Population, violations: Violations, accepted: Accepted, rng: np.random.Generator
) -> Architecture | None:
    """Return the accepted network that is left of a row when what differs from `start` and need not is taken back."""
    found = accepted(row[None])
    while True:
        differing = np.flatnonzero(row != start)
        nearer = np.repeat(row[None], len(differing), axis=0)
        nearer[np.arange(len(differing)), differing] = start[differing]
        nearer = rng.permutation(nearer[violations(nearer) <= 0])
        kept = next(((r, a) for r in nearer if (a := accepted(r[None])) is not None), None)
        if kept is None:
            return found
        row, found = kept
