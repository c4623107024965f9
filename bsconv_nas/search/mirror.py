"""An Optuna journal of a run, for optuna-dashboard: `optuna-dashboard RUN/optuna.log`.

It is written for other tools and never read here. A trial is added once it has ended, which costs 1 ms at 40
dimensions; asking and telling through the journal would cost 160 ms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bsconv_nas.search.record import Objective, Record, Trial
from bsconv_nas.space.table import Table

__all__ = ["Mirror"]

_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class _Appending(BaseJournalBackend):
    """A journal of one writer, read back no further than to its first trial: its storage remembers none of the others.

    A storage that has created a study and a trial gets along without reading on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the creation of the study and of the first trial, as far as they are not read."""
        return self._kept[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write whole lines at once; what the machine loses in a crash, the next driver writes anew."""
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with self._path.open("ab", buffering=0) as file:
            file.write("".join(lines).encode())
        self._kept += [json.loads(line) for line in lines[: 2 - len(self._kept)]]


class Mirror:
    """The journal at `path`, written anew, with one study called `name`."""

    def __init__(self, path: str | Path, name: str, table: Table, objectives: Sequence[Objective]) -> None:
        self._table, self._objectives = table, tuple(objectives)
        self._distributions: dict[str, BaseDistribution] = {
            dimension.name: CategoricalDistribution(dimension.options) for dimension in table.dimensions
        }
        for stale in (Path(path), Path(f"{path}.lock")):
            stale.unlink(missing_ok=True)
        directions = [_DIRECTIONS[objective.direction] for objective in self._objectives]
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every new study
        self._storage = JournalStorage(_Appending(Path(path)))
        self._study = self._storage.create_new_study(directions, name)
        optuna.logging.set_verbosity(verbosity)
        self._written = 0

    def update(self, record: Record) -> None:
        """Add the baseline and search trials that ended since the last call, in the order of their numbers."""
        fresh = [record.trials[number] for number in sorted(record.ended[self._written :])]
        self._written = len(record.ended)
        for trial in fresh:
            if trial.started.kind != "retrain":
                self._storage.create_new_trial(self._study, template_trial=self._frozen(trial))

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
