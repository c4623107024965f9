"""The glue by which Ray Tune asks the driver what comes next, and tells it what became of it.

Tune places trials, keeps workers alive between them and notices their deaths. It decides and remembers nothing: its own
storage and loggers are scratch or off.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Stopper
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from bsconv_nas.errors import BsconvNasError, described, first_line
from bsconv_nas.search.cluster import concurrency, room
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.fatal_signals import fatal_signal
from bsconv_nas.search.shared import Mark
from bsconv_nas.search.trial import Job, Metrics, Task, TrialFunction
from bsconv_nas.search.worker import Report, Worker, is_out_of_memory

__all__ = ["Jobs", "run_jobs"]

_log = logging.getLogger(__name__)
COUNT_EVERY = 2.0  # seconds between looks at which nodes there are


class Jobs(Protocol):
    """What Tune asks and tells; `Driver` and `Retraining` answer. Number is a trial's number in the record."""

    interrupted: bool

    def begin(self) -> None:
        """Say what is planned, and settle what an earlier driver left open."""

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing more comes."""

    @property
    def stopping(self) -> bool:
        """Whether to end with trials still running."""

    def next_job(self) -> Job | None:
        """Return the next trial to run; None if there is none now."""

    def epoch_done(self, number: int, epoch: int, metrics: Metrics, seconds: float) -> bool:
        """Take note of an epoch; return whether the trial goes on."""

    def completed(self, number: int) -> None:
        """Take note that a trial has no further epoch."""

    def failed(self, number: int, cause: str, retry: bool = False) -> None:
        """Take note of why a trial broke off, and whether another try may help."""

    def note(self, what: str, detail: dict[str, Any]) -> None:
        """Take note of what happened beside the trials."""

    def close(self) -> None:
        """Take note that nothing runs any more."""


def run_jobs(driver: Jobs, resources: Resources, task: Task, function: TrialFunction, scratch: str, mark: Mark) -> None:
    """Let Tune run the driver's jobs until there are no more, or the driver wants to stop.

    Args:
        driver: whose jobs.
        resources: of each trial; the fraction of a GPU is decided.
        task: what all trials share: the data lie once in the shared memory of each node.
        function: trains one candidate.
        scratch: a folder of this machine for Tune.
        mark: of the checkpoints' storage.

    Raises:
        BsconvNasError: what the driver raised meanwhile.
        SearchError: the cluster cannot run one trial.
    """
    threads = max(1, int(resources.cpus_per_trial))
    worker = tune.with_parameters(Worker, task=task, function=function, threads=threads, mark=mark)
    amounts = {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(worker, amounts),
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(driver, resources),
            scheduler=_Decisions(driver, resources.timeout_minutes),
            num_samples=-1,
            max_concurrent_trials=resources.workers,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=scratch,
            stop=_Stop(driver),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            callbacks=[],
        ),
    )
    try:
        with _silent("ray.tune"):
            tuner.fit()
    except TuneError as error:
        raise _origin(error) from None


class _Unsaved:
    """Keeps the driver, which is bound to this process, out of the snapshot that Tune pickles into its scratch."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_Unsaved, Searcher):  # type: ignore[misc]
    """The driver's jobs, as Tune asks for them."""

    def __init__(self, driver: Jobs, resources: Resources) -> None:
        super().__init__()
        self._driver, self._resources = driver, resources
        self._room, self._counted = concurrency(resources), time.monotonic()
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job; None while it has no room, or only a running trial's end can tell whether there is one.

        A trial that waited for a node would have been proposed without what others bring to light meanwhile.
        """
        if len(self._live) >= self._places():
            return None
        job = self._driver.next_job()
        if job is not None:
            self._live.add(trial_id)
            return {"job": job}
        return Searcher.FINISHED if self._driver.finished or self._driver.stopping else None

    def _places(self) -> int:
        """Return how many trials the cluster can run now: nodes come and go."""
        now = time.monotonic()
        if now - self._counted > COUNT_EVERY:
            self._room, self._counted = max(1, room(self._resources)), now
        return self._room

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Make room; the scheduler has told the driver already."""
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the driver is built from the record."""


class _Decisions(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """What becomes of a trial, as Tune asks for it."""

    def __init__(self, driver: Jobs, timeout_minutes: float | None) -> None:
        super().__init__()
        self._driver, self._timeout = driver, timeout_minutes
        self._begun: dict[int, float] = {}
        self._late: set[int] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record what a worker reports, and let it go on or stop."""
        number = _number(trial)
        report: Report = result["report"]
        if report.epoch:
            goes_on = self._driver.epoch_done(number, report.epoch, report.metrics, report.seconds)
            return str(self.CONTINUE if goes_on else self.STOP)
        if report.cause:
            self._fail(number, report.cause)
        else:
            self._driver.completed(number)
        return str(self.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Record why a trial broke off: an exception in it, or the death of its worker."""
        number, error = _number(trial), _error(trial)
        self._begun.pop(number, None)  # a retry has its own time
        if number in self._late:
            self._fail(number, f"Timeout: no end after resources.timeout_minutes = {self._timeout:g}")
        elif isinstance(error, RayActorError) and error.actor_init_failed:
            self._fail(number, str(error).strip().splitlines()[-1])  # what its own setup raised
        elif isinstance(error, RayActorError):
            signal = fatal_signal(trial.storage.trial_working_directory)
            self._fail(number, f"WorkerDied: {signal or first_line(error)}", retry=True)
        else:
            cause = error.cause if isinstance(error, RayTaskError) else error
            self._fail(number, described(cause), retry=is_out_of_memory(cause))

    def _fail(self, number: int, cause: str, retry: bool = False) -> None:
        _log.info("trial %d broke off: %s", number, cause)
        self._driver.failed(number, cause, retry)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called again and again: end what hangs, then let Tune choose."""
        if self._timeout is not None:
            self._end_late(tune_controller.get_live_trials(), 60 * self._timeout)
        return super().choose_trial_to_run(tune_controller)

    def _end_late(self, trials: Any, seconds: float) -> None:
        now = time.monotonic()
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            late = actor is not None and now - self._begun.setdefault(_number(trial), now) > seconds
            if late and _number(trial) not in self._late:
                self._late.add(_number(trial))
                ray.kill(actor)


class _Stop(_Unsaved, Stopper):  # type: ignore[misc]
    """Ends the whole search when the driver says so."""

    def __init__(self, driver: Jobs) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop with trials running."""
        return self._driver.stopping


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Mute a logger: what it says is in the record."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _number(trial: Any) -> int:
    job: Job = trial.config["job"]
    return job.number


def _error(trial: Any) -> BaseException:
    """Return what broke a trial: Ray's own error around it, read from where Tune has just put it."""
    if trial.pickled_error_file is None:
        return RuntimeError(Path(trial.error_file).read_text().strip().splitlines()[-1])
    with Path(trial.pickled_error_file).open("rb") as file:
        error: BaseException = ray.cloudpickle.load(file)
    return error


def _origin(error: BaseException) -> BaseException:
    """Return the user's error that Tune wrapped in its own, else Tune's."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, BsconvNasError):
        inner = inner.__cause__ or inner.__context__
    return inner or error
