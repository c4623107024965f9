"""Sums, moments, bounds, lists and draws over the options of a space, against its enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsconv_nas.cost.analytic import ADDITIVE, CostModel
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.drawing import Drawing
from bsconv_nas.space.elimination import Elimination, Factor, Floats
from bsconv_nas.space.table import Population, Table

UNBOUNDED = np.full(2, -np.inf), np.full(2, np.inf)


@pytest.fixture(scope="session")
def distinct(table: Table, everything: Population) -> Population:
    """Every network of a small space once."""
    return np.unique(table.canonical(everything), axis=0)


@pytest.fixture(scope="session")
def costs(model: CostModel, distinct: Population) -> Floats:
    """MACs and parameters of every network, shape (2, n)."""
    found = model.costs(distinct, ADDITIVE)
    return np.array([found[column] for column in ADDITIVE], dtype=np.float64)


@pytest.fixture(scope="session")
def elimination(model: CostModel) -> Elimination:
    return Drawing(model).elimination


def tilts(costs: Floats) -> list[Floats]:
    """None, towards cheap and dear networks, and towards cheap but large ones; in standard deviations."""
    return [np.array(t) / costs.std(axis=1) for t in ([0.0, 0.0], [1.5, 0.0], [-1.0, 0.0], [2.0, -1.0], [-40.0, 3.0])]


def test_the_sum_of_all_weights_is_that_of_an_enumeration(elimination: Elimination, costs: Floats) -> None:
    for tilt in tilts(costs):
        expected = np.logaddexp.reduce(-tilt @ costs)
        assert elimination.tilted(tilt).log_total == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_without_a_tilt_networks_are_counted(elimination: Elimination, table: Table, distinct: Population) -> None:
    total = elimination.tilted(np.zeros(2)).log_total
    assert total == pytest.approx(np.log(count_networks(table)))
    assert count_networks(table) == len(distinct)


def test_moments_are_those_of_weighted_networks(elimination: Elimination, costs: Floats) -> None:
    for tilt in tilts(costs):
        weights = np.exp(-tilt @ costs - (-tilt @ costs).max())
        weights /= weights.sum()
        mean, spread = elimination.moments(elimination.tilted(tilt))
        off = costs - (costs @ weights)[:, None]
        scale = costs.std(axis=1)
        np.testing.assert_allclose(mean, costs @ weights, rtol=1e-9)
        np.testing.assert_allclose(
            spread / np.outer(scale, scale), (off * weights) @ off.T / np.outer(scale, scale), atol=1e-9
        )


def test_bounds_are_the_ends_of_an_enumeration(elimination: Elimination, costs: Floats) -> None:
    least, most = elimination.bounds()
    np.testing.assert_array_equal(least, costs.min(axis=1))
    np.testing.assert_array_equal(most, costs.max(axis=1))


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.3, 0.31), (0.9, 1.0), (0.0, 0.02)])
def test_what_is_listed_are_all_networks_inside_once(
    model: CostModel, distinct: Population, costs: Floats, ends: tuple[float, float]
) -> None:
    """In a band of MACs and below the median of the parameters."""
    low, high = np.quantile(costs[0], ends)
    bounds = {"macs": (low, high), "params": (0.0, float(np.median(costs[1])))}
    inside = (costs[0] >= low) & (costs[0] <= high) & (costs[1] <= bounds["params"][1])
    listed = Drawing(model).listed(bounds, len(distinct) + 1)
    assert listed is not None
    assert sorted(map(tuple, listed)) == sorted(map(tuple, distinct[inside]))


def test_no_list_is_longer_than_allowed(elimination: Elimination, distinct: Population) -> None:
    assert elimination.listed(*UNBOUNDED, len(distinct) - 1) is None
    listed = elimination.listed(*UNBOUNDED, len(distinct) * 1000)
    assert listed is not None
    assert listed.shape[1] == len(distinct)


def test_draws_follow_their_weights(model: CostModel, distinct: Population, costs: Floats) -> None:
    """Pearson's statistic over single networks, in standard deviations of its own."""
    drawing = Drawing(model)
    elimination, n = drawing.elimination, 40 * len(distinct)
    tilt = tilts(costs)[3]
    values = np.zeros((len(elimination.variables), n), dtype=np.int64)
    added = elimination.draw(elimination.tilted(tilt), values, range(len(values)), np.random.default_rng(0))
    rows = drawing._rows(values)
    found = model.costs(rows, ADDITIVE)
    np.testing.assert_allclose(added + elimination.constant[:, None], [found[column] for column in ADDITIVE])
    expected = n * np.exp(-tilt @ costs - np.logaddexp.reduce(-tilt @ costs))
    unique, counts = np.unique(np.concatenate([distinct, rows]), axis=0, return_counts=True)
    assert len(unique) == len(distinct)
    often = expected > 5
    statistic = float(((counts - 1 - expected) ** 2 / expected)[often].sum())
    assert abs(statistic - often.sum()) < 5 * np.sqrt(2 * often.sum())


