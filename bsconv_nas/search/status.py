"""What `bsconv-nas status` and `bsconv-nas front` say about a run, as numbers and rows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Kind, Objective, Record, State, Trial

__all__ = ["Status", "front_text", "status"]


@dataclass(frozen=True, slots=True)
class Status:
    """How far a run is.

    Attributes:
        counts: trials by kind and state.
        planned: how many baseline and search trials there will be.
        best: the complete trial with the best value of `measured`.
        measured: what networks are ranked by.
        front: numbers of its trials.
        device_seconds: [s] of all training in the search together.
        wall_seconds: [s] in which the search ran, without pauses and retrainings.
        eta_seconds: [s] that are left; None before the first trial has ended.
        finished: whether no trial is to come.
    """

    counts: dict[tuple[Kind, State], int]
    planned: int
    best: Trial | None
    measured: Objective
    front: tuple[int, ...]
    device_seconds: float
    wall_seconds: float
    eta_seconds: float | None
    finished: bool

    def total(self, state: State) -> int:
        """Return the number of baseline and search trials in `state`."""
        return sum(n for (kind, s), n in self.counts.items() if s == state and kind != "retrain")


def status(record: Record, experiment: Experiment) -> Status:
    """Return how far a run is.

    What is planned says the last note `planned`, `{"baselines": n, "trials": m}`; a run is finished if `finished` is
    behind it.
    """
    trials = list(record.trials.values())
    marks = [note.what for note in record.notes if note.what in ("planned", "finished")]
    finished = marks[-1:] == ["finished"]
    counts = Counter((trial.started.kind, trial.state) for trial in trials)
    planned = _planned(record, experiment)
    measured = experiment.search.measured
    complete = [
        t for t in trials if t.state == "complete" and t.started.kind != "retrain" and math.isfinite(_gain(t, measured))
    ]
    return Status(
        counts=dict(counts),
        planned=planned,
        best=max(complete, key=lambda t: (_gain(t, measured), -t.started.costs.get("macs", 0)), default=None),
        measured=measured,
        front=tuple(record.front(experiment.search.objectives)),
        device_seconds=sum(trial.seconds for trial in trials if trial.started.kind != "retrain"),
        wall_seconds=record.search_seconds,
        eta_seconds=0.0 if finished else _eta(trials, planned, experiment.resources.workers),
        finished=finished,
    )


def _gain(trial: Trial, measured: Objective) -> float:
    """Return what a trial reached, the higher the better."""
    value = trial.metrics.get(measured.name, math.nan)
    return value if measured.direction == "max" else -value


def _planned(record: Record, experiment: Experiment) -> int:
    said = [note.detail for note in record.notes if note.what == "planned"]
    return int(said[-1]["baselines"]) + int(said[-1]["trials"]) if said else experiment.search.trials


def _eta(trials: list[Trial], planned: int, workers: int) -> float | None:
    """Return the seconds that are left if the open trials cost what the ended ones did on average."""
    searched = [trial for trial in trials if trial.started.kind != "retrain"]
    ended = [trial.seconds for trial in searched if trial.state != "running"]
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    begun = sum(min(trial.seconds, mean) for trial in searched if trial.state == "running")
    return max(0.0, mean * (planned - len(ended)) - begun) / workers


def front_text(front: pd.DataFrame, form: Literal["csv", "json"]) -> str:
    """Return the rows of a front as CSV with a header, or as a JSON list of objects; missing values are empty, null."""
    if form == "csv":
        return str(front.to_csv(index=False))
    return str(front.to_json(orient="records", indent=1)) + "\n"
