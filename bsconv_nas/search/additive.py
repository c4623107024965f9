"""Our default sampler: an additive model, a likely draw of it, and the network that would move the front most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import moocore
import numpy as np

from bsconv_nas.search.additive_model import Encoding, fit
from bsconv_nas.search.table_sampler import Floats, History, TableSampler, log_costs
from bsconv_nas.search.variation import admitted, crossed, mutated
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Population

__all__ = ["AdditiveSampler", "front_gain"]

PARENTS = 48  # of each generation
CHANGES = 2.0  # dimensions that a mutation changes, on average


class AdditiveSampler(TableSampler):
    """Thompson sampling of an additive model with front gain as acquisition.

    Each proposal draws the weights of `bsconv_nas.search.additive_model` once for every objective that has to be
    measured; costs are known. In a feasible pool, evolved for some generations, it takes the network by which the
    hypervolume of the front would grow most under that draw, costs counted in octaves; with one objective that of the
    highest drawn value. Trials under way count with what the draw promises of them, so that proposals made side by
    side differ.

    Args:
        feasible: the networks inside the budget.
        pool: candidates in each generation.
        generations: of mutations and crossovers that the pool goes through.
        temperature: scale of the draw; 0 trusts the likeliest model.
        seed: of the generator.
    """

    def __init__(
        self,
        *,
        feasible: FeasibleSet,
        pool: int = 256,
        generations: int = 4,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> None:
        for name, value, least in (("pool", pool, 1), ("generations", generations, 0), ("temperature", temperature, 0)):
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, but got {value!r}")
        super().__init__(feasible=feasible, seed=seed)
        self._pool, self._generations, self._temperature = pool, generations, temperature

    def choose(self, history: History, rng: np.random.Generator) -> Sequence[int] | None:
        """Return the network with the highest drawn gain."""
        if len(history.finished) == 0:
            return None
        predict = self._drawn(history, rng)
        targets = history.targets(self.feasible)
        expected = predict(history.rows[history.running])
        gain = front_gain(np.concatenate([targets, expected]), history.reference(self.feasible))
        rows = self._evolved(history, lambda rows: gain(predict(rows)), rng)
        return [int(index) for index in rows[0]] if len(rows) else None

    def _drawn(self, history: History, rng: np.random.Generator) -> Callable[[Population], Floats]:
        """Return what networks reach under one draw of the model: `(n, D) -> (n, m)`, more is better."""
        finished = history.rows[history.finished]
        encode = Encoding(self.feasible, finished)
        measured = [j for j, goal in enumerate(history.goals) if goal.column is None]
        posteriors = fit(encode(finished), history.values[history.finished][:, measured])
        models = {j: p.draw(rng, self._temperature) for j, p in zip(measured, posteriors, strict=True)}

        known = ["macs", *(goal.column for goal in history.goals if goal.column is not None)]

        def predict(rows: Population) -> Floats:
            octaves = log_costs(self.feasible, rows, tuple(dict.fromkeys(known)))
            features = encode(rows, octaves["macs"])
            columns = [
                models[j](features) if goal.column is None else goal.sign * octaves[goal.column]
                for j, goal in enumerate(history.goals)
            ]
            return np.stack(columns, axis=1)

        return predict

    def _evolved(self, history: History, score: Callable[[Population], Floats], rng: np.random.Generator) -> Population:
        """Return untried networks of high score, the best first, shape (n, D)."""
        parents = history.rows
        pool, scores = np.empty((0, parents.shape[1]), dtype=np.int64), np.empty(0)
        known = set(history.tried)
        for _ in range(self._generations + 1):
            fresh = admitted(self.feasible, self._children(parents, rng), known)
            known.update(row.tobytes() for row in fresh)
            pool, scores = np.concatenate([pool, fresh]), np.concatenate([scores, score(fresh)])
            best = np.argsort(-scores, kind="stable")[:PARENTS]
            pool, scores = pool[best], scores[best]
            parents = pool if len(pool) else parents
        return pool

    def _children(self, parents: Population, rng: np.random.Generator) -> Population:
        """Return uniform draws and children of random parents: half of two, half of one, most of them mutated."""
        sizes = self.feasible.table.sizes
        first, second = (parents[rng.integers(len(parents), size=self._pool)] for _ in range(2))
        mixed = np.where(rng.random((self._pool, 1)) < 0.5, crossed(first, second, rng), first)
        uniform = rng.integers(0, sizes, size=(self._pool // 4, len(sizes)))
        return np.concatenate([mutated(mixed, sizes, rng.poisson(CHANGES, self._pool), rng), uniform])


def front_gain(targets: Floats, reference: Floats) -> Callable[[Floats], Floats]:
    """Return the function that scores what candidates would add to a front: `(n, m) -> (n,)`.

    The score is the growth of the hypervolume over `reference`; below zero, for what a member of the front beats, how
    far it is from the front. With one objective it is the value itself.

    Args:
        targets: of the networks there are, more is better, shape (k, m).
        reference: the point that the volume is bounded by, shape (m,).

    >>> gain = front_gain(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0.0, 0.0]))
    >>> gain(np.array([[2.0, 2.0], [3.0, 0.5], [1.0, 1.0]])).tolist()
    [1.0, 0.5, -0.0]
    """
    if targets.shape[1] == 1:
        return lambda candidates: candidates[:, 0]
    front = targets[moocore.is_nondominated(targets, maximise=True)]
    spread = np.maximum(np.ptp(targets, axis=0), 1e-12)
    growth = _area_growth(front, reference) if targets.shape[1] == 2 else _volume_growth(front, reference)

    def gain(candidates: Floats) -> Floats:
        lead = ((front[None] - candidates[:, None]) / spread).min(axis=2).max(axis=1, initial=-np.inf)
        out: Floats = -lead
        ahead = np.flatnonzero(lead < 0)
        out[ahead] = growth(candidates[ahead])
        return out

    return gain


def _area_growth(front: Floats, reference: Floats) -> Callable[[Floats], Floats]:
    """Return the growth of a two-dimensional hypervolume: the area of each candidate's box above the front's steps."""
    steps = np.maximum(front[front[:, 0].argsort()] - reference, 0)
    ends = np.append(steps[:, 0], np.inf)
    starts, heights = np.append(0, steps[:, 0]), np.append(steps[:, 1], 0)

    def growth(candidates: Floats) -> Floats:
        across, up = np.maximum(candidates - reference, 0).T[:, :, None]
        widths = np.minimum(across, ends) - np.minimum(across, starts)
        return np.asarray((widths * np.maximum(up - heights, 0)).sum(axis=1))

    return growth


def _volume_growth(front: Floats, reference: Floats) -> Callable[[Floats], Floats]:
    """Return the growth of a hypervolume of any dimension, one candidate after the other."""
    volume = moocore.Hypervolume(ref=reference, maximise=True)
    before = float(volume(front))

    def growth(candidates: Floats) -> Floats:
        return np.array([volume(np.vstack([front, candidate])) - before for candidate in candidates])

    return growth
