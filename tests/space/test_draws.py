"""How networks inside a budget are drawn: evenly over all of them, evenly over log MACs, and near a position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import S, small_resnet, traced
from test_sampling import FREE, LARGE, band, costs_of, rng

from bsconv_nas.cost.analytic import ADDITIVE, CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Population


def networks_inside(model: CostModel, everything: Population, budget: Budget) -> Population:
    """Every network of a small space inside a budget, once."""
    distinct = np.unique(model.table.canonical(everything), axis=0)
    return distinct[budget.feasible(model.costs(distinct))]


# A budget of a small space, by quantiles; none stands for no bound.
BUDGETS = {
    "none": {},
    "band": {"macs": (0.3, 0.6)},
    "several": {"macs": (0.1, 0.9), "params": (0.0, 0.7), "memory": (0.0, 0.8)},
}


def budget_of(model: CostModel, everything: Population, kind: str) -> Budget:
    costs = model.costs(everything)
    ends = {c: np.quantile(costs[c], ends).astype(int).tolist() for c, ends in BUDGETS[kind].items()}
    return Budget(**ends)


@pytest.mark.parametrize("kind", BUDGETS)
def test_samples_are_uniform_over_all_networks_inside(model: CostModel, everything: Population, kind: str) -> None:
    """Total variation of every dimension, and how often each network is the first of a sample."""
    budget = budget_of(model, everything, kind)
    networks = networks_inside(model, everything, budget)
    feasible, generator = FeasibleSet(model, budget), rng()
    drawn_rows = np.array([a.indices for _ in range(40) for a in feasible.sample(50, generator)])
    for d, size in enumerate(model.table.sizes):
        shares = [np.bincount(rows[:, d], minlength=size) / len(rows) for rows in (drawn_rows, networks)]
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.1, model.table.names[d]
    firsts = np.array([feasible.sample(1, generator)[0].indices for _ in range(400)])
    _, counts = np.unique(np.concatenate([networks, firsts]), axis=0, return_counts=True)
    assert len(counts) == len(networks)
    expected, freedom = 400 / len(networks), len(networks) - 1
    assert abs(((counts - 1 - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_space_of_many_networks_is_sampled_as_its_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """9,984 of 196,608 rows, not listed but drawn, in a band of MACs and below bounds on the rest."""
    model = CostModel(traced(small_resnet, operators=[*S, "bsconv_u"], widths=[0.5, 1.0], scope="block"))
    grid = np.stack(np.unravel_index(range(int(np.prod(model.table.sizes))), model.table.sizes), axis=1)
    budget = budget_of(model, grid, "several")
    networks = networks_inside(model, grid, budget)
    feasible = FeasibleSet(model, budget)
    monkeypatch.setattr("bsconv_nas.space.sampling.LISTED", 1)
    rows = np.array([a.indices for a in feasible.sample(min(2000, len(networks) // 4), rng())])
    for d, size in enumerate(model.table.sizes):
        shares = [np.bincount(r[:, d], minlength=size) / len(r) for r in (rows, networks)]
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.1, model.table.names[d]


@pytest.fixture(scope="module")
def many() -> tuple[CostModel, Population]:
    """A space of 67,200 networks, and all of them."""
    operators = ["regular", "dsc", "bsconv_u", "bsconv_s"]
    table = traced(lambda: cifar_resnet(14), operators=operators, widths=[0.5, 1.0], scope="block")
    grid = np.stack(np.unravel_index(range(int(np.prod(table.sizes))), table.sizes), axis=1)
    networks = grid[(table.canonical(grid) == grid).all(axis=1)]
    assert len(networks) == count_networks(table) == 67_200
    return CostModel(table), networks


@pytest.mark.parametrize(
    "ends",
    [
        {"macs": (0.0, 0.3)},
        {"macs": (0.4, 0.6)},
        {"params": (0.0, 0.1)},
        {"macs": (0.3, 0.7), "params": (0.2, 0.5)},
        {"macs": (0.0, 0.5), "memory": (0.0, 0.5)},
    ],
    ids=["an upper bound", "a band", "few parameters", "two bands", "two upper bounds"],
)
def test_samples_of_tens_of_thousands_are_those_of_an_enumeration(
    many: tuple[CostModel, Population], ends: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn, not listed: total variation of every dimension, and of how the costs are spread."""
    model, networks = many
    costs = model.costs(networks)
    bounds = {
        c: [int(np.quantile(costs[c], low)) if low else 0, int(np.quantile(costs[c], high))]
        for c, (low, high) in ends.items()
    }
    inside = Budget(**bounds).feasible(costs)
    monkeypatch.setattr("bsconv_nas.space.sampling.LISTED", 1)
    monkeypatch.setattr("bsconv_nas.space.sampling.HOPE", 0.0)
    feasible = FeasibleSet(model, Budget(**bounds))
    rows = np.array([a.indices for a in feasible.sample(2000, rng())])
    assert feasible._listed is None
    assert len(rows) == 2000 < inside.sum() / 2
    for d, size in enumerate(model.table.sizes):
        shares = [np.bincount(r[:, d], minlength=size) / len(r) for r in (rows, networks[inside])]
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.05, model.table.names[d]
    for column, values in model.costs(rows, ADDITIVE).items():
        tenths = np.quantile(costs[column][inside], np.linspace(0.1, 0.9, 9))
        shares = [
            np.bincount(np.searchsorted(tenths, v), minlength=10) / len(v) for v in (values, costs[column][inside])
        ]
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.1, column


