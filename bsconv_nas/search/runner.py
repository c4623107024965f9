"""The search from its first event to its last: a run folder, a Ray cluster, a driver, and Ctrl-C."""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator

from bsconv_nas.search.cluster import connected
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.mirror import Mirror
from bsconv_nas.search.record import Record
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Task, TrialFunction, train
from bsconv_nas.search.tuning import Jobs, run_jobs
from bsconv_nas.space.sampling import FeasibleSet

__all__ = ["run", "search"]


def search(
    store: Store,
    feasible: FeasibleSet,
    task: Task,
    *,
    trials: int | None = None,
    address: str | None = None,
    on_change: Callable[[Record], None] = lambda record: None,
    function: TrialFunction = train,
) -> Record:
    """Run a search to its end, or go on with one that was interrupted, and return its record.

    Ctrl-C once (or SIGTERM) ends it in good order: the record's last note is then `interrupted` instead of `finished`,
    and calling this again goes on. Ctrl-C twice stops at once.

    Args:
        store: the run's folder.
        feasible: the networks inside the budget.
        task: what all trials share.
        trials: how many networks to search in all; the experiment's number if None.
        address: of a running Ray cluster; None starts one here.
        on_change: called with the record after every event.
        function: trains one candidate.

    Raises:
        BudgetError: no network keeps the budget.
        RecordError: another driver is at work on the run, or its folder cannot be written.
        SearchError: the cluster cannot run a trial, or all trials fail alike.
    """
    feasible.check()
    with store.lock():
        mirror = Mirror(store.path / "optuna.log", store.name, feasible.table, store.experiment.search.objectives)

        def changed(record: Record) -> None:
            mirror.update(record)
            on_change(record)

        driver = Driver(store, feasible, task.recipe.epochs, trials, changed)
        driver.begin()
        run(driver, store.experiment.resources, task, address=address, function=function)
        return driver.record


def run(
    driver: Jobs, resources: Resources, task: Task, *, address: str | None = None, function: TrialFunction = train
) -> None:
    """Run the jobs of a driver to their end, or to the first Ctrl-C; the caller has locked the run's folder.

    Raises:
        SearchError: the cluster cannot run a trial, or the driver gives up.
    """
    if not driver.finished:
        with connected(resources, _size(task), address) as scratch, _one_interrupt(driver):
            run_jobs(driver, resources, task, function, str(scratch))
    driver.close()


@contextlib.contextmanager
def _one_interrupt(driver: Jobs) -> Iterator[None]:
    """Let the first Ctrl-C, or a SIGTERM, end the search in good order, and a second Ctrl-C at once."""

    def stop(number: int, frame: object) -> None:
        driver.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: Ray's own, which is gone by then


def _size(data: object) -> int:
    """Return the bytes of `data` in Ray's object store."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    return len(rest) + sum(buffer.raw().nbytes for buffer in buffers)
