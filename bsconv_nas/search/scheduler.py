"""Early stopping: after which epochs a trial is compared, and whether it goes on. Pure decisions, no Ray.

A scheduler is a function of what was observed. It keeps nothing that cannot be rebuilt from a record.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from bsconv_nas.errors import ExperimentError, suggest
from bsconv_nas.search.record import Record

__all__ = ["SCHEDULERS", "Asha", "Continue", "Decision", "Scheduler", "replay", "scheduler"]

Decision = Literal["continue", "stop"]


class Scheduler(Protocol):
    """What the search asks after each epoch; a value is better the higher it is."""

    def observe(self, number: int, epoch: int, value: float) -> None:
        """Take note of what trial `number` reached after `epoch`."""

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        """Take note, and say whether the trial goes on."""


class Continue:
    """Every trial is trained to the end."""

    def __init__(self, max_epochs: int) -> None:
        pass

    def observe(self, number: int, epoch: int, value: float) -> None:
        """Nothing is compared."""

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        """Go on."""
        return "continue"


class Asha:
    """Asynchronous successive halving, its stopping variant (Li et al., MLSys 2020, arXiv 1810.05934).

    The rungs are the epochs `min_epochs * eta^k` below `max_epochs`. At a rung a trial goes on if it is among the best
    1/eta of all that reached the rung so far. Fewer than `eta` entries stop nobody; NaN is worst.

    Args:
        max_epochs: of a full training.
        eta: at least 2.
        min_epochs: the first rung.
    """

    def __init__(self, max_epochs: int, eta: int = 3, min_epochs: int = 1) -> None:
        if eta < 2 or min_epochs < 1:
            raise ExperimentError(
                "search.scheduler 'asha' needs eta of at least 2 and min_epochs of at least 1, "
                f"but got eta = {eta} and min_epochs = {min_epochs}."
            )
        self._eta = eta
        self._rungs: dict[int, dict[int, float]] = {}
        epoch = min_epochs
        while epoch < max_epochs:
            self._rungs[epoch] = {}
            epoch *= eta

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which trials are compared."""
        return tuple(self._rungs)

    def observe(self, number: int, epoch: int, value: float) -> None:
        """Enter a trial at a rung without judging it."""
        if epoch in self._rungs:
            self._rungs[epoch][number] = -math.inf if math.isnan(value) else value

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        """Enter a trial at a rung and say whether it goes on."""
        if epoch not in self._rungs:
            return "continue"
        self.observe(number, epoch, value)
        entries = self._rungs[epoch]
        better = sum(other > entries[number] for other in entries.values())
        return "continue" if len(entries) < self._eta or better < len(entries) // self._eta else "stop"


SCHEDULERS: dict[str, Callable[..., Scheduler]] = {"asha": Asha, "none": Continue}


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
    known = inspect.signature(SCHEDULERS[name]).parameters.keys() - {"max_epochs"}
    for key, value in params.items():
        if key not in known:
            valid = suggest(key, known) if known else "it takes none"
            raise ExperimentError(f"Unknown parameter {key!r} of search.scheduler {name!r}: {valid}.")
        if not isinstance(value, int) or isinstance(value, bool):
            raise ExperimentError(
                f"Parameter {key!r} of search.scheduler {name!r} must be a whole number, but got {value!r}."
            )
    made = SCHEDULERS[name](max_epochs=max_epochs, **params)
    if isinstance(made, Asha) and not made.rungs and not idle:
        raise ExperimentError(
            f"search.scheduler {name!r} needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs "
            f"= {params.get('min_epochs', 1)} and recipe.epochs = {max_epochs}: move one of them or set "
            'search.scheduler = "none".'
        )
    return made


def replay(scheduler: Scheduler, record: Record, metric: str) -> None:
    """Show a scheduler all that a record's baseline and search trials reached, so that it goes on where it was."""
    for trial in record.trials.values():
        if trial.started.kind != "retrain":
            for epoch, metrics in enumerate(trial.curve, 1):
                scheduler.observe(trial.number, epoch, metrics.get(metric, math.nan))
