"""How many distinct networks a space has, exactly.

Given widths and depths, operators are chosen independently, so the count is a sum over widths and depths of a product
of small factors; variables are eliminated one after the other (bucket elimination) with Python's unbounded integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bsconv_nas.space.table import Table

__all__ = ["count_networks"]

Counts = npt.NDArray[np.object_]
Factor = tuple[tuple[int, ...], Counts]


def count_networks(table: Table) -> int:
    """Return the number of distinct networks: what is masked by depth or means the same counts once.

    >>> from bsconv_nas.space.table import Dimension, Graph
    >>> graph = Graph((), (), (), (), (3, 8, 8), 10)
    >>> count_networks(Table(graph, (Dimension("depth.a", "depth", (0, 1, 2), ()),)))
    3
    """
    factors = [_distinct(table, index) for index in range(len(table.dimensions))]
    pending = {i for i, d in enumerate(table.dimensions) if d.kind != "conv"}
    while pending:
        variable = min(pending, key=lambda v: _cost(table, _joined(factors, v)))
        touching = [factor for factor in factors if variable in factor[0]]
        factors = [factor for factor in factors if variable not in factor[0]] + [_eliminate(touching, variable)]
        pending.remove(variable)
    return math.prod(int(values.item()) for _, values in factors)


def _joined(factors: list[Factor], variable: int) -> set[int]:
    return {v for scope, _ in factors if variable in scope for v in scope}


def _cost(table: Table, scope: Iterable[int]) -> int:
    return math.prod(len(table.dimensions[v].options) for v in scope)


def _eliminate(factors: list[Factor], variable: int) -> Factor:
    """Return the sum over `variable` of the product of the factors."""
    scope = tuple(sorted({v for s, _ in factors for v in s}))
    product: Counts = np.ones((), dtype=object)
    for own, values in factors:
        shape = [values.shape[own.index(v)] if v in own else 1 for v in scope]
        product = product * values.reshape(shape)
    axis = scope.index(variable)
    return tuple(v for v in scope if v != variable), np.asarray(product.sum(axis=axis), dtype=object)


def _distinct(table: Table, index: int) -> Factor:
    """Return how many options of a dimension differ, over the widths and depths that decide it.

    For a width or depth dimension itself, the factor is 1 for the canonical option and 0 for its doubles.
    """
    dimension = table.dimensions[index]
    scope = tuple(sorted(_context(table, index)))
    sizes = [len(table.dimensions[v].options) for v in scope]
    cells = np.array(list(np.ndindex(*sizes)), dtype=np.int64).reshape(-1, len(scope))
    rows = np.zeros((len(cells), len(table.dimensions)), dtype=np.int64)
    rows[:, list(scope)] = cells
    if dimension.kind == "conv":
        counts = np.zeros(len(cells), dtype=np.int64)
        for option in range(len(dimension.options)):
            rows[:, index] = option
            counts += table.canonical_option(rows, index) == option
    else:
        counts = (table.canonical_option(rows, index) == rows[:, index]).astype(np.int64)
    return scope, counts.astype(object).reshape(sizes)


def _context(table: Table, index: int) -> set[int]:
    """Return the widths and depths that decide which options of a dimension differ, itself if it is one of them."""
    dimension = table.dimensions[index]
    found = set() if dimension.kind == "conv" else {index}
    for member in dimension.members if dimension.kind != "depth" else ():
        block = table.graph.groups[member].block if dimension.kind == "width" else table.graph.nodes[member].block
        found.add(table.depth_dimension.get(block, -1) if block is not None else -1)
        if dimension.kind == "conv":
            found.add(table.width_dimension.get(table.input_group(member), -1))
    return found - {-1}
