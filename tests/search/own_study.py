"""Studies of a user's own, in which our samplers are plain Optuna samplers."""

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState, create_trial
from small_search import quality

from bsconv_nas.search.samplers import quiet
from bsconv_nas.search.table_sampler import distributions
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

DIRECTIONS = {"val_accuracy": "maximize", "macs": "minimize", "params": "minimize"}


def study_of(sampler: BaseSampler, *goals: str) -> Study:
    with quiet():
        study = optuna.create_study(sampler=sampler, directions=[DIRECTIONS[goal] for goal in goals])
        study.set_metric_names(list(goals))
    return study


def tell(
    study: Study,
    feasible: FeasibleSet,
    rows: Sequence[Sequence[int]],
    told: Sequence[Sequence[float]],
    state: TrialState = TrialState.COMPLETE,
) -> None:
    """Enter trials that somebody else has run."""
    for row, reached in zip(rows, told, strict=True):
        params = {d.name: d.options[i] for d, i in zip(feasible.table.dimensions, row, strict=True)}
        value = reached if state == TrialState.COMPLETE else None
        space = distributions(feasible.table)
        study.add_trial(create_trial(state=state, values=value, params=params, distributions=space))


def next_network(study: Study, feasible: FeasibleSet) -> Architecture:
    """Return what a study asks for, by the same `suggest_categorical` as a user's objective."""
    return suggested(study.ask(), feasible)


def suggested(trial: Trial, feasible: FeasibleSet) -> Architecture:
    return feasible.table.from_values(
        {d.name: trial.suggest_categorical(d.name, d.options) for d in feasible.table.dimensions}
    )


def optimised(sampler: BaseSampler, feasible: FeasibleSet, trials: int, *goals: str) -> list[Architecture]:
    """Return the networks of a study, in their order; a trial that Optuna fails is an error."""
    found = []

    def objective(trial: Trial) -> list[float]:
        architecture = suggested(trial, feasible)
        found.append(architecture)
        return [values(feasible, architecture)[goal] for goal in goals]

    study_of(sampler, *goals).optimize(objective, n_trials=trials)
    return found


def values(feasible: FeasibleSet, architecture: Architecture) -> dict[str, float]:
    cost = feasible.model.cost(architecture)
    return {"val_accuracy": quality(architecture.indices), "macs": float(cost.macs), "params": float(cost.params)}


def check(feasible: FeasibleSet, found: Sequence[Architecture]) -> None:
    """Every network keeps the budget, and none comes twice."""
    assert feasible.violations(np.array([a.indices for a in found])).max() == 0
    assert len({a.key for a in found}) == len(found)
