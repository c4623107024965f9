"""What a run knows: events, and the trials that they add up to.

A run is a sequence of events, one JSON object a line in `trials.jsonl`. Nothing else is the truth: trials, fronts, the
sampler's study, the scheduler's rungs and the report are folds over it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from bsconv_nas.errors import RecordError, suggest
from bsconv_nas.space.table import Table

__all__ = [
    "SCHEMA",
    "TRIAL_COLUMNS",
    "Ended",
    "EpochDone",
    "Event",
    "Note",
    "Objective",
    "Record",
    "Started",
    "Trial",
    "event_from_json",
    "event_to_json",
    "front",
]

SCHEMA = 1
Kind = Literal["baseline", "search", "retrain"]
State = Literal["running", "complete", "stopped", "failed"]
TRIAL_COLUMNS = (
    "number",
    "key",
    "kind",
    "state",
    "val_accuracy",
    "macs",
    "params",
    "memory",
    "epochs",
    "seconds",
    "seed",
)


@dataclass(frozen=True, slots=True)
class Started:
    """A trial begins; `attributes` are the sampler's system attributes, needed to rebuild its study."""

    number: int
    kind: Kind
    key: str
    indices: tuple[int, ...]
    costs: dict[str, int]
    seed: int
    attributes: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class EpochDone:
    """A trial finished an epoch; `seconds` [s] is its device time so far."""

    number: int
    epoch: int
    metrics: dict[str, float]
    seconds: float
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial ended as complete, stopped (early) or failed; `metrics` are the last epoch's, `cause` the failure's."""

    number: int
    state: State
    epochs: int
    metrics: dict[str, float]
    seconds: float
    cause: str = ""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Note:
    """What happened beside the trials: `repaired` and `duplicate` proposals, `planned`, `finished` runs ..."""

    what: str
    detail: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


Event = Started | EpochDone | Ended | Note
_BEGINS = ("planned", "retraining")  # notes with which a driver begins, to search or to retrain
_ENDS = ("finished", "interrupted", "retrained")
_EVENTS: dict[str, type[Event]] = {"started": Started, "epoch": EpochDone, "ended": Ended, "note": Note}
_NAMES = {kind: name for name, kind in _EVENTS.items()}
_READERS: dict[str, TypeAdapter[Event]] = {name: TypeAdapter(kind) for name, kind in _EVENTS.items()}


def event_to_json(event: Event) -> dict[str, Any]:
    """Return the event as one plain JSON object; JSON knows no NaN and infinity, so metrics write them as text."""
    row = {"schema": SCHEMA, "event": _NAMES[type(event)], **dataclasses.asdict(event)}
    if "metrics" in row:
        row["metrics"] = {k: v if math.isfinite(v) else str(v) for k, v in row["metrics"].items()}
    return row


def event_from_json(row: Mapping[str, Any]) -> Event:
    """Return the event that `event_to_json` wrote.

    Raises:
        RecordError: another schema, an unknown event, or fields that it does not have.
    """
    fields = dict(row)
    if (schema := fields.pop("schema", None)) != SCHEMA:
        raise RecordError(f"An event must have schema {SCHEMA}, but got {schema!r}: read it with the version it names.")
    if (name := str(fields.pop("event", None))) not in _EVENTS:
        raise RecordError(f"Unknown event {name!r}: {suggest(name, _EVENTS)}.")
    known = [field.name for field in dataclasses.fields(_EVENTS[name])]
    if unknown := sorted(fields.keys() - set(known)):
        raise RecordError(f"Unknown field {unknown[0]!r} of event {name!r}: {suggest(unknown[0], known)}.")
    try:
        return _READERS[name].validate_python(fields)
    except ValidationError as reason:
        first = reason.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"Field {place!r} of event {name!r} does not hold: {first['msg'].lower()}.") from None


@dataclass(slots=True)
class Trial:
    """A trial as its events add up; `curve` holds the metrics of each epoch, `curve_seconds` [s] the time by then."""

    started: Started
    state: State = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    curve_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cause: str = ""
    ended: float = 0.0

    @property
    def number(self) -> int:
        """The trial's number in the run."""
        return self.started.number

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.curve)

    @property
    def values(self) -> dict[str, float]:
        """Costs and the last epoch's metrics: all that an objective can name."""
        return {**self.started.costs, **self.metrics}


