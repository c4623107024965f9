"""Draws inside bounds are uniform over single networks, by whichever way they are made."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from small_spaces import S, drawn, small_resnet, traced

from bsconv_nas.cost.analytic import ADDITIVE, COLUMNS, CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.drawing import RARE, Bounds, Drawing
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Population

NO_BOUND = (0.0, math.inf)
# Of each column the quantiles between which networks lie; a lower one of 0 is no bound.
BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "none": {},
    "macs": {"macs": (0, 0.2)},
    "a band of macs": {"macs": (0.4, 0.5)},
    "the dearest": {"macs": (0.95, 1)},
    "params": {"params": (0, 0.3)},
    "memory": {"memory": (0, 0.4)},
    "a band of memory": {"memory": (0.3, 0.7)},
    "macs and params": {"macs": (0.2, 0.5), "params": (0, 0.5)},
    "against each other": {"macs": (0.3, 1), "params": (0, 0.7)},
    "all": {"macs": (0.2, 0.7), "params": (0.1, 0.6), "memory": (0.1, 0.8)},
}


@pytest.fixture(scope="session")
def distinct(model: CostModel, everything: Population) -> Population:
    """Every network of a small space once."""
    return np.unique(model.table.canonical(everything), axis=0)


def bounds_of(model: CostModel, rows: Population, kind: str) -> Bounds:
    costs = model.costs(rows)
    return {
        column: (float(np.quantile(costs[column], low)) if low else 0.0, float(np.quantile(costs[column], high)))
        for column, (low, high) in BOUNDS[kind].items()
    }


def inside(model: CostModel, rows: Population, bounds: Bounds) -> Population:
    costs = model.costs(rows)
    kept = [(costs[column] >= low) & (costs[column] <= high) for column, (low, high) in bounds.items()]
    return rows[np.all([np.ones(len(rows), dtype=bool), *kept], axis=0)]


def plain(drawing: Drawing, bounds: Bounds, rng: np.random.Generator) -> Iterator[Population]:
    box = drawing.aimed(bounds)
    while True:
        yield drawing._rows(drawing._plain(box, 2000, rng))


def gathered(batches: Iterator[Population], n: int) -> Population:
    found: list[Population] = []
    while sum(map(len, found)) < n:
        found.append(next(batches))
    return np.concatenate(found)[:n]


def deviation(rows: Population, networks: Population) -> float:
    """Pearson's statistic of equal chances for each of the networks, in standard deviations of its own."""
    found, counts = np.unique(np.concatenate([networks, rows]), axis=0, return_counts=True)
    assert len(found) == len(networks), "outside the bounds, or not canonical"
    expected = len(rows) / len(networks)
    statistic = float(((counts - 1 - expected) ** 2 / expected).sum())
    freedom = max(len(networks) - 1, 1)
    return (statistic - freedom) / math.sqrt(2 * freedom)


def variation(rows: Population, networks: Population, sizes: Population) -> float:
    """The greatest total variation, over dimensions, between the options drawn and those of all networks."""
    return max(
        float(
            np.abs(
                np.bincount(rows[:, d], minlength=size) / len(rows)
                - np.bincount(networks[:, d], minlength=size) / len(networks)
            ).sum()
            / 2
        )
        for d, size in enumerate(sizes)
    )


@pytest.mark.parametrize("kind", BOUNDS)
def test_every_network_inside_is_drawn_alike(model: CostModel, distinct: Population, kind: str) -> None:
    bounds = bounds_of(model, distinct, kind)
    networks = inside(model, distinct, bounds)
    drawing = Drawing(model, bounds.get("memory", NO_BOUND))
    rows = gathered(plain(drawing, bounds, np.random.default_rng(0)), max(20 * len(networks), 2000))
    assert deviation(rows, networks) < 5
    assert variation(rows, networks, model.table.sizes) < 0.05


