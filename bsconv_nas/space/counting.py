"""Which rows stand for distinct networks, as a product of small factors, and how many there are, exactly.

The count is a sum over all rows of that product; variables are eliminated one after the other (bucket elimination) with
Python's unbounded integers. Options of an operator dimension differ if they do at one of its places: a chain of
variables, one a place, holds which of them are still alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bsconv_nas.space.table import Table

__all__ = ["canonical_factors", "count_networks"]

Counts = npt.NDArray[np.object_]
Variable = tuple[int, int]  # the option of dimension d: (d, 0); what is alike after k places of an operator's: (d, k)
Factor = tuple[tuple[Variable, ...], Counts]
Classes = tuple[int, ...]  # of each option; alike options have equal numbers


def count_networks(table: Table) -> int:
    """Return the number of distinct networks: what is masked by depth or means the same counts once.

    >>> from bsconv_nas.space.graph import Graph
    >>> from bsconv_nas.space.table import Dimension
    >>> graph = Graph((), (), (), (), (3, 8, 8), 10)
    >>> count_networks(Table(graph, (Dimension("depth.a", "depth", (0, 1, 2), ()),)))
    3
    """
    factors = [factor for index in range(len(table.dimensions)) for factor in canonical_factors(table, index)]
    while pending := {variable for scope, _ in factors for variable in scope}:
        chosen = min(sorted(pending), key=lambda v: _product_size(_touching(factors, v)))
        touching = _touching(factors, chosen)
        factors = [factor for factor in factors if chosen not in factor[0]] + [_eliminate(touching, chosen)]
    return math.prod(int(values.item()) for _, values in factors)


def canonical_factors(table: Table, index: int) -> list[Factor]:
    """Return factors whose product, summed over all but options, is 1 where that of a dimension is canonical, else 0.

    Each is 0 or 1, and at most one value of the variables that are no options allows all of them.
    """
    operator = table.dimensions[index].kind == "conv"
    found = _operator_factors(table, index) if operator else [_canonical_factor(table, index)]
    return [_without_constants(factor) for factor in found]


def _without_constants(factor: Factor) -> Factor:
    """Return a factor without the variables of one value, of which there may be more than an array has axes."""
    scope, values = factor
    return tuple(v for v, size in zip(scope, values.shape, strict=True) if size > 1), np.asarray(
        values.squeeze(), dtype=object
    )


def _touching(factors: Sequence[Factor], variable: Variable) -> list[Factor]:
    return [factor for factor in factors if variable in factor[0]]


def _product_size(factors: Sequence[Factor]) -> int:
    sizes = {v: size for scope, values in factors for v, size in zip(scope, values.shape, strict=True)}
    return math.prod(sizes.values())


def _eliminate(factors: Sequence[Factor], variable: Variable) -> Factor:
    """Return the sum over `variable` of the product of the factors."""
    scope = tuple(sorted({v for s, _ in factors for v in s}))
    product: Counts = np.ones((), dtype=object)
    for own, values in factors:
        order = sorted(range(len(own)), key=own.__getitem__)
        sizes = dict(zip(own, values.shape, strict=True))
        product = product * values.transpose(order).reshape([sizes.get(v, 1) for v in scope])
    axis = scope.index(variable)
    return tuple(v for v in scope if v != variable), np.asarray(product.sum(axis=axis), dtype=object)


def _canonical_factor(table: Table, index: int) -> Factor:
    """Return 1 where the option of a dimension that chooses no operator is canonical, else 0, over what decides it."""
    members = table.dimensions[index].members
    scope = sorted({index, *(d for member in members for d in table.deciding(index, member))})
    sizes = [len(table.dimensions[d].options) for d in scope]
    rows = np.zeros((math.prod(sizes), len(table.dimensions)), dtype=np.int64)
    rows[:, scope] = list(np.ndindex(*sizes))
    counts = (table.canonical_option(rows, index) == rows[:, index]).astype(object)
    return tuple((d, 0) for d in scope), counts.reshape(sizes)


def _operator_factors(table: Table, index: int) -> Iterator[Factor]:
    """Yield the chain of an operator dimension, which of its options are alike, and at its end which stand for them."""
    options = range(len(table.dimensions[index].options))
    before: list[Classes] = [(0,) * len(options)]
    places = dict.fromkeys(_place(table, node) for node in table.dimensions[index].members)  # equal ones once
    for k, (scope, shape, cells) in enumerate(places, 1):
        after = sorted({_refined(old, cell) for old in before for cell in cells})
        values: Counts = np.zeros((len(before), len(cells), len(after)), dtype=object)
        for i, old in enumerate(before):
            for j, cell in enumerate(cells):
                values[i, j, after.index(_refined(old, cell))] = 1
        yield ((index, k), *((d, 0) for d in scope), (index, k + 1)), values.reshape(len(before), *shape, len(after))
        before = after
    firsts = [[int(classes.index(classes[option]) == option) for option in options] for classes in before]
    yield ((index, len(places) + 1), (index, 0)), np.array(firsts, dtype=object)


def _place(table: Table, node: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Classes, ...]]:
    """Return the dimensions that matter to a place's options, their sizes, and its classes in each cell."""
    block = table.graph.nodes[node].block
    depth = None if block is None else table.depth_dimension.get(block)
    scope = *table.meaning_dimensions(node), *(() if depth is None else (depth,))
    shape = tuple(len(table.dimensions[d].options) for d in scope)
    rows = np.zeros((math.prod(shape), len(table.dimensions)), dtype=np.int64)
    rows[:, scope] = list(np.ndindex(*shape))
    meanings = table.meanings(rows, node) * table.alive(rows, block)[:, None]
    return scope, shape, tuple(_refined(row, row) for row in meanings.tolist())


def _refined(first: Sequence[int], second: Sequence[int]) -> Classes:
    """Return the classes of options that are alike in both."""
    pairs = list(zip(first, second, strict=True))
    return tuple(pairs.index(pair) for pair in pairs)
