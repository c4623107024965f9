"""Finalists and uniform networks of like cost, trained in full with several seeds.

The test split is evaluated once in each of these trials, by its last epoch.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bsconv_nas.errors import RecordError, SearchError
from bsconv_nas.search.driver import RETRIES
from bsconv_nas.search.pick import knee
from bsconv_nas.search.record import Ended, EpochDone, Event, Note, Record, State, Trial
from bsconv_nas.search.store import Store, kept
from bsconv_nas.search.trial import Job, Metrics, trial_seed
from bsconv_nas.space.table import Architecture

__all__ = ["LIKE_COST", "Outlook", "Pair", "Retraining", "chosen", "outlook"]

LIKE_COST = (0.7, 1.05)  # of a member's MACs
RIVALS = 2  # uniform networks of like cost for each member


@dataclass(frozen=True, slots=True)
class Pair:
    """A member of the front and the uniform networks of like cost, by trial number."""

    member: int
    rivals: tuple[int, ...]


def chosen(trials: pd.DataFrame, found: pd.DataFrame, members: int) -> list[Pair]:
    """Return what to retrain: members spread over the front, each with its rivals.

    Networks that the search found, if any is on the front: the most accurate comes first, then the knee, then those
    that spread best over log2 MACs. Uniform networks are their rivals, be they on the front or not.

    Args:
        trials: all trials of a run.
        found: its front.
        members: how many to choose.

    Raises:
        RecordError: no trial is complete.
    """
    if found.empty:
        raise RecordError("A run is retrained once a trial is complete, but this one has none: search on.")
    baselines = trials[(trials["kind"] == "baseline") & (trials["state"] == "complete")]
    searched = found[found["kind"] == "search"]
    candidates = found if searched.empty else searched
    return [Pair(number, _rivals(found, baselines, number)) for number in _spread(candidates, members)]


def _spread(found: pd.DataFrame, members: int) -> list[int]:
    macs = found["macs"].to_numpy(float)
    accuracy = found["val_accuracy"].to_numpy(float)
    order = list(dict.fromkeys([int(np.argmax(accuracy)), knee(macs, accuracy)]))[:members]
    while len(order) < min(members, len(found)):
        distance = np.abs(np.log2(macs[:, None] / macs[order])).min(axis=1)
        distance[order] = -1.0
        order.append(int(np.argmax(distance)))
    return [int(found.iloc[i]["number"]) for i in order]


def _rivals(found: pd.DataFrame, baselines: pd.DataFrame, number: int) -> tuple[int, ...]:
    macs = float(found.loc[found["number"] == number, "macs"].iloc[0])
    low, high = (share * macs for share in LIKE_COST)
    others = baselines[(baselines["macs"] <= high) & (baselines["number"] != number)]
    like = others[others["macs"] >= low]
    return tuple(int(n) for n in (others if like.empty else like).nlargest(RIVALS, "val_accuracy")["number"])


class Retraining:
    """The driver of a retraining: fixed jobs, each recorded as a `retrain` trial. No Ray.

    Jobs that an earlier retraining has completed are not run again, and those that it left open are gone on with.

    Args:
        store: the run's folder, locked by the caller.
        pairs: what to retrain.
        seeds: trainings of each network.
        epochs: of the full recipe.
        on_change: called with the record after every event.
    """

    def __init__(
        self,
        store: Store,
        pairs: Sequence[Pair],
        seeds: int,
        epochs: int,
        on_change: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._store, self._epochs, self._on_change = store, epochs, on_change
        self.record = store.record()
        networks = [self.record.trials[n] for n in dict.fromkeys(n for p in pairs for n in (p.member, *p.rivals))]
        run_seed = store.experiment.search.seed
        self._jobs = deque(
            (network, trial_seed(run_seed, f"{network.started.key}:{replicate}"))
            for replicate in range(seeds)
            for network in networks
        )
        self._waiting: deque[int] = deque()
        self._running: set[int] = set()
        self._causes: list[str] = []  # of those that ended, empty without failure
        self.interrupted = False

    def begin(self) -> None:
        """Say how many trainings are to come, and settle what an earlier retraining did."""
        asked = [(network.started.key, seed) for network, seed in self._jobs]
        known = {
            (trial.started.key, trial.started.seed): trial
            for trial in self.record.trials.values()
            if trial.started.kind == "retrain" and trial.state in ("complete", "running")
        }
        self._jobs = deque(job for job in self._jobs if (job[0].started.key, job[1]) not in known)
        self._waiting.extend(known[job].number for job in asked if job in known and known[job].state == "running")
        self._write(Note("retraining", {"trainings": len(self._jobs) + len(self._waiting)}))

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing more comes."""
        return not (self._running or self._waiting or self._jobs)

    @property
    def stopping(self) -> bool:
        """Whether to end with trials still running."""
        return self.interrupted

    def next_job(self) -> Job | None:
        """Return the next training, or None if there is none."""
        if self.stopping or not (self._waiting or self._jobs):
            return None
        number = self._waiting.popleft() if self._waiting else self._start(*self._jobs.popleft())
        self._running.add(number)
        trial = self.record.trials[number]
        architecture = Architecture(trial.started.indices, trial.started.key)
        return Job(number, architecture, trial.started.seed, self._store.checkpoint(number), trial.epochs)

    def _start(self, network: Trial, seed: int) -> int:
        number = max(self.record.trials) + 1
        self._write(
            dataclasses.replace(network.started, number=number, kind="retrain", seed=seed, attributes={}, time=0.0)
        )
        return number

    def epoch_done(self, number: int, epoch: int, metrics: Metrics, seconds: float) -> bool:
        """Record an epoch that took `seconds` [s]; return whether the training goes on."""
        trial = self.record.trials[number]
        before = trial.curve_seconds[epoch - 2] if 1 < epoch <= len(trial.curve_seconds) + 1 else 0.0
        self._write(EpochDone(number, epoch, metrics, before + seconds))
        if epoch >= self._epochs:
            self.completed(number)
        return epoch < self._epochs

    def completed(self, number: int) -> None:
        """Record that a training has no further epoch."""
        self._end(number, "complete")

    def failed(self, number: int, cause: str, retry: bool = False) -> None:
        """Record why a training failed; one that may be retried goes on from its checkpoint `RETRIES` times."""
        if number not in self._running:
            return  # it had ended, and then its worker broke
        retries = sum(note.what == "retried" and note.detail["number"] == number for note in self.record.notes)
        if retry and retries < RETRIES:
            self._running.discard(number)
            self._write(Note("retried", {"number": number, "cause": cause}))
            self._waiting.append(number)
        else:
            self._end(number, "failed", cause)

    def _end(self, number: int, state: State, cause: str = "") -> None:
        self._running.discard(number)
        self._causes.append(cause)
        trial = self.record.trials[number]
        self._write(Ended(number, state, trial.epochs, dict(trial.metrics), trial.seconds, cause))
        self._store.prune_checkpoints(kept(self.record, self._store.experiment))

    def note(self, what: str, detail: dict[str, Any]) -> None:
        """Record what happened beside the trials."""
        self._write(Note(what, detail))

    def close(self) -> None:
        """Say how the retraining ended.

        Raises:
            SearchError: all trainings failed.
        """
        self._write(Note("interrupted" if self.interrupted else "retrained"))
        if self._causes and all(self._causes):
            raise SearchError(
                f"Some training must succeed, but all {len(self._causes)} failed, the last with {self._causes[-1]!r} "
                f"(run folder {str(self._store.path)!r}): mend the cause and retrain again."
            )

    def _write(self, event: Event) -> None:
        self.record.add(self._store.append(event))
        self._on_change(self.record)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How far a retraining is: trainings and epochs done and planned, and the time left [s] once it can be told."""

    ended: int
    trainings: int
    epochs: int
    all_epochs: int
    eta_seconds: float | None


def outlook(record: Record, epochs: int, workers: int) -> Outlook:
    """Return how far the last retraining is.

    Args:
        record: of the run.
        epochs: of one training.
        workers: trainings at a time.
    """
    begun = next(note for note in reversed(record.notes) if note.what == "retraining")
    trials = [t for t in record.trials.values() if t.started.kind == "retrain"]
    ended = [t for t in trials if t.state != "running" and t.ended >= begun.time]
    active = ended + [t for t in trials if t.state == "running"]
    done, seconds = sum(t.epochs for t in active), sum(t.seconds for t in active)
    trainings = int(begun.detail["trainings"])
    left = (trainings - len(ended)) * epochs - sum(t.epochs for t in active if t.state == "running")
    return Outlook(len(ended), trainings, done, trainings * epochs, seconds / done * left / workers if done else None)
