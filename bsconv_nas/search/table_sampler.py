"""What samplers of our own share: Optuna's interface over rows of option indices of a space.

Such a sampler proposes feasible, untried networks in any Optuna study whose trials suggest every dimension of the
space by its name, as `Proposer` does; it keeps no memory beside the study.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Population, Table

__all__ = ["Floats", "Goal", "History", "TableSampler", "distributions", "identities", "log_costs"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective as a study has it: `sign` is +1 to maximise, -1 to minimise; `column` the cost column, if it is one.

    Costs are known before anything is trained and count in octaves; whatever else is measured.
    """

    sign: float
    column: str | None = None


@dataclass(frozen=True)
class History:
    """What a study knows, over the trials that have a network, by number.

    Attributes:
        rows: canonical option indices, shape (n, D).
        states: `TrialState` of each.
        values: the objectives of those that are complete, signed so that more is better; NaN elsewhere, shape (n, m).
        goals: the m objectives.
    """

    rows: Population
    states: tuple[TrialState, ...]
    values: Floats
    goals: tuple[Goal, ...]

    @cached_property
    def finished(self) -> npt.NDArray[np.int64]:
        """Positions of the trials with finite values, in their order; one that was stopped early has none."""
        return np.flatnonzero(np.isfinite(self.values).all(axis=1))

    @cached_property
    def running(self) -> npt.NDArray[np.int64]:
        """Positions of the trials that are under way."""
        return np.array([i for i, state in enumerate(self.states) if state == TrialState.RUNNING], dtype=np.int64)

    @cached_property
    def tried(self) -> set[bytes]:
        """What `identities` gives for every network, whatever became of it."""
        return set(identities(self.rows))

    def targets(self, feasible: FeasibleSet) -> Floats:
        """Return the objectives of the finished trials with costs in octaves, more is better, shape (finished, m)."""
        out = self.values[self.finished]
        for j, goal in enumerate(self.goals):
            if goal.column is not None:
                out[:, j] = goal.sign * log_costs(feasible, self.rows[self.finished], (goal.column,))[goal.column]
        return out

    def reference(self, feasible: FeasibleSet) -> Floats:
        """Return the worst that counts of each objective: an upper bound of the budget, else the worst finished value.

        Shape (m,), in the terms of `targets`; there must be a finished trial.
        """
        worst = self.targets(feasible).min(axis=0)
        for j, goal in enumerate(self.goals):
            bound = feasible.budget.bounds.get(goal.column or "", (0, 0))[1]
            if goal.sign < 0 and bound:
                worst[j] = -np.log2(bound)
        return np.asarray(worst)


def log_costs(feasible: FeasibleSet, rows: Population, columns: Sequence[str]) -> dict[str, Floats]:
    """Return log2 of the asked cost columns of networks, each of shape (n,)."""
    return {name: np.log2(np.maximum(cost, 1)) for name, cost in feasible.model.costs(rows, columns).items()}


def identities(rows: Population) -> list[bytes]:
    """Return what is equal for equal canonical rows only."""
    return [row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.int64)]


def distributions(table: Table) -> dict[str, BaseDistribution]:
    """Return the dimensions of a space as Optuna knows them."""
    return {dimension.name: CategoricalDistribution(dimension.options) for dimension in table.dimensions}


class TableSampler(BaseSampler):
    """A sampler that knows the space; subclasses say which network is next.

    Objectives that the study names (`Study.set_metric_names`) as a cost column are computed, not learned.

    Args:
        feasible: the networks inside the budget.
        seed: of the generator; equal seeds and studies give equal proposals.
    """

    def __init__(self, *, feasible: FeasibleSet, seed: int | None = None) -> None:
        self.feasible = feasible
        self._rng = np.random.default_rng(seed)
        self._others = RandomSampler(seed=seed)

    @abc.abstractmethod
    def choose(self, history: History, rng: np.random.Generator) -> Sequence[int] | None:
        """Return the option indices (D,) of the next network; None for any feasible one that is untried."""

    def reseed_rng(self) -> None:
        """Forget the seed, as Optuna asks of samplers in forked processes."""
        self._rng = np.random.default_rng()
        self._others.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return every dimension: the space is flat."""
        return distributions(self.feasible.table)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the options of the next network; of a tried one where the space is exhausted."""
        history = self.history(study)
        row = self.choose(history, self._rng)
        if row is None:
            row = self._fresh(history).indices
        return {d.name: d.options[i] for d, i in zip(self.feasible.table.dimensions, row, strict=True)}

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Return a random value: a parameter that is no dimension of the space is not ours to learn."""
        return self._others.sample_independent(study, trial, name, distribution)

    def history(self, study: Study) -> History:
        """Return what the study knows."""
        names = study.metric_names or [""] * len(study.directions)
        signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
        known = self.feasible.model.columns
        goals = tuple(Goal(s, n if n in known else None) for s, n in zip(signs, names, strict=True))
        trials, rows = _networks(study.get_trials(deepcopy=False), self.feasible.model)
        given = [t.values if t.state == TrialState.COMPLETE else [np.nan] * len(goals) for t in trials]
        return History(
            rows=rows,
            states=tuple(t.state for t in trials),
            values=np.array(given, dtype=np.float64).reshape(len(trials), len(goals)) * np.array(signs),
            goals=goals,
        )

    def _fresh(self, history: History) -> Architecture:
        tried = {self.feasible.table.named(row).key for row in history.rows.tolist()}
        found = self.feasible.sample(1, self._rng, exclude=tried) or self.feasible.sample(1, self._rng)
        return found[0]


def _networks(trials: Iterable[FrozenTrial], model: CostModel) -> tuple[list[FrozenTrial], Population]:
    """Return the trials that have a network, and its canonical row of each, shape (n, D)."""
    names, known = model.table.names, _known(model)
    found = []
    for trial in trials:
        with contextlib.suppress(KeyError):
            found.append((trial, tuple(map(trial.params.__getitem__, names))))
    if fresh := [options for _, options in found if options not in known]:
        places = [{option: i for i, option in enumerate(d.options)} for d in model.table.dimensions]
        rows = [[place[option] for place, option in zip(places, options, strict=True)] for options in fresh]
        known |= zip(fresh, identities(model.table.canonical(np.array(rows, dtype=np.int64))), strict=True)
    cells = b"".join(known[options] for _, options in found)
    return [trial for trial, _ in found], np.frombuffer(cells, dtype=np.int64).reshape(len(found), len(names)).copy()


@lru_cache(maxsize=4)
def _known(model: CostModel) -> dict[tuple[Any, ...], bytes]:
    """Return the canonical rows of the networks of a space that were asked for so far, by their options."""
    return {}
