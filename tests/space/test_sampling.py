"""Networks inside a budget: against the enumeration of small spaces."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_spaces import S, drawn, small_resnet, tiny_resnet, traced

from bsconv_nas.cost.analytic import COLUMNS, CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import BudgetError
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Population, Table

LARGE = CostModel(traced(lambda: cifar_resnet(20), widths=[0.5, 0.75, 1.0, 1.5]))
FREE = FeasibleSet(LARGE, Budget())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def band(model: CostModel, low: float, high: float, column: str = "macs") -> Budget:
    """The budget between two quantiles of random networks."""
    costs = model.costs(drawn(model.table, 500))[column]
    return Budget(**{column: [int(np.quantile(costs, low)), int(np.quantile(costs, high))]})


def costs_of(model: CostModel, networks: list[Architecture]) -> dict[str, np.ndarray]:
    return model.costs(np.array([a.indices for a in networks]))


def test_extremes_are_those_of_an_enumeration(model: CostModel, everything: Population) -> None:
    least, most = extremes(model)
    costs = model.costs(everything)
    for i, column in enumerate(COLUMNS):
        assert model.costs(least[i : i + 1])[column][0] == costs[column].min(), column
        assert model.costs(most[i : i + 1])[column][0] == costs[column].max(), column


def test_the_least_memory_is_not_hidden_behind_an_equal_peak() -> None:
    """Two places with the same peak: changing one alone changes nothing, changing both does."""
    table = traced(tiny_resnet, operators=["bsconv_u:r=9", "regular"], widths=[1.0], depths="fixed")
    model = CostModel(table)
    least, _ = extremes(model)
    row = np.array(
        [
            [
                table.dimensions[i].options.index("regular") if n.startswith("conv") else 0
                for i, n in enumerate(table.names)
            ]
        ]
    )
    assert model.costs(least[2:3])["memory"] == model.costs(row)["memory"]


@pytest.mark.parametrize("column", COLUMNS)
def test_samples_are_distinct_and_inside_the_band(column: str) -> None:
    budget = band(LARGE, 0.3, 0.5, column)
    networks = FeasibleSet(LARGE, budget).sample(100, rng())
    assert len({a.key for a in networks}) == len(networks) == 100
    assert budget.feasible(costs_of(LARGE, networks)).all()


def test_samples_are_canonical_and_named_as_the_table_does() -> None:
    for architecture in FeasibleSet(LARGE, Budget()).sample(20, rng()):
        assert LARGE.table.architecture(architecture.indices) == architecture


def test_a_seed_decides_the_sample() -> None:
    feasible = FeasibleSet(LARGE, band(LARGE, 0.2, 0.4))
    assert feasible.sample(20, rng(3)) == feasible.sample(20, rng(3)) != feasible.sample(20, rng(4))


def test_every_option_is_drawn_alike() -> None:
    table = LARGE.table
    chosen = np.array([a.indices for a in FeasibleSet(LARGE, Budget()).sample(3000, rng())])
    late = table.names.index("conv.layer2.0.conv1")  # never masked, and its options never coincide
    share = np.bincount(chosen[:, late], minlength=4) / len(chosen)
    assert np.abs(share - 0.25).max() < 0.03


def test_what_is_excluded_is_not_drawn() -> None:
    feasible = FeasibleSet(LARGE, band(LARGE, 0.2, 0.4))
    first = {a.key for a in feasible.sample(30, rng())}
    again = feasible.sample(30, rng(), exclude=first)
    assert not first & {a.key for a in again}


def test_an_exhausted_space_returns_all_it_has(model: CostModel, everything: Population) -> None:
    budget = band(model, 0.0, 0.02)
    inside = everything[budget.feasible(model.costs(everything))]
    keys = {a.key for a in model.table.architectures(inside)}
    feasible = FeasibleSet(model, budget)
    assert {a.key for a in feasible.sample(len(keys) + 5, rng())} == keys
    assert feasible.sample(3, rng(), exclude=keys) == []


def test_a_space_of_a_few_networks_is_drawn_whole() -> None:
    table = traced(tiny_resnet, operators=S, widths=[0.5, 1.0], scope="network", width_scope="network")
    assert len(FeasibleSet(CostModel(table), Budget()).sample(10**6, rng())) == count_networks(table)


def test_a_band_that_few_networks_meet_is_still_met() -> None:
    exact = LARGE.costs(drawn(LARGE.table, 1))["macs"][0]
    budget = Budget(macs=[int(exact * 0.9999), int(exact * 1.0001)], params=[0, 10**9])
    networks = FeasibleSet(LARGE, budget).sample(5, rng())
    assert len(networks) == 5
    assert budget.feasible(costs_of(LARGE, networks)).all()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), high=st.sampled_from([0.01, 0.1, 0.5, 0.9]), column=st.sampled_from(COLUMNS))
def test_repair_lands_inside_and_keeps_what_is_inside(seed: int, high: float, column: str) -> None:
    budget = band(LARGE, high / 2, high, column)
    feasible, row = FeasibleSet(LARGE, budget), drawn(LARGE.table, 1, seed)
    repaired = feasible.repair(row[0].tolist(), rng(seed))
    assert budget.feasible(costs_of(LARGE, [repaired])).all()
    if budget.feasible(LARGE.costs(row)).all():
        assert repaired == LARGE.table.architecture(row[0].tolist())


def test_repair_stays_near() -> None:
    """On average a third of the dimensions change, where a fresh sample would change three quarters of them."""
    feasible = FeasibleSet(LARGE, band(LARGE, 0.0, 0.1))
    starts = LARGE.table.canonical(drawn(LARGE.table, 50, seed=1))
    repaired = np.array([feasible.repair(row.tolist(), rng(i)).indices for i, row in enumerate(starts)])
    fresh = np.array([a.indices for a in feasible.sample(50, rng())])
    assert (repaired != starts).mean() < 0.6 * (fresh != starts).mean()


def test_repair_of_an_impossible_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"No network of the space was found with macs <= 10: "):
        FeasibleSet(LARGE, Budget(macs=10)).repair([0] * len(LARGE.table.sizes), rng())


def changes(table: Table, a: Architecture, b: Architecture) -> int:
    return sum(x != y for x, y in zip(a.indices, b.indices, strict=True))


def test_the_nearest_untried_network_is_one_change_away() -> None:
    budget = band(LARGE, 0.2, 0.8)
    feasible = FeasibleSet(LARGE, budget)
    start = feasible.sample(1, rng())[0]
    assert feasible.nearest_untried(start, (), rng()) == start
    tried = {start.key}
    for _ in range(10):
        near = feasible.nearest_untried(start, tried, rng())
        assert near is not None
        assert near.key not in tried
        assert budget.feasible(costs_of(LARGE, [near])).all()
        tried.add(near.key)
    # A dropped block masks its operators, so that one change may show in several canonical indices.
    depths = [i for i, name in enumerate(LARGE.table.names) if name.startswith("depth")]
    assert changes(LARGE.table, start, near) <= 1 or any(start.indices[i] != near.indices[i] for i in depths)


def test_an_untried_network_outside_the_budget_is_no_answer() -> None:
    budget = band(LARGE, 0.0, 0.3)
    feasible = FeasibleSet(LARGE, budget)
    outside = LARGE.table.architecture([int(s) - 1 for s in LARGE.table.sizes])
    near = feasible.nearest_untried(outside, (), rng())
    assert near is not None
    assert budget.feasible(costs_of(LARGE, [near])).all()


def test_nothing_is_left_of_an_exhausted_space() -> None:
    table = traced(tiny_resnet, operators=S, widths=[0.5], scope="network")
    feasible = FeasibleSet(CostModel(table), Budget())
    networks = feasible.sample(100, rng())
    keys = {a.key for a in networks}
    assert feasible.nearest_untried(networks[0], keys, rng()) is None
    assert feasible.nearest_untried(networks[0], keys - {networks[3].key}, rng()) == networks[3]


def uniform(table: Table, architecture: Architecture) -> tuple[set[object], set[object]]:
    chosen = table.describe(architecture)
    by_kind = {kind: {v for n, v in chosen.items() if n.startswith(kind)} for kind in ("conv", "width")}
    return by_kind["conv"], by_kind["width"]


def test_baselines_are_uniform_distinct_and_the_costliest_that_fit() -> None:
    budget = Budget(macs="700K")
    feasible = FeasibleSet(LARGE, budget)
    networks = feasible.baselines(12)
    assert len({a.key for a in networks}) == len(networks) == 12
    assert budget.feasible(costs_of(LARGE, networks)).all()
    kept = [a for a in networks if 0 not in {v for n, v in LARGE.table.describe(a).items() if n.startswith("depth")}]
    by_operator: dict[object, list[int]] = {}
    for architecture in kept:
        operators, widths = uniform(LARGE.table, architecture)
        assert len(widths) == 1
        by_operator.setdefault((operators - {"regular"} or {"regular"}).pop(), []).append(LARGE.cost(architecture).macs)
    assert set(by_operator) == {"regular", "dsc", "bsconv_u", "bsconv_s"}
    assert min(map(max, by_operator.values())) > 500e3


def test_the_first_baseline_of_an_operator_is_its_costliest() -> None:
    budget = Budget(macs="700K")
    feasible = FeasibleSet(LARGE, budget)
    table = LARGE.table
    first = feasible.baselines(4)
    for architecture, operator in zip(first, ("regular", "dsc", "bsconv_u", "bsconv_s"), strict=True):
        rows = []
        for width in range(4):
            for depth in range(4):
                ranks = {"conv": None, "width": width, "depth": depth}
                rows.append(
                    [
                        d.options.index(operator) if d.kind == "conv" else max(0, len(d.options) - 1 - ranks[d.kind])  # type: ignore[operator]
                        for d in table.dimensions
                    ]
                )
        costs = LARGE.costs(np.array(rows))["macs"]
        assert LARGE.cost(architecture).macs == costs[costs <= 700e3].max()


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_at_most_so_many_baselines(limit: int) -> None:
    assert len(FeasibleSet(LARGE, Budget(macs="20M")).baselines(limit)) == limit


def test_a_space_has_no_more_baselines_than_uniform_networks() -> None:
    table = traced(tiny_resnet, operators=S, widths=[0.5], depths="fixed")
    assert len(FeasibleSet(CostModel(table), Budget()).baselines(12)) == 3  # one width, one depth, three operators


def test_a_space_of_widths_alone_has_regular_baselines() -> None:
    table = traced(small_resnet, widths=[0.5, 1.0, 2.0], depths="fixed", exempt=["*.conv2", "layer1.*"], stem=False)
    assert FeasibleSet(CostModel(table), Budget()).baselines(3)


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (
            Budget(macs="1K"),
            r"The upper bound on macs must be reachable, but is 1,000 \(1 K\) and the smallest network of ",
        ),
        (
            Budget(params=10),
            r"bound on params must be .*, but is 10 \(10\) and the smallest .* most of it in layer3\.0\.conv2 \(880\)",
        ),
        (
            Budget(memory="1KiB"),
            r"bound on memory must be .*, but is 1,024 \(1 KiB\) and the smallest .* has [\d,]+ \(.*KiB",
        ),
        (
            Budget(macs=["1G", "2G"]),
            r"The lower bound on macs must be reachable, but is .* and the largest network of this",
        ),
        (
            Budget(macs=["4M", "5M"], params="9K"),
            r"No network of the space was found with 4 M <= macs <= 5 M and params <= 9 K: each bound can be kept",
        ),
    ],
    ids=["macs", "params", "memory", "lower", "joint"],
)
def test_an_impossible_budget_is_refused_with_what_bounds_it(budget: Budget, sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        FeasibleSet(LARGE, budget).check()


def test_the_refusal_names_the_smallest_value_that_is_there(model: CostModel, everything: Population) -> None:
    costs = model.costs(everything)
    for column in COLUMNS:
        least = int(costs[column].min())
        FeasibleSet(model, Budget(**{column: least})).check()
        with pytest.raises(BudgetError, match=f"has {least:,}"):
            FeasibleSet(model, Budget(**{column: least - 1})).check()


def test_an_override_leaves_every_operator_its_baselines() -> None:
    overrides = [{"pattern": "layer1.*", "operators": ["regular"]}]
    table = traced(tiny_resnet, operators=["dsc", "bsconv_u"], overrides=overrides)
    baselines = FeasibleSet(CostModel(table), Budget()).baselines(2)
    mixes = [{v for k, v in table.describe(b).items() if k.startswith("conv.")} for b in baselines]
    assert mixes == [{"regular", "dsc"}, {"regular", "bsconv_u"}]