@pytest.mark.parametrize("kind", ["none", "all"])
@pytest.mark.parametrize("aim", [0.05, 0.9])
def test_strewn_draws_are_uniform_from_edge_to_edge(
    model: CostModel, distinct: Population, kind: str, aim: float
) -> None:
    bounds = bounds_of(model, distinct, kind)
    networks = inside(model, distinct, bounds)
    drawing, rng = Drawing(model, bounds.get("memory", NO_BOUND)), np.random.default_rng(0)
    macs = model.costs(networks, ("macs",))["macs"]
    assert drawing.whole
    tilt = drawing.aimed({**bounds, "macs": (0.0, float(np.quantile(macs, aim)))}).tilted.tilt
    edges = np.unique(np.append(macs.min() - 1, np.quantile(macs, np.linspace(0.1, 1, 10)))) + 0.5
    rows = np.concatenate([drawing.strewn(bounds, ("macs", edges), tilt, 2000, rng) for _ in range(10)])
    part, own = (np.searchsorted(edges, model.costs(r, ("macs",))["macs"]) for r in (rows, networks))
    for i in np.unique(own):
        few = (part == i).sum() < 5 * (own == i).sum()  # where the tilt seldom leads
        assert few or deviation(rows[part == i], networks[own == i]) < 5
    assert max((part == i).sum() / (own == i).sum() for i in np.unique(own)) > 5


@pytest.mark.parametrize("kind", ["none", "all"])
def test_matched_halves_make_every_network_as_often(model: CostModel, distinct: Population, kind: str) -> None:
    """Networks of a batch share halves, so that only whole batches are independent: their variance is the measure."""
    bounds = bounds_of(model, distinct, kind)
    networks = inside(model, distinct, bounds)
    drawing, rng = Drawing(model, bounds.get("memory", NO_BOUND)), np.random.default_rng(0)
    box, counts = drawing.aimed(bounds), np.zeros((150, len(networks)))
    for batch in counts:
        rows = drawing._rows(drawing._matched(box, 60, rng))
        found, often = np.unique(np.concatenate([networks, rows]), axis=0, return_counts=True)
        assert len(found) == len(networks), "outside the bounds, or not canonical"
        batch += often - 1
    mean = counts.mean(axis=0)
    error = np.maximum(counts.var(axis=0, ddof=1), mean.mean()) / len(counts)  # at least that of rare events
    assert ((mean - mean.mean()) ** 2 / error).mean() < 2


def test_a_biased_draw_is_seen() -> None:
    """The statistic itself: one network in ten is drawn three quarters more often."""
    networks = np.arange(200)[:, None]
    rng = np.random.default_rng(0)
    fair = rng.integers(0, 200, (4000, 1))
    biased = np.concatenate([fair, rng.integers(0, 20, (300, 1))])
    assert abs(deviation(fair, networks)) < 4
    assert deviation(biased, networks) > 5


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_tilt_bounds_the_number_of_networks(model: CostModel, distinct: Population, kind: str) -> None:
    """Chernoff's bound holds and leaves a share to accept, at whatever bounds."""
    bounds = bounds_of(model, distinct, kind)
    drawing = Drawing(model, bounds.get("memory", NO_BOUND))
    count = len(inside(model, distinct, bounds))
    assert math.log(count) - 1e-9 <= drawing.aimed(bounds).log_count < math.log(count) + 6


BLOCKS = CostModel(traced(lambda: cifar_resnet(20), widths=[0.5, 0.75, 1.0, 1.5]))
COSTS = BLOCKS.costs(drawn(BLOCKS.table, 2000))


@pytest.mark.parametrize(
    "shares", [(0.01, 0.01), (0.01, 0.3), (0.1, 0.4), (0.3, 0.3), (0.3, 0.5), (0.5, 0.3), (0.9, 0.9)]
)
@pytest.mark.parametrize("start", [None, (1e-6, 0.0), (-1e-6, 2e-4), (0.0, -1e-4)])
def test_bounds_on_columns_that_go_together_are_aimed_at(
    shares: tuple[float, float], start: tuple[float, float] | None
) -> None:
    """Both means come down to their bounds, though either brings the other along, and one bound has no lower end."""
    macs, params = (float(np.quantile(COSTS[c], share)) for c, share in zip(ADDITIVE, shares, strict=True))
    drawing = Drawing(BLOCKS)
    box = drawing.aimed({"macs": (0.98 * macs, macs), "params": (0.0, params)}, start and np.array(start))
    mean, spread = drawing.elimination.moments(box.tilted)
    off = (mean - box.high) / np.sqrt(np.diag(spread))
    assert box.tilted.tilt[1] >= 0
    assert np.isfinite(box.log_count)
    assert (off < 0.11).all()
    assert np.abs(mean - np.clip(mean, box.low, box.high))[0] < 0.11 * np.sqrt(spread[0, 0])


