"""Proposals: samplers kept inside the budget and away from what was tried.

The study lives in memory and mirrors the record: one Optuna trial for each baseline and search trial, in their order.
A wrapping sampler asks the inner one, repairs its answer to a near feasible network and replaces a known one by the
nearest untried, so that the study holds what is really trained. The inner sampler is built anew for each proposal from
(run seed, trial number) and keeps its memory in trial and study attributes, which the record holds: a study rebuilt
from a record proposes what the uninterrupted one would. The first proposals, and those on which the sampler has no
opinion, are drawn evenly over log MACs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from bsconv_nas.errors import SearchError
from bsconv_nas.search.record import Objective, Record, State
from bsconv_nas.search.samplers import SamplerChoice, quiet
from bsconv_nas.search.stratified import position
from bsconv_nas.search.table_sampler import distributions
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

__all__ = ["Proposal", "Proposer"]

_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A network to train, with the attributes that its record must keep.

    `repaired`: the sampler's answer broke the budget. `duplicate`: it was tried before. Either way `architecture` is
    the near network that took its place.
    """

    architecture: Architecture
    attributes: dict[str, Any]
    repaired: bool = False
    duplicate: bool = False


class Proposer:
    """A study over the networks inside a budget.

    Args:
        feasible: the networks inside the budget.
        choice: the inner sampler, as from `bsconv_nas.search.samplers.sampler`.
        objectives: what is told, in this order.
        seed: the run's; proposals depend on it, the trial's number and the study alone.
    """

    def __init__(
        self,
        feasible: FeasibleSet,
        choice: SamplerChoice,
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self._sampler = _FeasibleSampler(feasible, choice, seed)
        self._storage = InMemoryStorage()
        with quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=self._sampler,
                directions=[_DIRECTIONS[objective.direction] for objective in objectives],
            )
            self._study.set_metric_names([objective.name for objective in objectives])
        self._id = self._storage.get_study_id_from_name(self._study.study_name)
        self._objectives = tuple(objectives)
        self._places: dict[int, int] = {}  # trial number in the record -> number in the study

    def propose(self, number: int) -> Proposal | None:
        """Return an untried network inside the budget for trial `number`; None if there is no other left."""
        return self._ask(number, None)

    def take(self, number: int, architecture: Architecture) -> Proposal:
        """Enter a given network, such as a baseline, as trial `number`; the sampler learns from it as from its own."""
        proposal = self._ask(number, architecture)
        assert proposal is not None
        return proposal

    def tell(self, number: int, state: State, values: Sequence[float] | None = None) -> None:
        """End trial `number`: `complete` with one value an objective; `stopped` and `failed` without any.

        A trial that was stopped early poses as no finished one: it has no value at full training.
        """
        told = values if state == "complete" else None
        # Not Study.tell, which copies the trial twice: the sampler looks at what ended when it is asked.
        self._storage.set_trial_state_values(self._trial_id(number), _STATES[state], told)

    def replay(self, record: Record) -> None:
        """Rebuild the study from a record, trial by trial, running ones included."""
        for number, trial in sorted(record.trials.items()):
            if trial.started.kind == "retrain":
                continue
            values = [trial.values[objective.name] for objective in self._objectives if trial.state == "complete"]
            attributes = trial.started.attributes
            self._sampler.tried.add(trial.started.key)
            self._sampler.drawn += trial.started.kind == "search"
            self._set_study_attributes(attributes.get("study", {}))
            self._add(number, trial.started.indices, _STATES[trial.state], values or None, attributes.get("trial", {}))

    def _ask(self, number: int, given: Architecture | None) -> Proposal | None:
        before = self._study_attributes()
        with quiet(), _blas().limit(limits=1, user_api="blas"):
            trial = self._study.ask(self._sampler.take(number, given))
        answer = self._sampler.answer
        if answer is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._places[number] = trial.number
        kept = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        study = {key: value for key, value in self._study_attributes().items() if before.get(key) != value}
        attributes = {"trial": _portable(kept), "study": _portable(study)}
        return Proposal(answer.architecture, {k: v for k, v in attributes.items() if v}, *answer.changes)

    def _add(
        self,
        number: int,
        indices: Sequence[int],
        state: TrialState,
        values: list[float] | None,
        attributes: Mapping[str, Any],
    ) -> None:
        self._places[number] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params=self._sampler.params(indices),
                distributions=self._sampler.space,
                system_attrs=dict(attributes),
            )
        )

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, self._places[number])

    def _study_attributes(self) -> dict[str, Any]:
        return dict(self._storage.get_study_system_attrs(self._id))

    def _set_study_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self._storage.set_study_system_attr(self._id, key, value)


