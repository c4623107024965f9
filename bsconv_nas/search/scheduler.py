"""Early stopping: after which epochs a trial is compared, and whether it goes on. Pure decisions.

A scheduler is a function of what was observed. It keeps nothing that cannot be rebuilt from a record. What it sees of a
trial is an `Entry`: costs are known before the first epoch, so that networks of like cost can be compared.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bsconv_nas.errors import ExperimentError, suggest
from bsconv_nas.search.record import Objective, Record, Trial

__all__ = [
    "LIKE_COST",
    "SCHEDULERS",
    "Asha",
    "Continue",
    "Decision",
    "Entry",
    "ParetoAsha",
    "Scheduler",
    "compared",
    "reached",
    "replay",
    "scheduler",
]

Decision = Literal["continue", "stop"]
LIKE_COST = 0.35  # octaves up and down within which costs are alike
_USUAL = Objective("val_accuracy", "max")  # what is compared where all objectives are costs


@dataclass(frozen=True, slots=True)
class Entry:
    """What a trial reached after an epoch.

    Attributes:
        number: of the trial.
        epoch: of its training, from 1.
        value: better the higher it is; NaN becomes minus infinity, the worst.
        cost: of the network, in octaves: better the lower it is. NaN without a cost objective.
    """

    number: int
    epoch: int
    value: float
    cost: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            object.__setattr__(self, "value", -math.inf)


class Scheduler(Protocol):
    """What the search asks after each epoch but the last."""

    def observe(self, entry: Entry) -> None:
        """Take note of what a trial reached."""

    def decide(self, entry: Entry) -> Decision:
        """Take note, and say whether the trial goes on."""


class Continue:
    """Every trial is trained to the end."""

    def __init__(self, max_epochs: int) -> None:
        pass

    def observe(self, entry: Entry) -> None:
        """Nothing is compared."""

    def decide(self, entry: Entry) -> Decision:
        """Go on."""
        return "continue"


class Asha:
    """Asynchronous successive halving, its stopping variant (Li et al., MLSys 2020, arXiv 1810.05934).

    The rungs are the epochs `min_epochs * eta^k` below `max_epochs`. At a rung a trial goes on if it is among the best
    1/eta of all that reached the rung so far. Fewer than `eta` entries stop nobody; NaN is worst.

    Args:
        max_epochs: of a full training.
        eta: at least 2.
        min_epochs: the first rung, at least 1.
    """

    def __init__(self, max_epochs: int, eta: int = 3, min_epochs: int = 1) -> None:
        assert eta > 1, "the rungs grow"
        self._eta = eta
        self._rungs: dict[int, dict[int, Entry]] = {}
        epoch = min_epochs
        while epoch < max_epochs:
            self._rungs[epoch] = {}
            epoch *= eta

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which trials are compared."""
        return tuple(self._rungs)

    def observe(self, entry: Entry) -> None:
        """Enter a trial at its rung without judging it; one that is trained again leaves the rungs ahead of it."""
        for epoch, entries in self._rungs.items():
            if epoch == entry.epoch:
                entries[entry.number] = entry
            elif epoch > entry.epoch:
                entries.pop(entry.number, None)

    def decide(self, entry: Entry) -> Decision:
        """Enter a trial at its rung and say whether it goes on."""
        self.observe(entry)
        entries = self._rungs.get(entry.epoch, {}).values()
        return "continue" if not entries or self._goes_on(entry, entries) else "stop"

    def _goes_on(self, entry: Entry, entries: Collection[Entry]) -> bool:
        return len(entries) < self._eta or self._leads(entry, entries)

    def _leads(self, entry: Entry, entries: Collection[Entry]) -> bool:
        """Return whether a trial is among the best 1/eta; those of one value stand or fall together."""
        return sum(other.value > entry.value for other in entries) < len(entries) // self._eta


