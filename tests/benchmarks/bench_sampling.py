"""CPU seconds to draw, spread, repair and replace networks inside rare budgets, beside a user's own rejection sampling.

Run it with `python tests/benchmarks/bench_sampling.py [SPACE.toml ...]`; one core. A band is sought that one distinct
network in a million meets. How many do is bounded by the exact tilted sum (Chernoff) and estimated from the share of
tilted draws that are kept: log N = log bound + log share; the estimate stands beside the exact number where that can be
counted. Rejection sampling is timed on a few draws and extrapolated to what 1,000 networks would take.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import optuna
from bench_costs import space_of_40

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.neighbours import changes
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Table

SHIPPED = ("cifar_resnet56", "resnet18", "resnet50", "wrn28_10", "cifar_mobilenet_v3_large", "efficientnet_b0")
NETWORKS = 1000
RARITY = 1e-6  # networks inside for each one in the space
GOALS = {"one band": 1.0, "three columns": 10.0}
REPAIRED = 50
REJECTED = 20_000  # rows that NumPy is timed on
ASKED = 200  # trials that Optuna is timed on


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that an action takes, and what it returns."""
    start = time.process_time()
    found = action()
    return time.process_time() - start, found


def log_count(feasible: FeasibleSet, draws: int = 200_000) -> float:
    """The log of the number of networks inside, estimated from tilted draws; the box's own bound where none is kept."""
    drawing, box, rng = feasible._drawing, feasible._box, np.random.default_rng(1)
    kept = sum(
        int((feasible.violations(rows) <= 0).sum())
        for rows in (drawing._rows(drawing._plain(box, 10_000, rng)) for _ in range(draws // 10_000))
    )
    return float(box.log_count + np.log(kept / draws)) if kept else float(box.log_count)


def rare_band(model: CostModel) -> Budget:
    """A band of MACs, a hundredth of a per cent wide, among the cheap networks, that holds `RARITY` of all networks.

    It is sought as a band a hundred times as wide that holds a hundred times as many, by bisection of log MACs.
    """
    least = FeasibleSet(model, Budget())._drawing.elimination.bounds()[0][0]
    median = np.median([model.cost(a).macs for a in FeasibleSet(model, Budget()).sample(500, rng())])
    low, high = math.log(least), math.log(median)
    wanted = math.log(count_networks(model.table)) + math.log(100 * RARITY)
    for _ in range(12):
        middle = (low + high) / 2
        found = log_count(FeasibleSet(model, band(math.exp(middle), 0.01)), 20_000)
        low, high = (middle, high) if found < wanted else (low, middle)
    return band(math.exp(middle), 1e-4)


def band(macs: float, width: float) -> Budget:
    """The MACs from some upward to a share more."""
    return Budget(macs=[round(macs), round(macs * (1 + width))])


def rng(seed: int = 0) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def joint(model: CostModel, rare: Budget) -> Budget:
    """Bands of MACs and parameters and a bound on memory at once, from the middle of what ten times as many have."""
    low, high = rare.bounds["macs"]
    wide = Budget(macs=[low, low + 10 * (high - low)])
    costs = model.costs(np.array([a.indices for a in FeasibleSet(model, wide).sample(500, rng())]))
    params, memory = (np.quantile(costs[c], (0.45, 0.55)).astype(int).tolist() for c in ("params", "memory"))
    return Budget(macs=wide.bounds["macs"], params=params, memory=memory[1])


def by_numpy(model: CostModel, share: float) -> float:
    """Seconds until rejection of random rows has found 1,000 networks, extrapolated."""
    seconds, _ = timed(lambda: model.costs(rng().integers(0, model.table.sizes, (REJECTED, len(model.table.sizes)))))
    return seconds / REJECTED * NETWORKS / share


def by_optuna(model: CostModel, share: float) -> float:
    """Seconds until Optuna's random sampler has found 1,000 networks, extrapolated."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def ask() -> None:
        for _ in range(ASKED):
            trial = study.ask()
            row = [trial.suggest_int(d.name, 0, len(d.options) - 1) for d in model.table.dimensions]
            study.tell(trial, float(model.costs(np.array([row]))["macs"][0]))

    return timed(ask)[0] / ASKED * NETWORKS / share


def check_estimate(model: CostModel) -> None:
    """Print the estimate beside the exact number, in bands that hold few enough networks to be listed."""
    least = FeasibleSet(model, Budget())._drawing.elimination.bounds()[0][0]
    for factor in (1.5, 2.0):
        feasible = FeasibleSet(model, Budget(macs=round(least * factor)))
        exact = feasible._drawing.listed(feasible.budget.bounds, 1 << 19)
        counted = "too many to list" if exact is None else f"{len(exact):,}"
        print(f"  below {factor} x the cheapest: estimated {np.exp(log_count(feasible)):,.0f}, counted {counted}")


def measure(name: str, space: SearchSpace) -> None:
    """Print one space's seconds."""
    model, table = space.model, space.table
    total = math.log(count_networks(table))
    print(f"{name}: {int((table.sizes > 1).sum())} dimensions with a choice, 10^{total / np.log(10):.1f} networks")
    check_estimate(model)
    even(model)
    rare = rare_band(model)
    for label, budget in {"one band": rare, "three columns": joint(model, rare)}.items():
        feasible = FeasibleSet(model, budget)
        share = float(np.exp(log_count(feasible) - total))
        shown = ", ".join(f"{c} {low:,} to {high:,}" for c, (low, high) in budget.bounds.items())
        print(f"  {label}: {shown}: 1 network in {1 / share:,.0f}")
        feasible = FeasibleSet(model, budget)  # nothing kept from the count
        seconds, found = timed(lambda feasible=feasible: feasible.sample(NETWORKS, rng()))
        verdict = "met" if seconds <= GOALS[label] else "missed"
        number = f"{len(found):,} networks" if len(found) == NETWORKS else f"all {len(found):,} networks there are"
        print(f"    {number:28} {seconds:8.2f} s      goal {GOALS[label]:g} s: {verdict}")
        print(f"    by rejection: NumPy {by_numpy(model, share):,.0f} s, Optuna {by_optuna(model, share):,.0f} s")
        rest(feasible)


def rest(feasible: FeasibleSet) -> None:
    """Print what repairs and the nearest untried networks take, and in how many dimensions they differ."""
    sizes, (low, high) = feasible.table.sizes, feasible.budget.bounds["macs"]
    octave = FeasibleSet(feasible.model, Budget(macs=[low // 2, 2 * high])).sample(REPAIRED, rng(1))
    starts = {
        "random rows": rng(1).integers(0, sizes, (REPAIRED, len(sizes))),
        "networks within an octave": np.array([a.indices for a in octave]),
    }
    seconds, _ = timed(lambda: feasible.repair([0] * len(sizes), rng()))
    print(f"    first repair:                {1000 * seconds:8.1f} ms", flush=True)
    for name, rows in starts.items():
        repaired = told(feasible.table, f"repair of {name}", rows, lambda row, i: feasible.repair(row.tolist(), rng(i)))
    tried = {a.key for a in repaired}
    rows = np.array([a.indices for a in repaired])
    told(feasible.table, "nearest untried", rows, lambda row, i: feasible.nearest_untried(repaired[i], tried, rng(i)))


def told(table: Table, name: str, rows: np.ndarray, action: Callable[[np.ndarray, int], Any]) -> list[Any]:
    """Print CPU milliseconds of an action on each row, and in how many dimensions what it returns differs from it."""
    pairs = [timed(lambda i=i, row=row: action(row, i)) for i, row in enumerate(rows)]
    seconds, found = zip(*pairs, strict=True)
    apart = [changes(table, np.array([a.indices]), row)[0] for a, row in zip(found, rows, strict=True)]
    cost = f"{1000 * np.median(seconds):8.1f} ms, at most {1000 * max(seconds):.1f}"
    print(f"    {name + ':':36} {cost}; {np.median(apart):.0f} dimensions changed, at most {max(apart)}", flush=True)
    return list(found)


def even(model: CostModel) -> None:
    """Print what networks evenly over all log MACs take."""
    feasible = FeasibleSet(model, Budget())
    seconds, found = timed(lambda: feasible.stratified(NETWORKS, rng()))
    again, _ = timed(lambda: feasible.stratified(NETWORKS, rng(1)))
    print(
        f"  {len(found):,} networks evenly over all log MACs: {seconds:.2f} s, and {again:.2f} s once tilts are known"
    )


def main() -> None:
    """Print the tables."""
    paths = sys.argv[1:]
    if not paths:
        measure("CIFAR ResNet-44", space_of_40())
    for path in paths or [f"search_spaces/{name}.toml" for name in SHIPPED]:
        measure(path, SearchSpace.load(path))


if __name__ == "__main__":
    main()