@dataclass(frozen=True, slots=True)
class _Answer:
    architecture: Architecture
    changes: tuple[bool, bool] = (False, False)  # repaired, duplicate


class _FeasibleSampler(BaseSampler):
    """A sampler that passes on what another one proposes, feasible and untried."""

    def __init__(self, feasible: FeasibleSet, choice: SamplerChoice, seed: int) -> None:
        self._feasible, self._choice, self._seed = feasible, choice, seed
        self._number = 0
        self._given: Architecture | None = None
        self.tried: set[str] = set()
        self.drawn = 0  # proposals so far, given networks left out
        self.answer: _Answer | None = None
        options = {dimension.name: dimension.options for dimension in feasible.table.dimensions}
        self.space = distributions(feasible.table)
        # A dimension with one option leaves nothing to learn, and not every sampler bears it.
        self._open = {name: choices for name, choices in self.space.items() if not choices.single()}
        self._closed = {name: choices[0] for name, choices in options.items() if len(choices) == 1}

    def take(self, number: int, given: Architecture | None) -> dict[str, BaseDistribution]:
        """Prepare for trial `number`, to be `given` or proposed, and return its distributions."""
        self._number, self._given = number, given
        return self.space

    def params(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the options of a network by dimension."""
        return {d.name: d.options[i] for d, i in zip(self._feasible.table.dimensions, indices, strict=True)}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return every dimension: the space is flat."""
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the network to train; when there is none left, any one, and no answer."""
        # Also where its answer is not wanted: what the inner sampler notes in the trial makes it learn from it.
        asked = self._inner(study, trial)
        rng = np.random.default_rng((self._seed, self._number))
        self.answer = self._chosen(asked, rng) if self._given is None else _Answer(self._given)
        if self.answer is None:
            return self.params([0] * len(self.space))
        self.drawn += self._given is None
        self.tried.add(self.answer.architecture.key)
        return self.params(self.answer.architecture.indices)

    def _inner(self, study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """Return what the inner sampler proposes; None while it is not heard, or has no opinion."""
        state = np.random.SeedSequence((self._seed, self._number)).generate_state(1)
        try:
            inner = self._choice.build(self._feasible, int(state[0]))
            params = self._choice.propose(inner, study, trial, self._open)
        except Exception as error:
            raise SearchError(
                f"search.sampler {self._choice.name!r} must propose a network, but for trial {self._number} it raised "
                f"{type(error).__name__} ({error}): mend it, or take another."
            ) from error
        return None if params is None or self.drawn < self._choice.startup else {**self._closed, **params}

    def _chosen(self, asked: dict[str, Any] | None, rng: np.random.Generator) -> _Answer | None:
        """Return the network for the params `asked`; where nothing is asked, the next of an even draw over log MACs."""
        if asked is None:
            fresh = self._feasible.draw_at(position(self._seed, self.drawn), rng, self.tried)
            return None if fresh is None else _Answer(fresh)
        wanted = self._feasible.table.from_values(asked)
        fitting = self._feasible.repair(wanted.indices, rng)
        untried = self._feasible.nearest_untried(fitting, self.tried, rng)
        if untried is None:
            return None
        return _Answer(untried, (fitting.key != wanted.key, untried.key != fitting.key))

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Never asked: the relative search space is the whole one."""
        raise AssertionError(name)


@cache
def _blas() -> ThreadpoolController:
    """Return the hold on NumPy's linear algebra.

    On several threads it depends on the machine in its last digits, and waits for the cores that train.
    """
    return ThreadpoolController()


def _portable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record keeps: all but the notes by which samplers of one shared storage see each other's asks."""
    return {key: value for key, value in attributes.items() if ":relative_params" not in key}
