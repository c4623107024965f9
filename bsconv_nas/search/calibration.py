"""How early a training tells what becomes of a network, and what early stopping would save: folds over full curves.

Short training favours small regular networks, so that only networks of like cost are compared: a wide range of costs
flatters any proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from bsconv_nas.errors import RecordError
from bsconv_nas.search.record import Objective, Record, Trial
from bsconv_nas.search.scheduler import Entry, ParetoAsha, reached

__all__ = ["CONFIDENCE", "GAIN", "LOW", "TAU", "TOLERANCES", "Calibration", "Fidelity", "Plan", "calibration"]

# At tau 0.6 four in five pairs of like cost stand as they do at the end, and the interval has to leave no doubt about
# seven in ten: where a third goes on, a network would else be stopped by chance too often.
TAU, LOW = 0.6, 0.4
CONFIDENCE = 0.9
GAIN = 1.1  # less is not worth it
ETAS = (2, 3, 4)
LEAST = 8  # networks
PAIRS = 30  # fewer say nothing; like cost is then taken wider
TOLERANCES = (0.1, 0.15, 0.2, 0.3, 0.5)
ORDERS = 400  # in which the curves are replayed
RESAMPLES = 999
_BATCH = 2_000_000  # pairs at a time

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Kendall's tau between the ranking after an epoch and the last one, over pairs of like cost, with its interval."""

    epoch: int
    tau: float
    low: float
    high: float

    @property
    def trusted(self) -> bool:
        """Whether networks may be stopped by how they stand after this epoch."""
        return self.tau >= TAU and self.low >= LOW


@dataclass(frozen=True, slots=True)
class Plan:
    """What `pareto_asha` would have done: means over random orders of the networks, one after the other.

    Attributes:
        eta: its parameter.
        min_epochs: its parameter.
        rungs: the epochs after which it compares.
        epochs: share of all epochs that it trains.
        seconds: share of the device time that it takes.
        lost: share of orders in which it stops a network of the front, by its key; those that it never stops left out.
        front: how many networks that front has.
    """

    eta: int
    min_epochs: int
    rungs: tuple[int, ...]
    epochs: float
    seconds: float
    lost: dict[str, float]
    front: int

    @property
    def lost_share(self) -> float:
        """The share of the front that is lost on average."""
        return sum(self.lost.values()) / max(self.front, 1)

    @property
    def gain(self) -> float:
        """How many times as many networks of the front are kept in a device-second as without early stopping."""
        return (1 - self.lost_share) / self.seconds


@dataclass(frozen=True, slots=True)
class Calibration:
    """What full trainings of a few networks say about early stopping.

    Attributes:
        networks: how many.
        pairs: of them, of like cost.
        tolerance: the share by which the MACs of like networks differ at most.
        fidelities: one for each epoch but the last.
        plans: one for each `eta` whose rungs can be trusted, from the earliest such epoch on.
    """

    networks: int
    pairs: int
    tolerance: float
    fidelities: tuple[Fidelity, ...]
    plans: tuple[Plan, ...]

    @property
    def recommended(self) -> Plan | None:
        """The plan with the highest gain; None if early stopping cannot be advised."""
        worthy = [plan for plan in self.plans if plan.gain >= GAIN]
        return max(worthy, key=lambda plan: plan.gain, default=None)