def positions(feasible: FeasibleSet, networks: list[Architecture]) -> np.ndarray:
    """Where networks lie between the cheapest and the costliest, in log MACs, sorted."""
    low, high = feasible._log_macs
    return np.sort((np.log2(costs_of(feasible.model, networks)["macs"]) - low) / (high - low))


@pytest.mark.parametrize(
    "budget", [Budget(), band(LARGE, 0.0, 0.3), band(LARGE, 0.3, 0.35), Budget(macs="400K", params="20K")], ids=str
)
def test_stratified_draws_lie_evenly_over_log_macs(budget: Budget) -> None:
    """Each stratum has one network, or one from beside it, and no two lie further apart than two strata and a bit."""
    feasible = FeasibleSet(LARGE, budget)
    networks = feasible.stratified(64, rng())
    assert len({a.key for a in networks}) == len(networks) == 64
    assert (feasible.violations(np.array([a.indices for a in networks])) <= 0).all()
    found = positions(feasible, networks)
    distance = np.abs(found - (np.arange(64) + 0.5) / 64).max()  # Kolmogorov and Smirnov's, but for half a stratum
    assert distance < 0.05
    assert np.diff(found).max() < 0.1


def test_uniform_draws_are_not_even() -> None:
    """The same measure on plain samples: they pile up in the middle."""
    feasible = FeasibleSet(LARGE, Budget())
    found = positions(feasible, feasible.sample(64, rng()))
    assert np.abs(found - (np.arange(64) + 0.5) / 64).max() > 0.2


def test_stratified_draws_of_a_small_space_end_with_it(model: CostModel, everything: Population) -> None:
    networks = networks_inside(model, everything, Budget())
    feasible = FeasibleSet(model, Budget())
    some = feasible.stratified(20, rng())
    assert len({a.key for a in some}) == min(20, len(networks))
    known = {a.key for a in model.table.architectures(networks[3:])}
    assert {a.key for a in feasible.stratified(20, rng(), known)} == {
        a.key for a in model.table.architectures(networks[:3])
    }


@settings(max_examples=25, deadline=None)
@given(position=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_a_draw_lies_near_its_position(position: float, seed: int) -> None:
    found = FREE.draw_at(position, rng(seed))
    assert found is not None
    assert found == FREE.draw_at(position, rng(seed))
    assert abs(positions(FREE, [found])[0] - position) < 0.1


def test_draws_at_one_position_differ() -> None:
    generator, keys = rng(), set[str]()
    for _ in range(20):
        found = FREE.draw_at(0.5, generator, keys)
        assert found is not None
        assert found.key not in keys
        keys.add(found.key)


@pytest.mark.parametrize("kind", ["band", "several"])
def test_what_is_nearest_is_nearest_of_all(model: CostModel, everything: Population, kind: str) -> None:
    """Changes are counted over every row that stands for a network: what is masked costs nothing."""
    budget = budget_of(model, everything, kind)
    keys = np.array([a.key for a in model.table.architectures(everything)])
    inside = budget.feasible(model.costs(everything))
    feasible = FeasibleSet(model, budget)
    generator = rng(1)
    for start in generator.integers(0, len(everything), 8):
        tried = set(generator.choice(np.unique(keys), len(np.unique(keys)) // 2, replace=False))
        apart = (everything != everything[start]).sum(axis=1)
        repaired = feasible.repair(everything[start].tolist(), generator)
        assert apart[keys == repaired.key].min() == apart[inside].min()
        wanted = model.table.architecture(everything[start].tolist())
        apart = (everything != np.array(wanted.indices)).sum(axis=1)
        left = inside & ~np.isin(keys, list(tried))
        near = feasible.nearest_untried(wanted, tried, generator)
        if near is None:
            assert not left.any()
        else:
            assert near.key not in tried
            assert apart[keys == near.key].min() == apart[left].min()
