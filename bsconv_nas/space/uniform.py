"""Uniform networks: one operator everywhere, all widths at one rank and all depths at one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bsconv_nas.space.table import Dimension, Population, Table

__all__ = ["operators", "uniform"]


def operators(table: Table) -> list[str]:
    """Return the operators that are an option anywhere; "regular" where none is searched."""
    options = [d.options for d in table.dimensions if d.kind == "conv"]
    return list(dict.fromkeys(str(option) for row in options for option in row)) or ["regular"]


def uniform(table: Table, operator: str) -> Population:
    """Return rows with `operator` wherever it is an option, at every pair of width rank and depth rank, shape (n, D).

    Elsewhere the base's own option stands, or what is nearest to it; so do the base's kernels and expansions.
    """
    return np.array(list(_rows(table, operator)), dtype=np.int64).reshape(-1, len(table.sizes))


def _rows(table: Table, operator: str) -> Iterator[list[int]]:
    ranks = {
        kind: max((len(d.options) for d in table.dimensions if d.kind == kind), default=1)
        for kind in ("width", "depth")
    }
    for width in range(ranks["width"]):
        for depth in range(ranks["depth"]):
            yield [_at_rank(d, operator, {"width": width, "depth": depth}) for d in table.dimensions]


def _at_rank(dimension: Dimension, operator: str, ranks: Mapping[str, int]) -> int:
    """Return the index of `operator`, or of the option that is as many places below the largest as its kind's rank."""
    if dimension.kind not in ranks:
        return dimension.index_of(operator)
    order = np.argsort([-float(option) for option in dimension.options], kind="stable")
    return int(order[min(ranks[dimension.kind], len(order) - 1)])
