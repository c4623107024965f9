"""The process that trains: a Ray Tune trainable that takes one candidate after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from ray.tune import Trainable

from bsconv_nas.errors import DataError, TrainingError, described
from bsconv_nas.search.fatal_signals import FatalSignals
from bsconv_nas.search.shared import Mark
from bsconv_nas.search.trial import Metrics, Task, TrialFunction

__all__ = ["Report", "Worker", "is_out_of_memory"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says: an epoch, why there is none, or (the default) that there is no further one."""

    epoch: int = 0
    metrics: Metrics = field(default_factory=dict)
    seconds: float = 0.0
    cause: str = ""


class Worker(Trainable):  # type: ignore[misc]
    """A process that Tune keeps from trial to trial: torch is imported and the data are fetched once."""

    def setup(self, config: dict[str, Any], task: Task, function: TrialFunction, threads: int, mark: Mark) -> None:
        """Called once a process, with its first job."""
        mark.check()
        torch.set_num_threads(threads)
        self._task, self._function = task, function
        self._fatal_signals = FatalSignals()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called with every further job."""
        self._fatal_signals.write_into(self.logdir)
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
        except (TrainingError, DataError) as error:
            return {"report": Report(cause=described(error))}
        return {"report": Report(epoch, metrics, time.perf_counter() - start)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the machine or of a GPU: another try may find more.

    On CPUs torch has no type of its own for it.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