@dataclass(frozen=True, slots=True)
class Objective:
    """What to optimise: a metric or cost column and its direction."""

    name: str
    direction: Literal["max", "min"]


class Record:
    """The fold over a run's events.

    Trials that never ended, for instance because their driver was killed, are `running`. `ended` are the numbers of the
    others, in the order in which they ended. `search_seconds` [s] is how long drivers searched: from a note `planned`
    to `finished`, `interrupted` or the last event before a kill.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.trials: dict[int, Trial] = {}
        self.notes: list[Note] = []
        self.ended: list[int] = []
        self.next_number = 0
        self.search_seconds = 0.0
        self._numbers: dict[tuple[Kind, State], set[int]] = {}
        self._fronts: dict[tuple[Objective, ...], tuple[int, list[int]]] = {}  # how many had ended, and the members
        self._searching, self._now = False, 0.0
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Fold one more event in.

        Raises:
            RecordError: an epoch or an end of a trial that never started.
        """
        self._tick(event)
        if isinstance(event, Note):
            self.notes.append(event)
        elif isinstance(event, Started):
            self._start(event)
        elif event.number not in self.trials:
            raise RecordError(f"Trial {event.number} must start before its other events, but has no 'started' event.")
        elif isinstance(event, EpochDone):
            self._epoch(self._changing(event.number), event)
        else:
            self._end(self._changing(event.number), event)

    def last(self, *kinds: str) -> Note | None:
        """Return the last note of some kinds."""
        return next((note for note in reversed(self.notes) if note.what in kinds), None)

    def _start(self, event: Started) -> None:
        if event.number in self.trials:
            self._leave(self._changing(event.number))
        self.trials[event.number] = Trial(event)
        self.next_number = max(self.next_number, event.number + 1)
        self._numbers.setdefault((event.kind, "running"), set()).add(event.number)

    def _changing(self, number: int) -> Trial:
        """Return a trial that is about to change; fronts are found anew if it had ended, which no driver does."""
        trial = self.trials[number]
        if trial.state != "running":
            self._fronts.clear()
        return trial

    def _leave(self, trial: Trial) -> None:
        self._numbers[trial.started.kind, trial.state].remove(trial.number)
        if trial.state != "running":
            self.ended.remove(trial.number)

    def _end(self, trial: Trial, event: Ended) -> None:
        self._leave(trial)
        trial.state, trial.metrics, trial.seconds = event.state, event.metrics, event.seconds
        trial.cause, trial.ended = event.cause, event.time
        self._numbers.setdefault((trial.started.kind, trial.state), set()).add(trial.number)
        if trial.state != "running":
            self.ended.append(trial.number)

    def _tick(self, event: Event) -> None:
        """Count the time since the event before, if a search went on meanwhile; a clock may be set back."""
        what = event.what if isinstance(event, Note) else ""
        if self._searching and what not in _BEGINS:
            self.search_seconds += max(0.0, event.time - self._now)
        if what in (*_BEGINS, *_ENDS):
            self._searching = what == "planned"
        self._now = event.time

    @staticmethod
    def _epoch(trial: Trial, event: EpochDone) -> None:
        """Fold an epoch in; one that is trained again after a resume replaces the first and all behind it."""
        del trial.curve[event.epoch - 1 :]
        del trial.curve_seconds[event.epoch - 1 :]
        trial.curve.append(event.metrics)
        trial.curve_seconds.append(event.seconds)
        trial.metrics, trial.seconds = event.metrics, event.seconds

    @property
    def keys(self) -> set[str]:
        """Keys of all networks that a baseline or search trial took up; none of them is trained again."""
        return {t.started.key for t in self.trials.values() if t.started.kind != "retrain"}

    def numbers(self, kind: Kind, state: State) -> set[int]:
        """Return the numbers of the trials of a kind in a state."""
        return self._numbers.get((kind, state), set())

    def count(self, kind: Kind, *states: State) -> int:
        """Return how many trials of a kind are in one of `states`; in any, if none is named."""
        return sum(len(self.numbers(kind, state)) for state in states or get_args(State))

    def front(self, objectives: Iterable[Objective]) -> list[int]:
        """Return the numbers of the front's trials, by number; what `front` gives, without a frame.

        Only what ended since the last call is compared with its members.
        """
        goals = tuple(_goals(objectives))
        seen, members = self._fronts.get(goals, (0, []))
        fresh = [n for n in self.ended[seen:] if self._may_lead(self.trials[n])]
        if fresh:
            numbers = sorted([*members, *fresh])
            rows = [[self.trials[n].values.get(goal.name, math.nan) for goal in goals] for n in numbers]
            values = np.array(rows, dtype=np.float64)
            whole = np.isfinite(values).all(axis=1)
            members = np.array(numbers)[whole][_nondominated(values[whole], goals)].tolist()
        self._fronts[goals] = len(self.ended), members
        return list(members)

    @staticmethod
    def _may_lead(trial: Trial) -> bool:
        return trial.state == "complete" and trial.started.kind != "retrain"

    def frame(self, table: Table) -> pd.DataFrame:
        """Return one row a trial: `TRIAL_COLUMNS`, further metrics, then the chosen option of each dimension."""
        rows = [self._row(trial, table) for trial in sorted(self.trials.values(), key=lambda t: t.number)]
        frame = pd.DataFrame(rows, columns=None if rows else [*TRIAL_COLUMNS, *table.names])
        extra = [c for c in frame.columns if c not in TRIAL_COLUMNS and c not in table.names]
        return frame.reindex(columns=[*TRIAL_COLUMNS, *extra, *table.names])

    @staticmethod
    def _row(trial: Trial, table: Table) -> dict[str, Any]:
        started = trial.started
        options = {d.name: d.options[i] for d, i in zip(table.dimensions, started.indices, strict=True)}
        return {
            "number": trial.number,
            "key": started.key,
            "kind": started.kind,
            "state": trial.state,
            "val_accuracy": float("nan"),
            **started.costs,
            **trial.metrics,
            "epochs": trial.epochs,
            "seconds": trial.seconds,
            "seed": started.seed,
            **options,
        }


def _goals(objectives: Iterable[Objective]) -> list[Objective]:
    """Return what a front is taken over: one objective is set against `macs`, so that it stays a curve."""
    goals = list(objectives)
    return goals if len(goals) > 1 else [*goals, Objective("macs", "min")]


def _nondominated(values: npt.NDArray[np.float64], goals: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Return which rows of `values` (n, goals) no other row beats, shape (n,)."""
    if len(values) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(values, maximise=[g.direction == "max" for g in goals]), dtype=np.bool_)


def front(trials: pd.DataFrame, objectives: Iterable[Objective]) -> pd.DataFrame:
    """Return the non-dominated `complete` baseline and search trials, cheapest first.

    With one objective (accuracy under a budget) the front is taken against `macs`.
    """
    goals = _goals(objectives)
    names = [goal.name for goal in goals]
    finished = trials[(trials["state"] == "complete") & (trials["kind"] != "retrain")].dropna(subset=names)
    kept = _nondominated(finished[names].to_numpy(dtype=np.float64), goals)
    kept_trials: pd.DataFrame = finished[kept].sort_values([names[-1], "number"], kind="stable")
    return kept_trials