def test_no_tilt_is_sought_for_bounds_that_exclude_each_other() -> None:
    low, high = (float(np.quantile(COSTS["macs"], q)) for q in (0.9, 0.95))
    box = Drawing(BLOCKS).aimed({"macs": (low, high), "params": (0.0, float(COSTS["params"].min()))})
    assert box.log_count < 0


def test_the_range_of_a_column_is_that_of_an_enumeration(model: CostModel, distinct: Population) -> None:
    drawing = Drawing(model)
    for column in ADDITIVE:
        values = model.costs(distinct, (column,))[column]
        assert drawing.range_of(column, {}) == (values.min(), values.max())
        middle = float(np.median(values))
        assert drawing.range_of(column, {column: (0.0, middle)}) == (values.min(), middle)


def test_the_range_inside_another_bound_holds_all_networks(model: CostModel, distinct: Population) -> None:
    drawing = Drawing(model)
    costs = model.costs(distinct)
    for share in (0.1, 0.5):
        params = float(np.quantile(costs["params"], share))
        macs = costs["macs"][costs["params"] <= params]
        low, high = drawing.range_of("macs", {"params": (0.0, params)})
        assert low * 0.999 <= macs.min()
        assert high * 1.001 >= macs.max()


def test_a_seed_decides_the_draws() -> None:
    drawing, bounds = Drawing(BLOCKS), {"macs": (0.0, float(np.quantile(COSTS["macs"], 0.2)))}
    a, b, c = (next(drawing.batches(drawing.aimed(bounds), 5, np.random.default_rng(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_halves_are_matched_where_few_draws_hit() -> None:
    """The very MACs of one network: plain draws find next to none like it, the batches after them hundreds."""
    exact = float(COSTS["macs"][0])
    bounds = {"macs": (exact, exact)}
    drawing = Drawing(BLOCKS)
    box = drawing.aimed(bounds)
    batches = drawing.batches(box, 100, np.random.default_rng(0))
    first, second = next(batches), next(batches)
    assert len(first) * RARE < 800
    found = np.concatenate([second, *(next(batches) for _ in range(2))])
    assert len(np.unique(found, axis=0)) > 200
    assert len(inside(BLOCKS, found, bounds)) == len(found)


@pytest.mark.parametrize(("limit", "lost"), [(5, True), (20, False)])
def test_what_is_left_out_of_the_sums_is_rejected(monkeypatch: pytest.MonkeyPatch, limit: int, lost: bool) -> None:
    """With tables too small for costs, distinctness or memory the draws are uniform all the same."""
    monkeypatch.setattr("bsconv_nas.space.elimination.LARGEST", limit)
    monkeypatch.setattr("bsconv_nas.space.factors.CELLS", 4)
    model = CostModel(traced(small_resnet, operators=S, widths=(0.5, 1.0), scope="stage"))
    rows = np.stack(np.unravel_index(range(math.prod(model.table.sizes)), model.table.sizes), axis=1)
    distinct = np.unique(model.table.canonical(rows), axis=0)
    costs = model.costs(distinct)
    budget = Budget(**{c: [int(np.quantile(costs[c], 0.1)), int(np.quantile(costs[c], 0.8))] for c in COLUMNS})
    feasible = FeasibleSet(model, budget)
    elimination = feasible._drawing.elimination
    assert ({("cost", i) for i, _ in enumerate(model.tables())} <= elimination.kept) != lost
    networks = inside(model, distinct, {c: (float(low), float(high)) for c, (low, high) in budget.bounds.items()})
    batches = feasible._drawing.batches(feasible._box, 1000, np.random.default_rng(0))
    drawn_rows = gathered((rows[feasible.violations(rows) <= 0] for rows in batches), 20 * len(networks))
    assert deviation(drawn_rows, networks) < 5
