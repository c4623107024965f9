"""Proposals: Optuna's samplers, kept inside the budget and away from what was tried.

The study lives in memory and mirrors the record: one Optuna trial for each baseline and search trial, in their order.
A wrapping sampler asks the inner one, repairs its answer to a near feasible network and replaces a known one by the
nearest untried, so that the study holds what is really trained. The inner sampler is built anew for each proposal from
(run seed, trial number) and keeps its memory in trial and study attributes, which the record holds: a study rebuilt
from a record proposes what the uninterrupted one would.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bsconv_nas.errors import ExperimentError, suggest
from bsconv_nas.search.record import Objective, Record, State
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

__all__ = ["SAMPLERS", "Proposal", "Proposer", "sampler"]

# Optuna's default population of 50 is as many trials as a whole search often has, and until it is full NSGA draws at
# random.
POPULATION = 20
STARTUP = 10  # trials after which Optuna's model-based samplers begin to model

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "gp": GPSampler,
    "nsga2": partial(NSGAIISampler, population_size=POPULATION),
    "nsga3": partial(NSGAIIISampler, population_size=POPULATION),
    "random": RandomSampler,
    "tpe": partial(TPESampler, multivariate=True),
}

_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


def sampler(name: str, params: Mapping[str, Any]) -> Callable[..., BaseSampler]:
    """Return the constructor of a sampler by its name in `SAMPLERS`; it takes `seed`.

    Raises:
        ExperimentError: an unknown name, or parameters that do not hold.
    """
    if name not in SAMPLERS:
        raise ExperimentError(f"Unknown search.sampler {name!r}: {suggest(name, SAMPLERS)}.")
    known = inspect.signature(SAMPLERS[name]).parameters.keys() - {"seed"}
    if unknown := sorted(params.keys() - known):
        valid = suggest(unknown[0], known) if known else "it takes none"
        raise ExperimentError(f"Unknown parameter {unknown[0]!r} of search.sampler {name!r}: {valid}.")
    build = partial(SAMPLERS[name], **params)
    try:
        _try(build)
    except (AttributeError, TypeError, ValueError, FutureWarning) as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        raise ExperimentError(
            f"The parameters {dict(params)} of search.sampler {name!r} do not hold: {reason}."
        ) from None
    return build


def _try(build: Callable[..., BaseSampler]) -> None:
    """Ask once in a made-up study: Optuna looks at many parameters only when it uses them.

    What it is going to drop (a FutureWarning) is refused too: a record must still be read by a later version.
    """
    space: dict[str, BaseDistribution] = {name: CategoricalDistribution((0, 1)) for name in "ab"}
    with _quiet():
        warnings.simplefilter("error", FutureWarning)
        study = optuna.create_study(sampler=build(seed=0))
        for value in range(STARTUP):
            params = {"a": value % 2, "b": value // 2 % 2}
            study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=space))
        study.tell(study.ask(space), 0.0)


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
        build: the constructor of the inner sampler, as from `sampler`.
        objectives: what is told, in this order.
        seed: the run's; proposals depend on it, the trial's number and the study alone.
    """

    def __init__(
        self,
        feasible: FeasibleSet,
        build: Callable[..., BaseSampler],
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self._sampler = _FeasibleSampler(feasible, build, seed)
        self._storage = InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=self._sampler,
                directions=[_DIRECTIONS[objective.direction] for objective in objectives],
            )
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
        with _quiet():
            told = values if state == "complete" else None
            self._study.tell(self._places[number], told, state=_STATES[state])

    def replay(self, record: Record) -> None:
        """Rebuild the study from a record, trial by trial, running ones included."""
        for number, trial in sorted(record.trials.items()):
            if trial.started.kind == "retrain":
                continue
            values = [trial.values[objective.name] for objective in self._objectives if trial.state == "complete"]
            attributes = trial.started.attributes
            self._sampler.tried.add(trial.started.key)
            self._set_study_attributes(attributes.get("study", {}))
            self._add(number, trial.started.indices, _STATES[trial.state], values or None, attributes.get("trial", {}))

    def _ask(self, number: int, given: Architecture | None) -> Proposal | None:
        before = self._study_attributes()
        with _quiet():
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

    def __init__(self, feasible: FeasibleSet, build: Callable[..., BaseSampler], seed: int) -> None:
        self._feasible, self._build, self._seed = feasible, build, seed
        self._number = 0
        self._given: Architecture | None = None
        self.tried: set[str] = set()
        self.answer: _Answer | None = None
        options = {dimension.name: dimension.options for dimension in feasible.table.dimensions}
        self.space: dict[str, BaseDistribution] = {n: CategoricalDistribution(o) for n, o in options.items()}
        # A dimension with one option leaves nothing to learn, and not every sampler bears it.
        self._open = {name: choice for name, choice in self.space.items() if not choice.single()}
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
        # Also where the network is given: what the inner sampler notes in the trial makes it learn from it.
        asked = self._inner(study, trial)
        rng = np.random.default_rng((self._seed, self._number))
        self.answer = self._chosen(asked, rng) if self._given is None else _Answer(self._given)
        if self.answer is None:
            return self.params([0] * len(self.space))
        self.tried.add(self.answer.architecture.key)
        return self.params(self.answer.architecture.indices)

    def _inner(self, study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """Return what the inner sampler proposes; None while it has no opinion yet."""
        state = np.random.SeedSequence((self._seed, self._number)).generate_state(1)
        inner = self._build(seed=int(state[0]))
        params = inner.sample_relative(study, trial, self._open)
        if not params:
            return None
        for name, choice in self._open.items():
            if name not in params:  # NSGA leaves mutations to independent sampling
                params[name] = inner.sample_independent(study, trial, name, choice)
        return {**self._closed, **params}

    def _chosen(self, asked: dict[str, Any] | None, rng: np.random.Generator) -> _Answer | None:
        """Return the network for the params `asked`; a fresh feasible one where nothing is asked."""
        if asked is None:
            fresh = self._feasible.sample(1, rng, exclude=self.tried)
            return _Answer(fresh[0]) if fresh else None
        wanted = self._feasible.table.from_values(asked)
        fitting = self._feasible.repair(wanted.indices, rng)
        untried = self._feasible.nearest_untried(fitting, self.tried, rng)
        if untried is None:
            return None
        return _Answer(untried, (fitting.key != wanted.key, untried.key != fitting.key))

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Never asked: the relative search space is the whole one."""
        raise AssertionError(name)


def _portable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record keeps: all but the notes by which samplers of one shared storage see each other's asks."""
    return {key: value for key, value in attributes.items() if ":relative_params" not in key}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log and its warnings about experimental parts away from the user, here only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
