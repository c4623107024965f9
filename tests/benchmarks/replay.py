"""Searches on a table of finished trainings: the real samplers and schedulers at no cost, and what they find is worth.

A network that a search trains shows it the accuracy on the selection part under one seed of the table, drawn for each
network and search. What its front is worth is another matter: the accuracy on the report part under the other seeds
(under the same one while the table has no other).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.proposer import Proposer
from bsconv_nas.search.record import Objective
from bsconv_nas.search.samplers import SamplerChoice
from bsconv_nas.search.scheduler import Entry, Scheduler
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Population
from bsconv_nas.space.uniform import operators, uniform
from bsconv_nas.training.sources import shape

__all__ = ["OBJECTIVES", "Curve", "Ours", "Proposals", "Replay", "Tabulated", "replayed"]

OBJECTIVES = (Objective("val_accuracy", "max"), Objective("macs", "min"))
CHANCE = 0.1
STEPS = 200  # of the interval of log MACs
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Tabulated(FeasibleSet):
    """The networks inside a budget that the table has."""

    known: frozenset[bytes] = frozenset()

    def violations(self, population: Population) -> Floats:
        rows = self.table.canonical(population)
        absent = [row.tobytes() not in self.known for row in np.ascontiguousarray(rows, dtype=np.int64)]
        return super().violations(population) + np.array(absent, dtype=np.float64)


class Tabulated:
    """A table of trainings, made by `make_table.py`.

    Args:
        path: the experiment's file; the trainings lie beside it.
        octaves: width of the interval of MACs over which fronts are valued, below the budget.
        share: of the networks that are inside the budget.
    """

    def __init__(self, path: Path, octaves: float = 3.0, share: float = 0.8) -> None:
        experiment = Experiment.load(path)
        self.space = SearchSpace.load(experiment.space, *shape(experiment.data))
        rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
        networks = dict.fromkeys(tuple(row["network"]) for row in rows)
        self.rows = np.array(list(networks), dtype=np.int64)
        self.index = {row.tobytes(): i for i, row in enumerate(self.rows)}
        place = {network: i for i, network in enumerate(networks)}
        seeds = 1 + max(row["seed"] for row in rows)
        self.epochs = len(rows[0]["val_accuracy"])
        self.curves = np.full((seeds, len(place), self.epochs), np.nan)
        self.report = np.full((seeds, len(place)), np.nan)
        seconds = np.full((seeds, len(place), self.epochs), np.nan)
        for row in rows:
            at = row["seed"], place[tuple(row["network"])]
            self.curves[at], self.report[at], seconds[at] = row["val_accuracy"], row["report"], row["seconds"]
        self.seconds = np.repeat(np.nanmean(seconds, axis=(0, 2))[:, None], self.epochs, axis=1)
        self.macs = self.space.model.costs(self.rows, ("macs",))["macs"].astype(np.float64)
        self.high = float(np.quantile(self.macs, share))
        self.interval = np.linspace(np.log2(self.high) - octaves, np.log2(self.high), STEPS)

    @cached_property
    def feasible(self) -> FeasibleSet:
        """The tabulated networks inside the budget."""
        return _Tabulated(self.space.model, Budget(macs=int(self.high)), frozenset(self.index))

    def seed_of(self, network: int, search: int) -> int:
        """Return the seed under which a search sees a network."""
        there = np.flatnonzero(np.isfinite(self.report[:, network]))
        return int(there[np.random.default_rng((search, network)).integers(len(there))])

    def worth(self, network: int, seen: int) -> float:
        """Return the accuracy of a network under the seeds that a search did not see."""
        others = np.delete(self.report[:, network], seen)
        others = others[np.isfinite(others)]
        return float(others.mean()) if len(others) else float(self.report[seen, network])

    @cached_property
    def uniform(self) -> Floats:
        """What the best uniform network of at most so many MACs is worth, over the interval."""
        found = np.concatenate([uniform(self.space.table, name) for name in operators(self.space.table)])
        rows = np.ascontiguousarray(self.space.table.canonical(found))
        there = sorted({self.index[row.tobytes()] for row in rows if row.tobytes() in self.index})
        worth = np.nanmean(self.report[:, there], axis=0)
        return self._staircase(self.macs[there], worth, worth)

    def _staircase(self, macs: Floats, seen: Floats, worth: Floats) -> Floats:
        """Return what the networks are worth that look best among those of at most so many MACs."""
        fits = np.log2(macs)[None] <= self.interval[:, None] + 1e-9
        best = np.where(fits, seen[None], -np.inf)
        return np.where(fits.any(axis=1), worth[best.argmax(axis=1)], CHANCE)

    def score(self, networks: Sequence[int], seeds: Sequence[int]) -> float:
        """Return the points of accuracy above the uniform front, mean over the octaves of the interval (signed)."""
        if not networks:
            return float(100 * (CHANCE - self.uniform.mean()))
        seen = np.array([self.curves[s, n, -1] for n, s in zip(networks, seeds, strict=True)])
        worth = np.array([self.worth(n, s) for n, s in zip(networks, seeds, strict=True)])
        return float(100 * (self._staircase(self.macs[list(networks)], seen, worth) - self.uniform).mean())


class Proposals(Protocol):
    """Who proposes: what `Proposer` does, by numbers of the table's networks."""

    def next(self, number: int) -> int | None:
        """Return the next network; None if there is none."""

    def tell(self, number: int, network: int, accuracy: float, full: bool) -> None:
        """Take note of the last accuracy of a training, which was stopped early if not `full`."""


