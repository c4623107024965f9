"""What a training step costs a device: time, the part of it that the device works, memory."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from bsconv_nas.network.build import build
from bsconv_nas.search.fraction import Step
from bsconv_nas.search.trial import Task
from bsconv_nas.space.table import Architecture
from bsconv_nas.training.data import Dataset
from bsconv_nas.training.images import Arrays
from bsconv_nas.training.loop import EVALUATION_BATCH, EpochResult, Trainer

__all__ = ["costliest_step", "measure"]

STEPS = 20  # of the measured epoch


def costliest_step(task: Task, networks: Iterable[Architecture]) -> Step:
    """Return the largest memory, and the time of the network that keeps the device at work the longest.

    Args:
        task: what the trials share.
        networks: which to train.
    """
    steps = [measure(task, network) for network in networks]
    slowest = max(steps, key=lambda step: step.device_seconds)
    return dataclasses.replace(slowest, peak_bytes=max(step.peak_bytes for step in steps))


def measure(task: Task, network: Architecture) -> Step:
    """Return what a training step of a network costs on the task's device.

    A few real steps and a validation are run twice; what the first run has to set up does not count as time.
    """
    short = _shortened(task.data, task.recipe.batch_size)
    profiled = _on_cuda if torch.device(task.device).type == "cuda" else _on_cpu
    model = build(task.base, task.table, network)
    first, second = (Trainer(model, short, task.recipe, seed=0, device=task.device) for _ in range(2))
    first.run_epoch()
    result, busy, peak = profiled(second.run_epoch)
    seconds = min(task.recipe.batch_size, short.counts["train"]) / result.images_per_second
    return Step(seconds, busy * seconds, peak + _images(task.data) - _images(short))


def _shortened(dataset: Dataset, batch_size: int) -> Dataset:
    """Return the first images of each part: so many batches to train on, and one to validate on."""
    lengths = {"train": STEPS * batch_size, "selection": EVALUATION_BATCH}
    parts = {
        name: dataset.parts[name].take(np.arange(min(length, dataset.counts[name]))) for name, length in lengths.items()
    }
    return dataclasses.replace(dataset, parts=parts)


def _images(dataset: Dataset) -> int:
    """Return the bytes of the images that a training holds on its device."""
    parts = (dataset.parts[name] for name in ("train", "selection"))
    return sum(part.images.nbytes for part in parts if isinstance(part, Arrays))


Profiled = tuple[EpochResult, float, int]  # and the share of the time that the device worked, and its peak memory [B]


def _on_cuda(work: Callable[[], EpochResult]) -> Profiled:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    events = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    # Where the profiler may not see the device, it is taken to work all the time, so that nothing is shared in vain.
    return result, min(busy / seconds, 1.0) or 1.0, torch.cuda.max_memory_reserved()


def _on_cpu(work: Callable[[], EpochResult]) -> Profiled:
    """The CPU is the device: it always works. Torch does not count its memory, so the whole process is what counts."""
    return work(), 1.0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
