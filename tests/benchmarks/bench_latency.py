"""How near predicted latencies come to measured ones, on networks that no table or correction was made from.

Run it with `python tests/benchmarks/bench_latency.py [cifar_resnet ...]`: a table that is not there yet is measured
first, into `latency/`. Networks are timed in turn, with the base as drift clock between them.
"""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import nn

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import LATENCY
from bsconv_nas.cost.latency import LatencyTable, Setting
from bsconv_nas.cost.latency_fit import drift
from bsconv_nas.cost.latency_measure import Bench
from bsconv_nas.cost.latency_units import network_units, reachable
from bsconv_nas.latency import PASSES, SPREAD, Plan, measure, plan
from bsconv_nas.space.table import Architecture

SPACES = ("cifar_resnet", "cifar_mobilenet_v2", "resnet18")
ROOT = Path(__file__).parents[2]
NETWORKS, ROUNDS, RUNS, WARM_UP = 64, 7, 5, 2
POPULATION = 100_000
LIKE = 1.1  # MACs within 10 %
GOALS = {0.05: 0.85, 0.1: 0.99}
TAU = 0.8

Floats = np.ndarray


def others(asked: Plan, seed: int = 2026) -> list[Architecture]:
    """Random networks that were not timed for the table."""
    timed = {tuple(line["network"]) for line in asked.lines()}
    found = asked.space.sample(NETWORKS + len(timed), seed=seed)
    return [network for network in found if network.indices not in timed][:NETWORKS]


def measured(asked: Plan, networks: list[Architecture]) -> tuple[Floats, Floats, float]:
    """The median of each network [us] and the spread of its repeats; and how much slower the machine is now.

    Times are those at the speed that the machine had as the table was measured, by the base network.
    """
    space = asked.space
    task = {
        "base": asdict(space.base),
        "table": space.table.to_json(),
        "setting": asdict(asked.setting),
        "units": asked.units,
        "spread": SPREAD,
        "passes": PASSES,
    }
    lines = asked.lines()
    usual = np.median([line["reference_us"] for line in lines] / drift(lines)) * 1000
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        bench = Bench(task)
        modules = [bench.network(network.indices) for network in networks]
        times, slow = np.zeros((2, ROUNDS, len(modules)))
        for visit in range(ROUNDS):
            for i in rng.permutation(len(modules)):
                times[visit, i] = settled(bench, modules[i])
                slow[visit, i] = settled(bench, bench.reference) / usual
    low, middle, high = np.quantile(times / slow, (0.25, 0.5, 0.75), axis=0)
    return middle / 1000, (high - low) / 2 / middle, float(np.median(slow))


def settled(bench: Bench, module: nn.Module) -> float:
    """The median of some runs, without the first ones [ns]."""
    return float(np.median([bench.run(module)[0] for _ in range(WARM_UP + RUNS)][WARM_UP:]))


def tau(scores: Floats, times: Floats, macs: Floats) -> tuple[float, int]:
    """Kendall's tau among pairs of networks of like MACs, and how many pairs those are."""
    a, b = np.triu_indices(len(times), 1)
    like = np.abs(np.log(macs[a] / macs[b])) <= np.log(LIKE)
    signs = np.sign(scores[a] - scores[b]) * np.sign(times[a] - times[b])
    return float(signs[like].mean()), int(like.sum())


def scaled(scores: Floats, times: Floats) -> Floats:
    """Scores in the unit of times: what MACs alone would predict."""
    return scores * np.median(times / scores)


def compare(asked: Plan, table: LatencyTable) -> bool:
    """Print how near each way to predict comes; return whether the goals are reached."""
    space = asked.space.with_latencies(table)
    networks = others(asked)
    costs = space.costs(networks)
    times, spreads, slow = measured(asked, networks)
    spread = float(np.median(spreads))
    span = f"{times.min() / 1000:.2f} to {times.max() / 1000:.2f} ms"
    print(f"{asked.name}: {len(networks)} networks of {span}, repeats spread by {spread:.1%}")
    print(f"  the machine is {slow:.2f} times as slow as when the table was measured")
    units = [list(network_units(space.table, network.indices)) for network in networks]
    ways = {
        "predicted": costs[LATENCY] / 1000,
        "plain sum": np.array([table.plain_us(keys) for keys in units]),
        "MACs": scaled(costs["macs"].astype(float), times),
        "parameters": scaled(costs["params"].astype(float), times),
    }
    for way, guesses in ways.items():
        off = np.abs(guesses / times - 1)
        shares = [f"{np.mean(off <= part):4.0%} within {part:.0%}" for part in GOALS]
        order, pairs = tau(guesses, times, costs["macs"].astype(float))
        noise = f"{np.mean(off <= 2 * spread):4.0%} within twice the spread"
        print(
            f"  {way:10} {', '.join(shares)}, {noise}, median {np.median(off):.1%}, tau {order:+.2f} of {pairs} pairs"
        )
    off = np.abs(ways["predicted"] / times - 1)
    near = all(np.mean(off <= max(part, 2 * spread)) >= share for part, share in GOALS.items())
    return near and tau(ways["predicted"], times, costs["macs"].astype(float))[0] >= TAU


def speed(space: SearchSpace) -> float:
    """Predictions a second."""
    rows = np.random.default_rng(0).integers(0, space.table.sizes, size=(POPULATION, len(space.table.sizes)))
    space.model.costs(rows[:10], (LATENCY,))
    begin = time.perf_counter()
    space.model.costs(rows, (LATENCY,))
    return POPULATION / (time.perf_counter() - begin)


def main() -> None:
    """Print the tables of the named spaces."""
    reached = []
    for name in sys.argv[1:] or SPACES:
        asked = plan(SearchSpace.load(ROOT / "search_spaces" / f"{name}.toml"), name, Setting())
        table = measure(asked, on_change=lambda done, total, left: print(f"{done}/{total}, {left:.0f} s", end="\r"))
        print(f"{len(reachable(asked.space.table))} units, corrected by {table.correction.networks} networks")
        reached.append(compare(asked, table))
        print(f"  {speed(asked.space.with_latencies(table)):,.0f} predictions a second")
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
