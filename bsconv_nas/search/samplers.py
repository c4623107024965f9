"""Samplers by name: Optuna's, ours, and the user's own by `package.module:Class`; their parameters are checked here."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import ExperimentError, first_line, suggest
from bsconv_nas.search.additive import AdditiveSampler
from bsconv_nas.search.evolution import EvolutionSampler
from bsconv_nas.search.stratified import StratifiedSampler
from bsconv_nas.search.table_sampler import distributions
from bsconv_nas.search.uniform import UniformSampler
from bsconv_nas.space.graph import Graph
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Dimension, Table
from bsconv_nas.training.sources import user_module

__all__ = ["SAMPLERS", "STARTUP", "SamplerChoice", "quiet", "sampler", "slowness"]

STARTUP = 8  # proposals that are drawn evenly over log MACs before the sampler is heard
# Optuna's default population of 50 is as many trials as a whole search often has, and until it is full NSGA draws at
# random.
POPULATION = 20

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "additive": AdditiveSampler,
    "evolution": EvolutionSampler,
    "gp": GPSampler,
    "nsga2": partial(NSGAIISampler, population_size=POPULATION),
    "nsga3": partial(NSGAIIISampler, population_size=POPULATION),
    "random": UniformSampler,
    "stratified": StratifiedSampler,
    "tpe": partial(TPESampler, multivariate=True),
}
_FIXED_STARTUP = {"random": 0, "stratified": sys.maxsize}  # these are a way to start themselves
_PROVIDED = ("feasible", "seed")  # arguments that a search gives to constructors that declare them
_SLOW = {"gp": 300}  # finished trials from which a proposal takes many seconds


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """A sampler as a search uses it.

    Attributes:
        name: what the user called it.
        make: its constructor; it takes what it declares of `feasible` (a FeasibleSet) and `seed`.
        startup: proposals that are drawn evenly over log MACs before it is heard.
        joint: whether it proposes whole networks; else it is asked dimension by dimension.
    """

    name: str
    make: Callable[..., BaseSampler]
    startup: int = STARTUP
    joint: bool = True

    def build(self, feasible: FeasibleSet, seed: int) -> BaseSampler:
        """Return a sampler without memory of its own."""
        given = {"feasible": feasible, "seed": seed}
        return self.make(**{name: given[name] for name in _PROVIDED if name in _parameters(self.make)})

    def propose(
        self, inner: BaseSampler, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        """Return what `inner` proposes, whole; None while it has no opinion yet.

        Args:
            inner: as from `build`.
            study: what it learns from.
            trial: the one to propose for.
            space: the dimensions with a choice.
        """
        params = inner.sample_relative(study, trial, space) if self.joint else {}
        if not params and (self.joint or not _any_complete(study)):
            return None
        for name, choice in space.items():
            if name not in params:  # NSGA leaves mutations to independent sampling
                params[name] = inner.sample_independent(study, trial, name, choice)
        return params


def _any_complete(study: Study) -> bool:
    return any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))


def sampler(name: str, params: Mapping[str, Any]) -> SamplerChoice:
    """Return a sampler by its name in `SAMPLERS` or its own by `package.module:Class`.

    `startup` among the parameters is not the constructor's: so many proposals are drawn evenly over log MACs first.

    Raises:
        ExperimentError: an unknown name, a class that cannot be had, or parameters that do not hold.
    """
    make = _own(name) if ":" in name else SAMPLERS.get(name)
    if make is None:
        raise ExperimentError(
            f"Unknown search.sampler {name!r}: {suggest(name, SAMPLERS)}; or your own as 'package.module:Class'."
        )
    declared = _parameters(make)
    known = {key for key, p in declared.items() if p.kind not in _ANY} - set(_PROVIDED)
    known |= set() if name in _FIXED_STARTUP else {"startup"}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in declared.values())
    if not open_ended and (unknown := sorted(params.keys() - known)):
        valid = suggest(unknown[0], known) if known else "it takes none"
        raise ExperimentError(f"Unknown parameter {unknown[0]!r} of search.sampler {name!r}: {valid}.")
    startup = _FIXED_STARTUP.get(name, params.get("startup", STARTUP))
    if not isinstance(startup, int) or isinstance(startup, bool) or startup < 0:
        raise ExperimentError(
            f"The parameter 'startup' of search.sampler {name!r} must be a whole number of at least 0, "
            f"but got {startup!r}."
        )
    rest = {key: value for key, value in params.items() if key != "startup"}
    return _tried(SamplerChoice(name, partial(make, **rest), startup), params)


def slowness(name: str, trials: int) -> str | None:
    """Return a warning for a sampler whose proposals become slow before a search of so many trials ends, else None.

    >>> slowness("gp", 300), slowness("tpe", 9000)
    (None, None)
    """
    most = _SLOW.get(name, trials)
    if trials <= most:
        return None
    return (
        f"search.sampler {name!r} takes many seconds a proposal above {most} finished trials, but {trials} trials are "
        "planned: plan fewer, or take 'additive' or 'tpe'."
    )


_ANY = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _parameters(make: Callable[..., BaseSampler]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


def _own(name: str) -> Callable[..., BaseSampler]:
    """Return the user's class."""
    module, attribute = user_module(name, "search.sampler", ExperimentError)
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, BaseSampler)) or inspect.isabstract(found):
        classes = [k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, BaseSampler)]
        listed = suggest(attribute, classes) if classes else "the module has none"
        raise ExperimentError(f"search.sampler {name!r} must be a class derived from optuna's BaseSampler: {listed}.")
    made: Callable[..., BaseSampler] = found
    return made


def _tried(choice: SamplerChoice, params: Mapping[str, Any]) -> SamplerChoice:
    """Ask once in a made-up study: many parameters are only looked at in use. Note whether whole networks come back.

    What Optuna is going to drop (a FutureWarning) is refused too: a record must still be read by a later version.
    """
    options = ("regular", "bsconv_u")
    table = Table(Graph((), (), (), (), (3, 8, 8), 10), tuple(Dimension(n, "conv", options, ()) for n in "abcde"))
    feasible, space = FeasibleSet(CostModel(table), Budget()), distributions(table)
    try:
        with quiet():
            warnings.simplefilter("error", FutureWarning)
            study = optuna.create_study(sampler=choice.build(feasible, 0))
            for number, row in enumerate(np.ndindex(2, 2, 2, 2)):
                values = {name: options[i] for name, i in zip("abcde", (*row, 0), strict=True)}
                study.add_trial(optuna.trial.create_trial(value=number, params=values, distributions=space))
            frozen = study.get_trials()[0]
            joint = bool(study.sampler.infer_relative_search_space(study, frozen))
            study.tell(study.ask(space), 0.0)
    except Exception as error:  # Optuna's constructors and the user's raise what they like
        raise ExperimentError(
            f"The parameters {dict(params)} of search.sampler {choice.name!r} do not hold: "
            f"{first_line(error).partition('. ')[0]}."
        ) from None
    return SamplerChoice(choice.name, choice.make, choice.startup, joint)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log and its warnings about experimental parts away from the user, here only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
