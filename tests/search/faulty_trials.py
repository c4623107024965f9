"""Trial functions that go wrong, each in a real way; importable by Ray's workers."""

import contextlib
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from small_search import pretend

from bsconv_nas.errors import DivergedError
from bsconv_nas.search.checkpoint import save_checkpoint
from bsconv_nas.search.trial import Job, Metrics, Task, train
from bsconv_nas.space.table import Architecture

NAN_TRIAL = 4


def faulty(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Go wrong in each way once, by trial number, in the second epoch; with what passes, not in the second try."""
    for epoch, metrics in pretend(task, job):
        if epoch == 2 and job.number in FAULTS:
            FAULTS[job.number](job)
        if epoch == 2 and job.epochs == 0 and job.number in PASSING:
            PASSING[job.number](job)
        yield epoch, metrics if job.number != NAN_TRIAL else {"val_accuracy": math.nan}


def broken(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Fail in every trial."""
    raise ValueError(f"network {job.number} is broken\nin its second line, too")
    yield


def rising(architecture: Architecture, epochs: int) -> Iterator[Metrics]:
    """A trial function as users write them, with time between its epochs."""
    for epoch in range(1, epochs + 1):
        time.sleep(0.1)
        yield {"score": sum(architecture.indices) + epoch}


def spoiling(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Train, but in trial 1 with an image that breaks off in the middle."""
    image = Path(task.data.parts["train"].paths[0])
    whole = image.read_bytes()
    if job.number == 1:
        image.write_bytes(whole[: len(whole) // 2])
    try:
        yield from train(task, job)
    finally:
        image.write_bytes(whole)


def _diverge(job: Job) -> None:
    raise DivergedError(2, math.nan)


def _raise(job: Job) -> None:
    raise KeyError("layer3")


def _hang(job: Job) -> None:
    time.sleep(3600)


def _die(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Let this process have 64 MiB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _exhaust_memory(job: Job) -> None:
    with _little_memory():
        bytearray(2**30)


def _exhaust_torch(job: Job) -> None:
    with _little_memory():
        torch.ones(2**28)


def _exhaust_gpu(job: Job) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def _fill_disk(job: Job) -> None:
    """Save to a device that is always full."""
    place = Path(job.checkpoint)
    place.mkdir(parents=True, exist_ok=True)
    (place / "checkpoint.json.part").symlink_to("/dev/full")
    save_checkpoint(place, {"weight": torch.ones(3)}, {"epoch": 2})


FAULTS: dict[int, Callable[[Job], None]] = {
    1: _diverge,
    2: _raise,
    3: _die,
    5: _exhaust_memory,
    6: _fill_disk,
    8: _hang,
    10: _crash,
}
PASSING: dict[int, Callable[[Job], None]] = {0: _exhaust_torch, 7: _exhaust_gpu}


class Unreadable:
    """A trial function that a worker cannot take up."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _unreadable, ()

    def __call__(self, task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
        raise AssertionError


def _unreadable() -> None:
    raise ModuleNotFoundError("No module named 'mine'")