class Ours:
    """The product's proposals."""

    def __init__(self, table: Tabulated, choice: SamplerChoice, seed: int) -> None:
        self._table, self._proposer = table, Proposer(table.feasible, choice, OBJECTIVES, seed)

    def next(self, number: int) -> int | None:
        proposal = self._proposer.propose(number)
        return None if proposal is None else self._table.index[np.array(proposal.architecture.indices).tobytes()]

    def tell(self, number: int, network: int, accuracy: float, full: bool) -> None:
        self._proposer.tell(number, "complete" if full else "stopped", [accuracy, self._table.macs[network]])


@dataclass(frozen=True, slots=True)
class Curve:
    """What a search had reached: after so many device-seconds and trials, this score."""

    seconds: Floats
    score: Floats

    def first(self, score: float) -> float:
        """Return the device-seconds at which a score is reached; infinity if never."""
        there = np.flatnonzero(self.score >= score)
        return float(self.seconds[there[0]]) if len(there) else float("inf")


@dataclass(frozen=True, slots=True)
class Replay:
    """One search on a table: its proposals, its scheduler, and the seed of both."""

    table: Tabulated
    proposals: Proposals
    scheduler: Scheduler
    seed: int

    def trainings(self, limit: float) -> Iterator[tuple[int, int, float, bool]]:
        """Yield network, its seed, device-seconds, and whether it was trained in full, until `limit` [s] is spent."""
        spent, number = 0.0, 0
        while spent < limit:
            network = self.proposals.next(number)
            if network is None:
                return
            seed = self.table.seed_of(network, self.seed)
            epochs = self._epochs(number, network, seed)
            full = epochs == self.table.epochs
            self.proposals.tell(number, network, float(self.table.curves[seed, network, epochs - 1]), full)
            seconds = float(self.table.seconds[network, :epochs].sum())
            spent, number = spent + seconds, number + 1
            yield network, seed, seconds, full

    def _epochs(self, number: int, network: int, seed: int) -> int:
        cost = float(np.log2(self.table.macs[network]))
        for epoch in range(1, self.table.epochs):
            value = float(self.table.curves[seed, network, epoch - 1])
            if self.scheduler.decide(Entry(number, epoch, value, cost)) == "stop":
                return epoch
        return self.table.epochs


def replayed(replay: Replay, limit: float) -> Curve:
    """Return the score of a search over its device-seconds."""
    networks: list[int] = []
    seeds: list[int] = []
    seconds, scores = [0.0], [replay.table.score([], [])]
    for network, seed, spent, full in replay.trainings(limit):
        if full and replay.table.macs[network] <= replay.table.high:
            networks.append(network)
            seeds.append(seed)
        seconds.append(seconds[-1] + spent)
        scores.append(replay.table.score(networks, seeds) if full else scores[-1])
    return Curve(np.array(seconds), np.array(scores))
