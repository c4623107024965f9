"""An Optuna journal of a run, for optuna-dashboard: `optuna-dashboard RUN/optuna.log`.

It is written for other tools and never read here. A trial is added once it has ended, which costs 1 to 4 ms at 40
dimensions; asking and telling through the journal would cost 160 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bsconv_nas.search.record import Objective, Record, Trial
from bsconv_nas.space.table import Table

__all__ = ["Mirror"]

_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class Mirror:
    """The journal at `path`, written anew, with one study called `name`."""

    def __init__(self, path: str | Path, name: str, table: Table, objectives: Sequence[Objective]) -> None:
        self._table, self._objectives = table, tuple(objectives)
        self._distributions: dict[str, BaseDistribution] = {
            dimension.name: CategoricalDistribution(dimension.options) for dimension in table.dimensions
        }
        for stale in (Path(path), Path(f"{path}.lock")):
            stale.unlink(missing_ok=True)
        self._storage = JournalStorage(JournalFileBackend(str(path)))
        directions = [_DIRECTIONS[objective.direction] for objective in self._objectives]
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every new study
        self._study = self._storage.create_new_study(directions, name)
        optuna.logging.set_verbosity(verbosity)
        self._written: set[int] = set()

    def update(self, record: Record) -> None:
        """Add the baseline and search trials that ended since the last call, in the order of their numbers."""
        for number in sorted(record.trials.keys() - self._written):
            trial = record.trials[number]
            if trial.state != "running" and trial.started.kind != "retrain":
                self._storage.create_new_trial(self._study, template_trial=self._frozen(trial))
                self._written.add(number)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        """Return the trial as Optuna knows it; one that ended without its objectives counts as failed."""
        started = trial.started
        values = [trial.values.get(objective.name, math.nan) for objective in self._objectives]
        state = _STATES[trial.state]
        if state == TrialState.COMPLETE and not all(map(math.isfinite, values)):
            state = TrialState.FAIL
        options = zip(self._table.dimensions, started.indices, strict=True)
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=values if state == TrialState.COMPLETE else None,
            datetime_start=datetime.fromtimestamp(started.time),
            datetime_complete=datetime.fromtimestamp(trial.ended),
            params={dimension.name: dimension.options[index] for dimension, index in options},
            distributions=self._distributions,
            intermediate_values=self._curve(trial),
            user_attrs={"number": trial.number, "key": started.key, "kind": started.kind, **trial.values}
            | ({"cause": trial.cause} if trial.cause else {}),
            system_attrs=started.attributes,
        )

    def _curve(self, trial: Trial) -> dict[int, float]:
        """Return the first objective by epoch; Optuna allows no learning curve for several objectives."""
        if len(self._objectives) > 1:
            return {}
        name = self._objectives[0].name
        return {epoch: metrics[name] for epoch, metrics in enumerate(trial.curve, 1) if name in metrics}
