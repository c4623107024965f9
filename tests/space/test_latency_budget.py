"""Budgets on predicted latencies: what is drawn, repaired and refused keeps them."""

import numpy as np
import pytest
from made_up_latencies import made_up, rows_of, spaced
from small_spaces import tiny_resnet, traced

from bsconv_nas.cost.analytic import LATENCY
from bsconv_nas.cost.budget import Budget
from bsconv_nas.cost.latency import cost_model
from bsconv_nas.space.sampling import FeasibleSet


@pytest.mark.parametrize("with_macs", [False, True])
def test_a_latency_budget_holds_for_samples_repairs_and_baselines(with_macs: bool) -> None:
    table = spaced()
    model = cost_model(table, made_up(table))
    costs = model.costs(rows_of(table, 2000))
    limit = float(np.quantile(costs[LATENCY], 0.05)) / 1e6
    macs = int(np.quantile(costs["macs"], 0.3)) if with_macs else 10**15
    feasible = FeasibleSet(model, Budget(latency_ms=limit, macs=macs))
    feasible.check()
    rng = np.random.default_rng(0)
    networks = feasible.sample(50, rng)
    networks += [feasible.repair(row, rng) for row in rows_of(table, 10, 1).tolist()]
    networks += [feasible.repair(table.sizes - 1, rng), *feasible.stratified(10, rng), *feasible.baselines(4)]
    assert len(networks) > 70
    found = model.costs(np.array([a.indices for a in networks]))
    assert (found[LATENCY] <= limit * 1e6).all()
    assert (found["macs"] <= macs).all()


def test_the_ends_are_those_of_an_enumeration_though_wider_may_be_faster() -> None:
    table = traced(tiny_resnet, operators=("regular", "bsconv_u"), widths=(0.5, 1.0, 2.0), scope="stage")
    model = cost_model(table, made_up(table))
    everything = np.array(list(np.ndindex(*table.sizes)))
    latencies = model.costs(everything, (LATENCY,))[LATENCY]
    feasible = FeasibleSet(model, Budget(latency_ms=latencies.min() / 1e6))
    feasible.check()
    assert len(feasible.sample(10, np.random.default_rng(0))) >= 1
    with pytest.raises(Exception, match=rf"smallest network of this space has {latencies.min():,} "):
        FeasibleSet(model, Budget(latency_ms=(latencies.min() - 1) / 1e6)).check()
