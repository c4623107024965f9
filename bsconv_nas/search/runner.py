"""The search from its first event to its last: a run folder, a Ray cluster, a driver, and Ctrl-C."""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.cluster import connected, sweep
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.gpus import decide
from bsconv_nas.search.mirror import Mirror
from bsconv_nas.search.record import Record
from bsconv_nas.search.shared import shared, unmark
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Task, TrialFunction, train
from bsconv_nas.search.tuning import Jobs, run_jobs
from bsconv_nas.space.sampling import FeasibleSet

__all__ = ["run", "search", "stoppable"]


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
        trials: how many networks to search in all; if None, what was asked for last.
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
        with store.writing():
            mirror = Mirror(store.path / "optuna.log", store.name, feasible.table, store.experiment.search.objectives)

        def changed(record: Record) -> None:
            with store.writing():
                mirror.update(record)
            on_change(record)

        driver = Driver(store, feasible, task.recipe.epochs, trials, changed)
        run(driver, store, task, address=address, function=function)
        return driver.record


def run(driver: Jobs, store: Store, task: Task, *, address: str | None = None, function: TrialFunction = train) -> None:
    """Begin a driver and run its jobs to their end, or to the first Ctrl-C; the caller has locked the run's folder.

    Raises:
        SearchError: the cluster cannot run a trial, its nodes do not share the storage, or the driver gives up.
    """
    sweep()  # a worker of a killed session may still be writing a checkpoint
    driver.begin()
    if not driver.finished:
        resources = store.experiment.resources
        with (
            _one_interrupt(driver, signal.SIGINT),
            connected(resources, _size(task), address) as scratch,
            _one_interrupt(driver, signal.SIGTERM),  # later than Ray's own
            shared(store.storage, resources) as mark,
        ):
            choice = decide(resources, task, Budget(**store.experiment.budget), own=function is not train)
            if choice.sentence:
                driver.note("gpus", choice.detail)
            settled = resources.model_copy(update={"gpus_per_trial": choice.gpus_per_trial})
            run_jobs(driver, settled, task, function, str(scratch), mark)
    else:
        unmark(store.storage)  # killed between the last event and the end of the search
    driver.close()


@contextlib.contextmanager
def stoppable(store: Store, command: str) -> Iterator[None]:
    """Let a Ctrl-C that stops at once, inside a `with` block, say by a note how `bsconv-nas command` goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if store.record().trials:
            stop.add_note(f"stopped; go on with: bsconv-nas {command} {store.path}")
        raise


@contextlib.contextmanager
def _one_interrupt(driver: Jobs, number: signal.Signals) -> Iterator[None]:
    """Let the first Ctrl-C, or a SIGTERM, end the search in good order, and a second Ctrl-C at once."""

    def stop(number: int, frame: object) -> None:
        driver.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before or signal.SIG_DFL)  # None: Ray's own, which is gone by then


def _size(data: object) -> int:
    """Return the bytes of `data` in Ray's object store."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    return len(rest) + sum(buffer.raw().nbytes for buffer in buffers)
