"""Finalists and uniform networks of like cost, trained in full with several seeds: what mixing gains.

A front is selected by noisy values, so it is judged by retrained means (winner's curse). The test split is evaluated
once, by the last epoch of each of these trials.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from bsconv_nas.cost.budget import format_quantity
from bsconv_nas.errors import RecordError
from bsconv_nas.search.pick import knee
from bsconv_nas.search.record import Ended, EpochDone, Event, Note, Record, Started, State, Trial
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Metrics, trial_seed
from bsconv_nas.space.table import Architecture, Table

__all__ = ["Comparison", "Pair", "Retraining", "chosen", "comparisons", "uniform_operator", "verdict"]

LIKE_COST = (0.7, 1.05)  # of a member's MACs
RIVALS = 2  # uniform networks of like cost for each member
CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]


def uniform_operator(table: Table, indices: Sequence[int]) -> str | None:
    """Return the operator that a network has at all its places, or None if it mixes."""
    resolved = table.resolve(indices)
    names = {str(value) for name, value in resolved.items() if name.startswith("conv.")}
    options = {str(table.dimensions[d].options[indices[d]]) for d in set(table.conv_dimension.values())}
    return (options.pop() if len(options) == 1 else names.pop().partition(":")[0]) if len(names) == 1 else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A member of the front and the uniform networks of like cost, by trial number."""

    member: int
    rivals: tuple[int, ...]


def chosen(trials: pd.DataFrame, found: pd.DataFrame, members: int) -> list[Pair]:
    """Return what to retrain: members spread over the front, each with its rivals.

    The most accurate member comes first, then the knee, then those that spread best over log2 MACs.

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
    return [Pair(number, _rivals(found, baselines, number)) for number in _spread(found, members)]


def _spread(found: pd.DataFrame, members: int) -> list[int]:
    cost = np.log2(found["macs"].to_numpy(float))
    accuracy = found["val_accuracy"].to_numpy(float)
    order = list(dict.fromkeys([int(np.argmax(accuracy)), knee(cost, accuracy)]))[:members]
    while len(order) < min(members, len(found)):
        distance = np.abs(cost[:, None] - cost[order]).min(axis=1)
        distance[order] = -1.0
        order.append(int(np.argmax(distance)))
    return [int(found.iloc[i]["number"]) for i in order]


def _rivals(found: pd.DataFrame, baselines: pd.DataFrame, number: int) -> tuple[int, ...]:
    macs = float(found.loc[found["number"] == number, "macs"].iloc[0])
    low, high = (share * macs for share in LIKE_COST)
    like = baselines[baselines["macs"].between(low, high) & (baselines["number"] != number)]
    if like.empty:
        like = baselines[(baselines["macs"] <= high) & (baselines["number"] != number)]
    return tuple(int(n) for n in like.nlargest(RIVALS, "val_accuracy")["number"])


class Retraining:
    """The driver of a retraining: fixed jobs, each recorded as a `retrain` trial. No Ray.

    Jobs that an interrupted retraining has completed are not run again.

    Args:
        store: the run's folder, locked by the caller.
        pairs: what to retrain.
        seeds: trainings of each network.
        epochs: of the full recipe.
        on_change: called with the record after every event.
    """

    def __init__(
        self, store: Store, pairs: Sequence[Pair], seeds: int, epochs: int, on_change: Callable[[Record], None]
    ) -> None:
        self._store, self._epochs, self._on_change = store, epochs, on_change
        self.record = store.record()
        numbers = dict.fromkeys(n for pair in pairs for n in (pair.member, *pair.rivals))
        run_seed = store.experiment.search.seed
        jobs = [
            (self.record.trials[n], trial_seed(run_seed, f"{self.record.trials[n].started.key}:{replicate}"))
            for replicate in range(seeds)
            for n in numbers
        ]
        retrained = [t for t in self.record.trials.values() if t.started.kind == "retrain"]
        known = {(t.started.key, t.started.seed): t for t in retrained if t.state in ("complete", "running")}
        self._open = [known[job] for trial, seed in jobs if (job := (trial.started.key, seed)) in known]
        self._open = [trial for trial in self._open if trial.state == "running"]
        self._jobs = [(trial, seed) for trial, seed in jobs if (trial.started.key, seed) not in known]
        self._running: set[int] = set()
        self.planned = len(jobs)
        self.interrupted = False

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing more comes."""
        return not self._running and not self._open and not self._jobs

    @property
    def stopping(self) -> bool:
        """Whether to end with trials still running."""
        return self.interrupted

    def next_job(self) -> Job | None:
        """Return the next training, or None if there is none."""
        if self.stopping or not (self._open or self._jobs):
            return None
        started = self._open.pop(0).started if self._open else self._start(*self._jobs.pop(0))
        self._running.add(started.number)
        architecture = Architecture(started.indices, started.key)
        epochs = self.record.trials[started.number].epochs
        return Job(started.number, architecture, started.seed, self._store.checkpoint(started.number), epochs)

    def _start(self, trial: Trial, seed: int) -> Started:
        number = max(self.record.trials) + 1
        event = dataclasses.replace(trial.started, number=number, kind="retrain", seed=seed, attributes={}, time=0.0)
        self._write(event)
        return event

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
        """Record why a training failed."""
        self._end(number, "failed", cause)

    def _end(self, number: int, state: State, cause: str = "") -> None:
        self._running.discard(number)
        trial = self.record.trials[number]
        self._write(Ended(number, state, trial.epochs, dict(trial.metrics), trial.seconds, cause))

    def close(self) -> None:
        """Say how the retraining ended."""
        self._write(Note("interrupted" if self.interrupted else "retrained"))

    def _write(self, event: Event) -> None:
        self.record.add(self._store.append(event))
        self._on_change(self.record)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A retrained member against the best uniform network of like cost.

    `gain` is the difference of mean test accuracies [points], `margin` half its 95 % interval (Welch's t), NaN with
    fewer than two seeds; `operator` is the rival's, `mixed` whether the member mixes operators at all.
    """

    key: str
    macs: int
    rival: str
    rival_macs: int
    operator: str
    seeds: tuple[int, int]
    mixed: bool
    gain: float
    margin: float


def comparisons(record: Record, trials: pd.DataFrame, pairs: Sequence[Pair], table: Table) -> list[Comparison]:
    """Return each member's comparison; rivals are chosen by their report accuracy, never by the test split."""
    done = trials[(trials["kind"] == "retrain") & (trials["state"] == "complete")]
    if "test_accuracy" not in done:
        return []
    return [found for pair in pairs if (found := _compare(record, done, pair, table)) is not None]


def _compare(record: Record, done: pd.DataFrame, pair: Pair, table: Table) -> Comparison | None:
    member = record.trials[pair.member].started
    own = done[done["key"] == member.key]
    rivals = [record.trials[n].started for n in pair.rivals]
    rated = [(done.loc[done["key"] == r.key, "report_accuracy"].mean(), r) for r in rivals]
    rated = [(value, rival) for value, rival in rated if math.isfinite(value)]
    if own.empty or not rated:
        return None
    rival = max(rated, key=lambda pair: pair[0])[1]
    ours, theirs = (
        100 * done.loc[done["key"] == key, "test_accuracy"].to_numpy(float) for key in (member.key, rival.key)
    )
    return Comparison(
        member.key,
        member.costs["macs"],
        rival.key,
        rival.costs["macs"],
        uniform_operator(table, rival.indices) or "uniform",
        (len(ours), len(theirs)),
        uniform_operator(table, member.indices) is None,
        float(ours.mean() - theirs.mean()),
        _margin(ours, theirs),
    )


def _margin(ours: Floats, theirs: Floats) -> float:
    if min(len(ours), len(theirs)) < 2:
        return math.nan
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return 0.0
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.high - interval.low) / 2


