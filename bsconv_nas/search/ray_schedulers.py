"""Ray Tune's schedulers that judge by results alone, asked as ours are.

Neither looks at Ray's controller: what they know is what they were shown, so they too are rebuilt from a record. Ray's
synchronous HyperBand is not among them: it pauses trials until a bracket is full, which a search that runs as many
trials as it has workers never fills.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

if TYPE_CHECKING:
    from bsconv_nas.search.scheduler import Decision, Entry

__all__ = ["Hyperband", "Median"]

_COLUMNS = {"time_attr": "epoch", "metric": "value", "mode": "max"}


@dataclass(frozen=True, slots=True)
class _Trial:
    """As much of a Tune trial as these schedulers look at."""

    trial_id: int


class _Rule:
    """Shows Ray each epoch of a trial once, and nothing that is not finite: Ray's own never stop a NaN."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def _is_new(self, entry: Entry) -> bool:
        """Return whether Ray is to see an entry, and remember it."""
        key = entry.number, entry.epoch
        new = key not in self._seen and math.isfinite(entry.value)
        self._seen.add(key)
        return new


class Median(_Rule):
    """Ray's `MedianStoppingRule`: a trial stops if its best value is below the median of the running means of others.

    Args:
        min_epochs: epochs that every trial has, from which on means are taken.
        min_samples: fewer others stop nobody.
    """

    def __init__(self, min_epochs: int, min_samples: int) -> None:
        super().__init__()
        self._rule = MedianStoppingRule(
            **_COLUMNS,
            grace_period=min_epochs,
            min_samples_required=min_samples,
            min_time_slice=math.inf,  # else it pauses trials while there are few
        )

    def observe(self, entry: Entry) -> None:
        """Take note of what a trial reached."""
        if self._is_new(entry):
            self._rule.on_trial_complete(None, _Trial(entry.number), _result(entry))

    def decide(self, entry: Entry) -> Decision:
        """Take note, and say whether the trial goes on."""
        if self._is_new(entry):
            return _decision(self._rule.on_trial_result(None, _Trial(entry.number), _result(entry)))
        return _unseen(entry)


class Hyperband(_Rule):
    """Ray's `AsyncHyperBandScheduler`: brackets of successive halving that begin later and later.

    A trial's bracket is drawn by its number, likelier the earlier it begins.

    Args:
        max_epochs: of a full training.
        eta: at a rung, about one in so many goes on.
        min_epochs: the first rung of the first bracket.
        brackets: how many; each begins `eta` times later than the one before.
    """

    def __init__(self, max_epochs: int, eta: int, min_epochs: int, brackets: int) -> None:
        super().__init__()
        self._rule = AsyncHyperBandScheduler(
            **_COLUMNS,
            max_t=max_epochs,
            grace_period=min(min_epochs, max_epochs),
            reduction_factor=eta,
            brackets=brackets,
        )
        self._added: set[int] = set()

    def observe(self, entry: Entry) -> None:
        """Take note of what a trial reached."""
        self.decide(entry)

    def decide(self, entry: Entry) -> Decision:
        """Take note, and say whether the trial goes on."""
        if not self._is_new(entry):
            return _unseen(entry)
        trial = _Trial(entry.number)
        if entry.number not in self._added:
            self._added.add(entry.number)
            with _numpy_seeded(entry.number):
                self._rule.on_trial_add(None, trial)
        return _decision(self._rule.on_trial_result(None, trial, _result(entry)))


def _result(entry: Entry) -> dict[str, Any]:
    return {"epoch": entry.epoch, "value": entry.value}


def _decision(answer: str) -> Decision:
    return "stop" if answer == TrialScheduler.STOP else "continue"


def _unseen(entry: Entry) -> Decision:
    """Decide without Ray: an epoch that is trained again was decided on before; what is not finite is hopeless."""
    return "continue" if math.isfinite(entry.value) else "stop"


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which Ray draws, here only."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
