"""How many trials share a GPU: decided from one measured training step; no GPU and no torch needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

__all__ = ["SHARERS", "Step", "costliest", "sharers"]

SHARERS = (1, 2, 3, 4, 8)  # one fraction a run: workers are reused only where all trials ask for the same
MARGIN = 1.25  # of memory: an allocator's gaps, and a network that needs more than the measured ones
CONTEXT = 2**30  # bytes that CUDA and its libraries take in each process
ENOUGH = 0.9  # of the best speed that sharing could give: beyond it, fewer and larger shares are worth more
SAMPLE = 256  # networks to look for the costliest among


@dataclass(frozen=True, slots=True)
class Step:
    """A training step as one process measures it.

    Attributes:
        seconds: [s] from one step to the next.
        device_seconds: [s] of them that the device was at work; the rest it waited for the process.
        peak_bytes: [B] on the device, data included.
    """

    seconds: float
    device_seconds: float
    peak_bytes: int


def sharers(step: Step, free_bytes: int, cores: float, wanted: int) -> int:
    """Return how many trials should share a GPU, one of `SHARERS`.

    All must fit into its memory, each needs its CPU cores, and together they cannot be faster than a GPU that never
    waits: n processes take min(n / seconds, 1 / device_seconds) steps a second.

    Args:
        step: of the costliest network.
        free_bytes: [B] of the device before the first process.
        cores: of the CPU beside each GPU, in units of what a trial asks for.
        wanted: trials at a time, for each GPU.

    >>> sharers(Step(seconds=0.020, device_seconds=0.005, peak_bytes=2 * 10**9), 80 * 10**9, cores=16, wanted=8)
    4
    """
    room = free_bytes / (MARGIN * (step.peak_bytes + CONTEXT))
    possible = [count for count in SHARERS if count <= min(room, cores, wanted)] or [1]

    def speed(count: int) -> float:
        return min(count / step.seconds, 1 / step.device_seconds)

    return next(count for count in possible if speed(count) >= ENOUGH * speed(possible[-1]))


def costliest(feasible: FeasibleSet) -> list[Architecture]:
    """Return the networks inside the budget that take the most multiply-adds and the most memory: one or two.

    They are looked for among a sample and what the ends of the space become inside the budget.
    """
    rng = np.random.default_rng(0)
    found = [feasible.repair(row, rng) for row in extremes(feasible.model)[1].tolist()]
    found += feasible.sample(SAMPLE, rng)
    costs = feasible.model.costs(np.array([architecture.indices for architecture in found]), ("macs", "memory"))
    most = (found[int(np.argmax(costs[column]))] for column in costs)
    return list({architecture.key: architecture for architecture in most}.values())