def verdict(found: Sequence[Comparison]) -> tuple[str, ...]:
    """Return one sentence for each comparison, costliest first: a gain, a loss or a tie, with its 95 % interval.

    >>> c = Comparison("a1", 40_000_000, "b2", 39_000_000, "bsconv_u", (5, 5), True, 0.4, 0.2)
    >>> print(*verdict([c]))
    At 40 M MACs mixing gains 0.4 +- 0.2 points over the best uniform network of like cost (bsconv_u, 39 M MACs; test \
accuracy, 5 against 5 seeds, 95 % interval).
    """
    return tuple(_sentence(c) for c in sorted(found, key=lambda c: -c.macs))


def _sentence(c: Comparison) -> str:
    what = "mixing" if c.mixed else "this uniform network"
    at = f"At {format_quantity(c.macs, 'macs')} MACs"
    against = f"the best uniform network of like cost ({c.operator}, {format_quantity(c.rival_macs, 'macs')} MACs"
    measured = f"test accuracy, {c.seeds[0]} against {c.seeds[1]} seeds"
    if math.isnan(c.margin):
        return f"{at} {what} differs by {c.gain:+.1f} points from {against}; {measured}: too few for an interval)."
    interval = f"{abs(c.gain):.1f} +- {c.margin:.1f} points"
    basis = f"{against}; {measured}, 95 % interval)."
    if abs(c.gain) <= c.margin:
        return f"{at} a tie: {what} differs by {c.gain:+.1f} +- {c.margin:.1f} points from {basis}"
    return f"{at} {what} {'gains' if c.gain > 0 else 'loses'} {interval} {'over' if c.gain > 0 else 'against'} {basis}"
