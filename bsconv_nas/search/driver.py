"""What the driver of a search decides and records: which trial is next, which goes on, what an end means. No Ray.

Whoever runs the trials asks `next_job`, reports through `epoch_done` and `failed`, and looks at `finished`. Every step
is one event in the store before anything follows from it, so a driver that dies can be built again from the record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from bsconv_nas.errors import SearchError
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.proposer import Proposal, Proposer
from bsconv_nas.search.record import Ended, EpochDone, Event, Kind, Note, Record, Started, State, Trial
from bsconv_nas.search.samplers import sampler
from bsconv_nas.search.scheduler import Scheduler, reached, replay, scheduler
from bsconv_nas.search.store import Store, kept
from bsconv_nas.search.trial import Job, Metrics, trial_seed
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

__all__ = ["ALIKE", "RETRIES", "Driver"]

RETRIES = 2  # of a trial whose worker died or ran out of memory
ALIKE = 5  # trials that all fail alike, with none before them, end the search


class Driver:
    """The state of a running search.

    Args:
        store: the run's folder, locked by the caller. What its record holds is gone on from.
        feasible: the networks inside the budget.
        epochs: of a full training.
        trials: how many networks to search in all; if None, what an earlier driver was asked for, or else the
            experiment says.
        on_change: called with the record after every event.
    """

    def __init__(
        self,
        store: Store,
        feasible: FeasibleSet,
        epochs: int,
        trials: int | None = None,
        on_change: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._store, self._feasible, self._epochs, self._on_change = store, feasible, epochs, on_change
        self._experiment: Experiment = store.experiment
        search = self._experiment.search
        self.record = store.record()
        planned = [int(note.detail["trials"]) for note in self.record.notes if note.what == "planned"]
        self.trials = trials if trials is not None else [search.trials, *planned][-1]
        build = sampler(search.sampler.name, search.sampler.params)
        self._proposer = Proposer(feasible, build, search.objectives, search.seed)
        self._scheduler: Scheduler = scheduler(search.scheduler.name, search.scheduler.params, epochs, idle=True)
        self._proposer.replay(self.record)
        replay(self._scheduler, self.record, search.objectives)
        self._baselines: deque[Architecture] = deque()
        self._waiting: deque[int] = deque()
        self._running: set[int] = set()
        self.exhausted = any(note.what == "exhausted" for note in self.record.notes)
        self.interrupted = False
        self.failure: str | None = None

    def begin(self) -> None:
        """Say what is planned, and settle what an earlier driver left open."""
        known = self.record.keys
        baselines = self._feasible.baselines(self._experiment.search.baselines)
        self._baselines.extend(architecture for architecture in baselines if architecture.key not in known)
        self._write(Note("planned", {"baselines": len(baselines), "trials": self.trials}))
        for number in sorted(n for n, t in self.record.trials.items() if t.state == "running"):
            trial = self.record.trials[number]
            if trial.started.kind != "retrain" and not (trial.curve and self._settle(trial)):
                self._waiting.append(number)

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing more comes."""
        return not self._running and not self._waiting and not self._baselines and (self.exhausted or self._left <= 0)

    @property
    def stopping(self) -> bool:
        """Whether the search has to end with trials still running."""
        return self.interrupted or self.failure is not None

    @property
    def _left(self) -> int:
        """Networks that the sampler still owes."""
        return self.trials - self.record.count("search")

    def next_job(self) -> Job | None:
        """Return the next trial to run: one left open, a baseline, then proposals; None if there is none now."""
        if self.stopping:
            return None
        number = self._waiting.popleft() if self._waiting else self._start()
        if number is None:
            return None
        self._running.add(number)
        trial = self.record.trials[number]
        architecture = Architecture(trial.started.indices, trial.started.key)
        return Job(number, architecture, trial.started.seed, self._store.checkpoint(number), trial.epochs)

    def _start(self) -> int | None:
        number = self.record.next_number
        if self._baselines:
            return self._enter(number, "baseline", self._proposer.take(number, self._baselines.popleft()))
        if self.exhausted or self._left <= 0:
            return None
        proposal = self._proposer.propose(number)
        if proposal is None:
            self.exhausted = True
            self._write(Note("exhausted"))
            return None
        return self._enter(number, "search", proposal)

    def _enter(self, number: int, kind: Kind, proposal: Proposal) -> int:
        architecture = proposal.architecture
        costs = self._feasible.model.cost(architecture).known()
        seed = trial_seed(self._experiment.search.seed, architecture.key)
        told = [what for what in ("repaired", "duplicate") if getattr(proposal, what)]
        self._write(
            Started(number, kind, architecture.key, architecture.indices, costs, seed, proposal.attributes),
            *(Note(what, {"number": number}) for what in told),
        )
        return number

    def epoch_done(self, number: int, epoch: int, metrics: Metrics, seconds: float) -> bool:
        """Record an epoch that took `seconds` [s] of device time; return whether the trial goes on."""
        trial = self.record.trials[number]
        before = trial.curve_seconds[epoch - 2] if 1 < epoch <= len(trial.curve_seconds) + 1 else 0.0
        self._write(EpochDone(number, epoch, metrics, before + seconds))
        return not self._settle(trial)

    def completed(self, number: int) -> None:
        """Record that a trial has no further epoch, be it before the last that was planned."""
        self._complete(self.record.trials[number])

    def failed(self, number: int, cause: str, retry: bool = False) -> None:
        """Record why a trial failed; one that may be retried goes on from its checkpoint, `RETRIES` times at most."""
        if number not in self._running:
            return  # it had ended, and then its worker broke
        self._running.discard(number)
        retries = sum(note.what == "retried" and note.detail["number"] == number for note in self.record.notes)
        if retry and retries < RETRIES:
            self._write(Note("retried", {"number": number, "cause": cause}))
            self._waiting.append(number)
        else:
            self._end(self.record.trials[number], "failed", cause)

    def _settle(self, trial: Trial) -> bool:
        """End a trial if its last epoch was its last; return whether it was."""
        entry = reached(trial, trial.epochs, self._experiment.search.objectives)
        if trial.epochs >= self._epochs:
            self._complete(trial)
        elif trial.started.kind == "baseline":
            self._scheduler.observe(entry)
        elif self._scheduler.decide(entry) == "stop":
            self._end(trial, "stopped")
        return trial.state != "running"

    def _complete(self, trial: Trial) -> None:
        names = [objective.name for objective in self._experiment.search.objectives]
        odd = [name for name in names if not math.isfinite(trial.values.get(name, math.nan))]
        if odd:
            value = trial.values.get(odd[0])
            self._end(trial, "failed", f"The objective {odd[0]!r} must be a finite number, but was {value}")
        else:
            self._end(trial, "complete")

    def _end(self, trial: Trial, state: State, cause: str = "") -> None:
        self._running.discard(trial.number)
        self._write(Ended(trial.number, state, trial.epochs, dict(trial.metrics), trial.seconds, cause))
        values = [trial.values[o.name] for o in self._experiment.search.objectives] if state == "complete" else None
        self._proposer.tell(trial.number, state, values)
        self._store.prune_checkpoints(kept(self.record, self._experiment))
        self._notice_systematic_failure()

    def _notice_systematic_failure(self) -> None:
        """Give up when every trial so far failed, and all for one reason."""
        if any(self.record.count(kind, "complete", "stopped") for kind in ("baseline", "search")):
            return
        ended = [t for t in self.record.trials.values() if t.state != "running" and t.started.kind != "retrain"]
        reasons = {trial.cause.partition(":")[0] if trial.state == "failed" else "" for trial in ended}
        if len(reasons) == 1 and "" not in reasons and (len(ended) >= ALIKE or self.finished):
            self.failure = ended[-1].cause

    def note(self, what: str, detail: dict[str, Any]) -> None:
        """Record what happened beside the trials."""
        self._write(Note(what, detail))

    def close(self) -> None:
        """Say how the search ended.

        Raises:
            SearchError: all trials failed, for the same reason.
        """
        if self.failure is not None:
            count = sum(trial.state == "failed" for trial in self.record.trials.values())
            raise SearchError(
                f"Some trial of a search must succeed, but all {count} so far failed alike, the last with "
                f"{self.failure!r} (run folder {str(self._store.path)!r}): mend the cause and search anew."
            )
        self._write(Note("interrupted" if self.interrupted else "finished"))

    def _write(self, *events: Event) -> None:
        for event in self._store.extend(events):
            self.record.add(event)
            self._on_change(self.record)
