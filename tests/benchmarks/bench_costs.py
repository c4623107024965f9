"""How many networks a second the cost model answers for, on one core, beside fvcore's time for one network.

Run it with `python tests/benchmarks/bench_costs.py`. The space is a CIFAR ResNet-44 of 40 dimensions.
"""

import logging
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis

from bsconv_nas.api import SearchSpace
from bsconv_nas.network.models import cifar_resnet

POPULATION = 100_000
REPEATS = 5
GOALS = {("macs", "params"): 200_000, ("macs", "params", "memory"): 50_000}


def space_of_40() -> SearchSpace:
    """34 places, and widths and depths of three stages."""
    overrides = [{"pattern": pattern, "operators": ["regular"]} for pattern in ("layer*.6.conv*", "layer1.5.conv*")]
    operators = ["regular", "dsc", "bsconv_u", "bsconv_u:r=2", "bsconv_s"]
    widths = [0.5, 0.75, 1.0, 1.5, 2.0]
    return SearchSpace.from_module(lambda: cifar_resnet(44), operators=operators, widths=widths, overrides=overrides)


def fastest(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def fvcore_seconds(space: SearchSpace) -> float:
    """Seconds that fvcore needs to count one network that is built already."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    module = space.build(space.sample(1)[0]).eval()
    image = torch.zeros(1, *space.input_size)
    return fastest(lambda: FlopCountAnalysis(module, image).unsupported_ops_warnings(False).total(), 3)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    space = space_of_40()
    sizes = space.table.sizes
    population = np.random.default_rng(0).integers(0, sizes, size=(POPULATION, len(sizes)))
    space.model.costs(population[:10])  # tables are made at the first call
    slow = fvcore_seconds(space)
    print(f"{sum(sizes > 1)} dimensions with a choice; one core; fvcore counts one network in {slow:.3f} s")
    for columns, goal in GOALS.items():
        rate = POPULATION / fastest(lambda columns=columns: space.model.costs(population, columns))
        verdict = f"goal {goal:,}: {'met' if rate >= goal else 'missed'}"
        print(f"{' + '.join(columns):24}{rate:12,.0f} networks/s   {verdict}   {rate * slow:,.0f} times fvcore")


if __name__ == "__main__":
    main()
