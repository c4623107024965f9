"""What lies near a network: counted and taken back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_spaces import drawn, traced

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.neighbours import changes, neighbours, reverted
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Population, Table

LARGE = CostModel(traced(lambda: cifar_resnet(20), widths=[0.5, 0.75, 1.0, 1.5]))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), data=st.data())
def test_neighbours_are_all_rows_one_change_away(sizes: list[int], data: st.DataObject) -> None:
    row = np.array([[data.draw(st.integers(0, n - 1)) for n in sizes]])
    rows = np.indices(sizes).reshape(len(sizes), -1).T
    found = neighbours(row, np.array(sizes))
    assert sorted(map(tuple, found)) == sorted(map(tuple, rows[(rows != row).sum(axis=1) == 1]))


def test_changes_are_those_that_make_another_network(table: Table, everything: Population) -> None:
    """By enumeration: of the rows of a network the one nearest to the start."""
    keys = np.array([a.key for a in table.architectures(everything)])
    for start in np.random.default_rng(0).integers(0, len(everything), 3):
        apart = (everything != everything[start]).sum(axis=1)
        some = np.unique(table.canonical(drawn(table, 60)), axis=0)
        nearest = [apart[keys == a.key].min() for a in table.architectures(some)]
        np.testing.assert_array_equal(changes(table, some, everything[start]), nearest)


def accepted(rows: Population) -> Architecture | None:
    return next(iter(LARGE.table.architectures(rows)), None)


def feasible(share: float) -> FeasibleSet:
    costs = LARGE.costs(drawn(LARGE.table, 1000))["macs"]
    return FeasibleSet(LARGE, Budget(macs=[int(np.quantile(costs, share)), int(np.quantile(costs, share + 0.02))]))


@pytest.mark.parametrize("seed", range(5))
def test_what_need_not_differ_is_taken_back(seed: int) -> None:
    """Taking back any one change more would leave the budget."""
    inside = feasible(0.1)
    start = drawn(LARGE.table, 1, seed)[0]
    far = np.array(inside.sample(1, np.random.default_rng(seed))[0].indices)
    found = reverted(far, start, inside.violations, accepted, np.random.default_rng(seed))
    assert found is not None
    assert inside.violations(np.array([found.indices]))[0] == 0
    assert changes(LARGE.table, np.array([found.indices]), start)[0] < changes(LARGE.table, far[None], start)[0]
