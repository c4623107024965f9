"""The one fraction of a GPU that every trial of a run gets: as declared, or from a step measured on a GPU."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from bsconv_nas.cost.analytic import LATENCY, CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.cluster import living_nodes, room
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.fraction import Step, costliest, sharers
from bsconv_nas.search.measure import costliest_step
from bsconv_nas.search.trial import Task
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

__all__ = ["Choice", "decide"]


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """How many GPUs a trial gets, and by what that was decided."""

    gpus_per_trial: float
    sentence: str = ""
    step: Step | None = None

    @property
    def detail(self) -> dict[str, Any]:
        """The choice for the record."""
        measured = {} if self.step is None else dataclasses.asdict(self.step)
        return {"gpus_per_trial": self.gpus_per_trial, "sentence": self.sentence, **measured}


def decide(resources: Resources, task: Task, budget: Budget, own: bool = False) -> Choice:
    """Return the GPUs of each trial; `auto` is decided on the connected cluster.

    Nothing is measured where there are as many GPUs as trials at a time, and what cannot be measured is not shared.

    Args:
        resources: of the experiment.
        task: what the trials share.
        budget: of the search, for its costliest network.
        own: whether a function of the user's trains, of whose steps nothing is known.
    """
    if resources.gpus_per_trial != "auto":
        return Choice(resources.gpus_per_trial)
    gpus = sum(node["Resources"].get("GPU", 0) for node in living_nodes())
    if not gpus:
        return Choice(0.0)
    wanted = math.ceil(resources.workers / gpus)
    if wanted == 1:
        return Choice(1.0, "Every trial has a GPU of its own: there are enough.")
    if own:
        return Choice(1.0, "Every trial has a GPU of its own: say by resources.gpus_per_trial what search.trial needs.")
    if not room(resources.model_copy(update={"gpus_per_trial": 1.0})):
        return Choice(1.0, "Every trial has a GPU of its own: no node has a GPU and the CPUs of a trial.")
    networks = costliest(FeasibleSet(CostModel(task.table), budget.without(LATENCY)))
    measured = ray.remote(num_gpus=1, num_cpus=resources.cpus_per_trial, max_calls=1)(_measure)
    try:
        step, free, cores = ray.get(measured.remote(task, networks))
    except RayError as error:
        said = str(getattr(error, "cause", error)).strip().splitlines()[0]
        return Choice(1.0, f"Every trial has a GPU of its own: no step could be measured ({said}).")
    count = sharers(step, free, cores / resources.cpus_per_trial, wanted)
    return Choice(1 / count, _sentence(count, step, free), step)


def _measure(task: Task, networks: list[Architecture]) -> tuple[Step, int, float]:
    """Run on a GPU of its own: return the step, the bytes that were free before, and the cores beside each GPU."""
    free = torch.cuda.mem_get_info()[0] if task.device == "cuda" else 0
    host = ray.get_runtime_context().get_node_id()
    gpus = next(node["Resources"].get("GPU", 1) for node in living_nodes() if node["NodeID"] == host)
    return costliest_step(task, networks), free, len(os.sched_getaffinity(0)) / gpus


def _sentence(count: int, step: Step, free: int) -> str:
    share = "Every trial has a GPU of its own" if count == 1 else f"{count} trials share a GPU"
    return (
        f"{share}: a step of the costliest network takes {1e3 * step.seconds:.1f} ms, of which the GPU works "
        f"{step.device_seconds / step.seconds:.0%}, and {step.peak_bytes / 2**30:.1f} of {free / 2**30:.0f} GiB."
    )