def calibration(record: Record, objectives: Sequence[Objective], epochs: int, seed: int = 0) -> Calibration:
    """Return what the fully trained networks of a record say about early stopping.

    Args:
        record: of a run; its trials of `epochs` epochs count, retrained ones left out.
        objectives: what is compared, as by the schedulers.
        epochs: of a full training.
        seed: of the intervals and of the orders in which the curves are replayed.

    Raises:
        RecordError: fewer than `LEAST` networks, or no pair of like cost among them.
    """
    complete = [t for t in record.trials.values() if t.state == "complete" and t.started.kind != "retrain"]
    trials = [trial for trial in complete if trial.epochs == epochs]
    if len(trials) < LEAST:
        short = [trial.epochs for trial in complete if trial.epochs < epochs]
        raise RecordError(
            f"A calibration needs at least {LEAST} networks with all {epochs} epochs, but the run has {len(trials)}: "
            + (
                f"{len(short)} ended by themselves before, so calibrate with recipe.epochs={max(short)}."
                if len(short) > len(trials)
                else "go on with it by resume --trials."
            )
        )
    curves = [[reached(trial, epoch, objectives) for epoch in range(1, epochs + 1)] for trial in trials]
    values = np.array([[entry.value for entry in curve] for curve in curves])
    like, tolerance = like_pairs(np.array([trial.started.costs["macs"] for trial in trials]))
    if not like.any():
        raise RecordError(
            f"A calibration needs networks of like cost, but no two of {len(trials)} are within {tolerance:.0%} of "
            "their MACs: go on with the run by resume --trials."
        )
    rng = np.random.default_rng(seed)
    fidelities = tuple(fidelity(epoch, values, like, rng) for epoch in range(1, epochs))
    front = set(record.front(objectives)) & {trial.number for trial in trials}
    plans = tuple(
        replayed(trials, curves, front, eta, first, seed)
        for eta in ETAS
        if (first := _first_trusted(fidelities, eta)) is not None
    )
    return Calibration(len(trials), int(like.sum()) // 2, tolerance, fidelities, plans)


def like_pairs(macs: Ints) -> tuple[Bools, float]:
    """Return which networks are of like cost, shape (n, n), symmetric, nobody with itself, and how wide it was taken.

    Within 10 % of the MACs; where that gives fewer than `PAIRS` pairs, the next wider of `TOLERANCES`.
    """
    ratio = np.maximum.outer(macs, macs) / np.minimum.outer(macs, macs)
    for tolerance in TOLERANCES:
        like = np.asarray(ratio <= 1 + tolerance)
        np.fill_diagonal(like, False)
        if like.sum() >= 2 * PAIRS:
            break
    return like, tolerance


def fidelity(epoch: int, values: Floats, like: Bools, rng: np.random.Generator) -> Fidelity:
    """Return how well networks of like cost stand after an epoch as they do at the end.

    Tau is the share of pairs in the same order less the share in the opposite one; a tie counts for neither. The
    interval is the bootstrap's over networks (percentiles).

    Args:
        epoch: from 1.
        values: better the higher, shape (networks, epochs).
        like: the pairs to compare, shape (networks, networks).
        rng: draws the resamples.
    """
    agreement = np.where(like, _order(values[:, epoch - 1]) * _order(values[:, -1]), 0)

    def tau(networks: Ints, axis: int = -1) -> Floats:
        rows, columns = networks[..., :, None], networks[..., None, :]
        agreed: Floats = agreement[rows, columns].sum((-2, -1)) / np.maximum(like[rows, columns].sum((-2, -1)), 1)
        return agreed

    everyone = np.arange(len(values))
    drawn = stats.bootstrap(
        (everyone,),
        tau,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(values) ** 2),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    )
    interval = drawn.confidence_interval
    return Fidelity(epoch, float(tau(everyone)), float(interval.low), float(interval.high))


def _order(values: Floats) -> Ints:
    """Return 1 where the row's value is higher than the column's, -1 where it is lower, shape (n, n)."""
    return np.greater.outer(values, values).astype(np.int64) - np.less.outer(values, values)


def _first_trusted(fidelities: Sequence[Fidelity], eta: int) -> int | None:
    """Return the earliest epoch from which on all rungs can be trusted."""
    trusted = {found.epoch for found in fidelities if found.trusted}
    last = len(fidelities) + 1
    return next((e for e in sorted(trusted) if trusted.issuperset(ParetoAsha(last, eta, e).rungs)), None)


def replayed(
    trials: Sequence[Trial], curves: Sequence[Sequence[Entry]], front: set[int], eta: int, min_epochs: int, seed: int
) -> Plan:
    """Return what `pareto_asha` would have done with trainings that are known to their end.

    Args:
        trials: all trained in full.
        curves: what each reached after each epoch.
        front: the numbers of the front's.
        eta: a parameter of the scheduler.
        min_epochs: a parameter of the scheduler.
        seed: of the orders.
    """
    rng = np.random.default_rng(seed)
    last = len(curves[0])
    ran = np.array([_trained(curves, rng.permutation(len(curves)), eta, min_epochs) for _ in range(ORDERS)])
    seconds = np.array([[0.0, *trial.curve_seconds] for trial in trials])
    taken = np.take_along_axis(seconds, ran.T, axis=1).mean(axis=1)
    stopped = (ran < last).mean(axis=0)
    lost = {
        t.started.key: float(share) for t, share in zip(trials, stopped, strict=True) if t.number in front and share
    }
    return Plan(
        eta,
        min_epochs,
        ParetoAsha(last, eta, min_epochs).rungs,
        float(ran.mean() / last),
        float(taken.sum() / seconds[:, -1].sum()),
        lost,
        len(front),
    )


def _trained(curves: Sequence[Sequence[Entry]], order: Ints, eta: int, min_epochs: int) -> Ints:
    """Return the epochs that each network is trained, one after the other in an order, shape (n,)."""
    last = len(curves[0])
    made, ran = ParetoAsha(last, eta, min_epochs), np.zeros(len(curves), dtype=np.int64)
    for network in order:
        stops = (epoch for epoch in made.rungs if made.decide(curves[network][epoch - 1]) == "stop")
        ran[network] = next(stops, last)
    return ran
