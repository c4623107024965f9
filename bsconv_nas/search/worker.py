"""The process that trains: a Ray Tune trainable that takes one candidate after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from ray.tune import Trainable

from bsconv_nas.errors import TrainingError
from bsconv_nas.search.trial import Metrics, Task, TrialFunction

__all__ = ["Report", "Worker", "described", "first_line"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says: an epoch, why there is none, or (the default) that there is no further one."""

    epoch: int = 0
    metrics: Metrics = field(default_factory=dict)
    seconds: float = 0.0
    cause: str = ""


class Worker(Trainable):  # type: ignore[misc]
    """A process that Tune keeps from trial to trial: torch is imported and the data are fetched once."""

    def setup(self, config: dict[str, Any], task: Task, function: TrialFunction, threads: int) -> None:
        """Called once a process, with its first job."""
        torch.set_num_threads(threads)
        self._task, self._function = task, function
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called with every further job."""
        self._epochs = iter(self._function(self._task, new_config["job"]))
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch.

        What a candidate cannot help is reported. Any other exception is Tune's: it replaces the process, of which
        nobody knows in what state it is.
        """
        start = time.perf_counter()
        try:
            epoch, metrics = next(self._epochs)
        except StopIteration:
            return {"report": Report()}
        except TrainingError as error:
            return {"report": Report(cause=described(error))}
        return {"report": Report(epoch, metrics, time.perf_counter() - start)}


def described(error: BaseException) -> str:
    """Return an error's type and first line, for a record.

    >>> described(ValueError("no such layer"))
    'ValueError: no such layer'
    """
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]