class ParetoAsha(Asha):
    """Successive halving among networks of like cost, which spares what may be on the front.

    At a rung a trial goes on if it is among the best 1/eta of the entries within `LIKE_COST` octaves of its cost (of
    the 2 eta nearest in cost, where there are fewer), or if no entry of equal or lower cost beats it. Fewer than 2 eta
    entries stop nobody; NaN is worst at any cost. Without a cost objective it is `Asha`.

    Args:
        max_epochs: of a full training.
        eta: at least 2.
        min_epochs: the first rung; half of the epochs unless told, since the earlier ones of a training whose learning
            rate falls to zero foretell little among networks of like cost (`bsconv-nas calibrate` measures it).
    """

    def __init__(self, max_epochs: int, eta: int = 2, min_epochs: int | None = None) -> None:
        super().__init__(max_epochs, eta, -(-max_epochs // 2) if min_epochs is None else min_epochs)

    def _goes_on(self, entry: Entry, entries: Collection[Entry]) -> bool:
        if math.isnan(entry.cost):
            return super()._goes_on(entry, entries)
        if len(entries) < 2 * self._eta or self._leads(entry, self._like(entry, entries)):
            return True
        cheaper = (other.value for other in entries if other.cost <= entry.cost)
        return entry.value > -math.inf and entry.value >= max(cheaper)

    def _like(self, entry: Entry, entries: Collection[Entry]) -> list[Entry]:
        """Return the entries of like cost; all that are as near as the last one that is needed."""
        distances = sorted(abs(other.cost - entry.cost) for other in entries)
        reach = max(LIKE_COST, distances[2 * self._eta - 1])
        return [other for other in entries if abs(other.cost - entry.cost) <= reach]


def _median(max_epochs: int, min_epochs: int = 1, min_samples: int = 3) -> Scheduler:
    from bsconv_nas.search.ray_schedulers import Median

    return Median(min_epochs, min_samples)


def _hyperband(max_epochs: int, eta: int = 3, min_epochs: int = 1, brackets: int = 3) -> Scheduler:
    from bsconv_nas.search.ray_schedulers import Hyperband

    return Hyperband(max_epochs, eta, min_epochs, brackets)


SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "asha": Asha,
    "hyperband": _hyperband,
    "median": _median,
    "none": Continue,
    "pareto_asha": ParetoAsha,
}
_LEAST = {"eta": 2}  # all other parameters are at least 1


def scheduler(name: str, params: Mapping[str, Any], max_epochs: int, *, idle: bool = False) -> Scheduler:
    """Return a new scheduler by its name in `SCHEDULERS`.

    Args:
        name: the scheduler's.
        params: what it takes besides `max_epochs`.
        max_epochs: of a full training.
        idle: whether it may have nothing to compare, as in a run that was recorded so.

    Raises:
        ExperimentError: an unknown name, parameters that it does not take, or a first rung that no trial reaches.
    """
    if name not in SCHEDULERS:
        raise ExperimentError(f"Unknown search.scheduler {name!r}: {suggest(name, SCHEDULERS)}.")
    known = inspect.signature(SCHEDULERS[name]).parameters
    for key, value in params.items():
        _check(name, key, value, known.keys() - {"max_epochs"})
    first = params.get("min_epochs", known["min_epochs"].default or 1) if "min_epochs" in known else 0
    if first >= max_epochs and not idle:
        raise ExperimentError(
            f"search.scheduler {name!r} needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs "
            f"= {first} and recipe.epochs = {max_epochs}: move one of them or set "
            'search.scheduler = "none".'
        )
    return SCHEDULERS[name](max_epochs=max_epochs, **params)


def _check(name: str, key: str, value: Any, known: Collection[str]) -> None:
    """Refuse a parameter that a scheduler does not take."""
    if key not in known:
        valid = suggest(key, known) if known else "it takes none"
        raise ExperimentError(f"Unknown parameter {key!r} of search.scheduler {name!r}: {valid}.")
    least = _LEAST.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ExperimentError(
            f"Parameter {key!r} of search.scheduler {name!r} must be a whole number of at least {least}, "
            f"but got {value!r}."
        )


def compared(objectives: Sequence[Objective], costs: Collection[str]) -> tuple[Objective, Objective | None]:
    """Return what a scheduler compares: the first objective that is no cost, and the first that is one, if any.

    >>> accuracy, macs = Objective("val_accuracy", "max"), Objective("macs", "min")
    >>> compared([macs, accuracy], ["macs", "params"]) == (accuracy, macs)
    True
    """
    measured = next((o for o in objectives if o.name not in costs), _USUAL)
    return measured, next((o for o in objectives if o.name in costs), None)


def reached(trial: Trial, epoch: int, objectives: Sequence[Objective]) -> Entry:
    """Return what a trial reached after `epoch`, as a scheduler compares it."""
    measured, cost = compared(objectives, trial.started.costs)
    value = trial.curve[epoch - 1].get(measured.name, math.nan)
    octaves = math.nan if cost is None else math.log2(trial.started.costs[cost.name])
    return Entry(
        trial.number,
        epoch,
        value if measured.direction == "max" else -value,
        -octaves if cost is not None and cost.direction == "max" else octaves,
    )


def replay(scheduler: Scheduler, record: Record, objectives: Sequence[Objective]) -> None:
    """Show a scheduler what a record's baseline and search trials reached, so that it goes on where it was.

    The last epoch of a running trial is left out: it is the driver's to settle, which may have died over it.
    """
    for trial in record.trials.values():
        if trial.started.kind != "retrain":
            for epoch in range(1, trial.epochs + (trial.state != "running")):
                scheduler.observe(reached(trial, epoch, objectives))