def chain(sizes: list[int], seed: int, owners: bool = False) -> list[Factor]:
    """Random tables over neighbouring variables, with holes."""
    rng = np.random.default_rng(seed)
    pairs = list(zip(range(len(sizes)), range(1, len(sizes)), strict=False))
    return [
        Factor(
            ("cost", i if owners else 0),
            ((a, 0), (b, 0)),
            rng.random((sizes[a], sizes[b])) < 0.8,
            rng.integers(0, 50, (2, sizes[a], sizes[b])).astype(float),
        )
        for i, (a, b) in enumerate(pairs)
    ]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(2, 4), min_size=2, max_size=5), seed=st.integers(0, 10**6), closed=st.booleans())
def test_any_tables_sum_and_list_as_their_enumeration(sizes: list[int], seed: int, closed: bool) -> None:
    """Chains and rings of tables with holes; sometimes nothing is allowed at all."""
    factors = chain([*sizes, sizes[0]] if closed else sizes, seed)
    factors = [
        Factor(f.owner, tuple((v % len(sizes), k) for v, k in f.scope), f.support, f.costs)
        for f in factors
        if len({v % len(sizes) for v, _ in f.scope}) == 2
    ]
    grid = np.indices(sizes).reshape(len(sizes), -1)
    allowed = np.all([f.support[tuple(grid[v] for v, _ in f.scope)] for f in factors], axis=0)
    costs = sum(f.costs[:, *(grid[v] for v, _ in f.scope)] for f in factors)[:, allowed]
    elimination = Elimination(factors, 2)
    tilt = np.array([0.1, -0.05])
    expected = np.logaddexp.reduce(-tilt @ costs) if allowed.any() else -np.inf
    assert elimination.tilted(tilt).log_total == pytest.approx(expected, rel=1e-9, abs=1e-9)
    listed = elimination.listed(np.array([20.0, -np.inf]), np.array([90.0, np.inf]), 10**6)
    assert listed is not None
    inside = (costs[0] >= 20) & (costs[0] <= 90)
    order = [v for v, _ in elimination.variables]
    wanted = grid[order][:, allowed][:, inside] if allowed.any() else np.zeros((len(order), 0))
    assert sorted(map(tuple, listed.T)) == sorted(map(tuple, wanted.T))


def test_tables_that_would_get_too_large_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner at a time, and as few as possible: a ring of three falls apart, the rest stays."""
    monkeypatch.setattr("bsconv_nas.space.elimination.LARGEST", 20)
    ring = [Factor(("cost", i), ((a, 0), (b, 0)), np.ones((4, 4), bool), np.ones((2, 4, 4))) for i, (a, b) in RING]
    elimination = Elimination(ring, 2)
    assert len(elimination.kept) == 3
    assert elimination.tilted(np.zeros(2)).log_total == pytest.approx(np.log(4**4))


RING = list(enumerate([(0, 1), (1, 2), (0, 2), (2, 3)]))
