"""The nearest network inside a budget: against enumeration, and in a space of forty dimensions."""

import math

import numpy as np
import pytest
from small_spaces import S, drawn, small_resnet, traced

from bsconv_nas.cost.analytic import ADDITIVE, CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.moves import Moves
from bsconv_nas.space.nearest import Nearest
from bsconv_nas.space.neighbours import changes
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Population, Table

# Of each column the quantiles between which a budget lies.
BUDGETS: dict[str, dict[str, tuple[float, float]]] = {
    "none": {},
    "the cheapest": {"macs": (0.0, 0.02)},
    "a narrow band": {"macs": (0.5, 0.51)},
    "the dearest": {"params": (0.97, 1.0)},
    "little memory": {"memory": (0.0, 0.05)},
    "several": {"macs": (0.3, 0.4), "params": (0.2, 0.5), "memory": (0.0, 0.5)},
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def budget_of(model: CostModel, rows: Population, kind: str) -> Budget:
    costs = model.costs(rows)
    bounds = {c: [int(np.quantile(costs[c], q, method="nearest")) for q in ends] for c, ends in BUDGETS[kind].items()}
    return Budget(**{c: ends if BUDGETS[kind][c][0] else ends[1] for c, ends in bounds.items()})


def first(table: Table, rows: Population) -> Architecture | None:
    return next(iter(table.architectures(rows[:1])), None)


def surplus(model: CostModel, everything: Population, budget: Budget, starts: Population) -> list[int]:
    """By how many changes what is found lies further from each start than the nearest of an enumeration."""
    inside = everything[budget.feasible(model.costs(everything, tuple(budget.bounds) or ("macs",)))]
    nearest, out = Nearest(model, budget), []
    for i, start in enumerate(starts):
        found = nearest.found(start, lambda rows: first(model.table, rows), rng(i))
        assert found is not None
        row = np.array([found.indices])
        assert budget.feasible(model.costs(row)).all()
        out.append(int(changes(model.table, row, start)[0] - (inside != start).sum(axis=1).min()))
    return out


def test_every_hub_of_many_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many settings they have together: 4 to the 24th."""
    monkeypatch.setattr("bsconv_nas.space.nearest.ANCHORS", 1000)
    table = traced(lambda: cifar_resnet(depth=38), widths=(0.25, 0.5, 0.75, 1.0), width_scope="layer")
    nearest = Nearest(CostModel(table), Budget(macs=10**12))
    start = np.array(table.base.indices)
    changed = nearest._level(start, [nearest._level(start, [])]).rows != start
    hubs = list(nearest._moves.hubs)
    assert len(hubs) > 16
    assert changed.sum(axis=0)[hubs].min() >= 3


@pytest.mark.parametrize("kind", BUDGETS)
def test_no_network_inside_is_nearer(model: CostModel, everything: Population, kind: str) -> None:
    budget = budget_of(model, everything, kind)
    more = surplus(model, everything, budget, drawn(model.table, 25, seed=1))
    assert min(more) >= 0
    assert max(more) <= 1
    assert np.mean(more) <= 0.04


@pytest.mark.parametrize("kind", ["a narrow band", "several"])
def test_no_network_of_many_is_nearer(kind: str) -> None:
    """In a space of 196,608 rows, too many to be compared one by one."""
    model = CostModel(traced(small_resnet, operators=[*S, "bsconv_u"], widths=[0.5, 1.0], scope="block"))
    grid = np.stack(np.unravel_index(range(math.prod(model.table.sizes)), model.table.sizes), axis=1)
    more = surplus(model, grid, budget_of(model, grid, kind), drawn(model.table, 25, seed=1))
    assert min(more) >= 0
    assert max(more) <= 1
    assert np.mean(more) <= 0.1


WIDE = CostModel(
    traced(
        lambda: cifar_resnet(38), operators=["regular", "dsc", "bsconv_u", "bsconv_s"], widths=[0.5, 0.75, 1, 1.5, 2]
    )
)


def rare(joint: bool) -> Budget:
    """Bounds around one of the cheaper networks that fewer than one in a million keep."""
    costs = WIDE.costs(drawn(WIDE.table, 1000))
    macs, params, memory = (int(values[np.argsort(costs["macs"])[50]]) for values in costs.values())
    if not joint:
        return Budget(macs=[macs - 3, macs + 3])
    return Budget(macs=[macs - 50, macs + 50], params=[int(0.98 * params), int(1.02 * params)], memory=2 * memory)


@pytest.mark.parametrize(("joint", "usual", "most"), [(False, 4.5, 6), (True, 6, 9)], ids=["band", "joint"])
def test_a_handful_of_changes_leads_into_a_rare_band(joint: bool, usual: float, most: int) -> None:
    """From networks within an octave; of 42 dimensions."""
    budget = rare(joint)
    low, high = budget.bounds["macs"]
    near = FeasibleSet(WIDE, Budget(macs=[low // 2, high * 2])).sample(20, rng())
    feasible, moved = FeasibleSet(WIDE, budget), []
    for i, start in enumerate(near):
        found = feasible.repair(start.indices, rng(i))
        row = np.array([found.indices])
        assert feasible.violations(row)[0] == 0
        assert found == feasible.repair(start.indices, rng(i))
        moved.append(int(changes(WIDE.table, row, np.array(start.indices))[0]))
    assert np.mean(moved) <= usual
    assert max(moved) <= most


def test_what_is_not_accepted_is_not_found() -> None:
    nearest, start = Nearest(WIDE, rare(joint=False)), drawn(WIDE.table, 1)[0]
    keys: set[str] = set()

    def accepted(rows: Population) -> Architecture | None:
        return next((a for a in WIDE.table.architectures(rows) if a.key not in keys), None)

    for i in range(5):
        found = nearest.found(start, accepted, rng(i))
        assert found is not None
        assert found.key not in keys
        keys.add(found.key)


def sets_of(moves: Moves, n: int, generator: np.random.Generator) -> Population:
    """Sets of two moves of different units, or of one and none."""
    pairs = generator.integers(0, len(moves.unit), (n, 2))
    pairs[moves.unit[pairs[:, 0]] == moves.unit[pairs[:, 1]], 1] = moves.none
    return pairs


def test_moves_of_different_units_add_up(model: CostModel) -> None:
    moves, rows = Moves(model), drawn(model.table, 50)
    chosen = sets_of(moves, 50, rng(1))
    before, after = (np.stack(list(model.costs(r, ADDITIVE).values())) for r in (rows, moves.moved(rows, chosen)))
    deltas = moves.deltas(rows, moves.own(rows))
    at = np.arange(50)
    np.testing.assert_array_equal(deltas[:, at, chosen[:, 0]] + deltas[:, at, chosen[:, 1]], after - before)
    own = moves.own(rows)
    for i in range(50):
        np.testing.assert_array_equal(moves.moved(rows[i : i + 1], own[i : i + 1]), rows[i : i + 1])


def test_what_moves_leave_live_bounds_the_memory(model: CostModel) -> None:
    """From below, and sharply where no step depends on two units."""
    moves, rows = Moves(model, memory=True), drawn(model.table, 200)
    own = np.take_along_axis(moves.peaks(rows), moves.own(rows), axis=1).max(axis=1)
    memory = model.costs(rows, ("memory",))["memory"]
    assert (own <= memory).all()
    assert (moves.floor(rows) <= memory).all()
    assert (np.maximum(own, moves.floor(rows)) == memory).mean() > 0.9
