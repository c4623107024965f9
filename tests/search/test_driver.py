import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_search import EPOCHS, TRADE_OFF, new_run, pretend, quality, small_space, work_alone

from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import SearchError
from bsconv_nas.search.checkpoint import has_checkpoint, save_checkpoint
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.record import Objective, Record, Trial
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Metrics, Task

SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))


class Killed(Exception):
    """Stands for kill -9."""


def searched(
    store: Store, on_change: Callable[[Record], None] = lambda record: None, trials: int | None = None
) -> Record:
    return work_alone(store, FEASIBLE, on_change=on_change, trials=trials)


def shown(record: Record) -> dict[int, Trial]:
    """Return a record's trials without the times at which things happened."""
    return {
        number: dataclasses.replace(trial, started=dataclasses.replace(trial.started, time=0.0), ended=0.0)
        for number, trial in record.trials.items()
    }


def test_baselines_come_first_and_run_to_the_end(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=9, baselines=8, scheduler={"name": "asha", "eta": 2})
    record = searched(store)
    kinds = [trial.started.kind for trial in record.trials.values()]
    assert kinds == ["baseline"] * 8 + ["search"] * 9
    assert all(record.trials[n].state == "complete" and record.trials[n].epochs == EPOCHS for n in range(8))
    assert {trial.state for trial in record.trials.values()} == {"complete", "stopped"}
    assert [note.what for note in record.notes][:: len(record.notes) - 1] == ["planned", "finished"]
    assert record.notes[0].detail == {"baselines": 8, "trials": 9}
    assert len(record.keys) == 17
    assert all(trial.started.costs["macs"] <= 60_000 for trial in record.trials.values())


def test_stops_follow_the_rungs(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=12, baselines=3, scheduler={"name": "asha", "eta": 2})
    record = searched(store)
    beaten = []
    for trial in record.trials.values():
        rivals = [quality(t.started.indices) for n, t in record.trials.items() if n <= trial.number]
        better = sum(value > quality(trial.started.indices) for value in rivals)
        # With one worker each trial meets all earlier ones at the first rung; later rungs hold fewer.
        if trial.started.kind == "search" and better >= len(rivals) // 2:
            beaten.append((trial.state, trial.epochs))
    assert set(beaten) == {("stopped", 1)}
    assert "complete" in {trial.state for trial in record.trials.values() if trial.started.kind == "search"}


def test_what_is_told_is_what_is_recorded(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=5, baselines=2, objectives=TRADE_OFF)
    record = searched(store)
    assert shown(store.record()) == shown(record)
    for trial in record.trials.values():
        assert trial.metrics == {"val_accuracy": quality(trial.started.indices) * (1 - 0.5**EPOCHS)}
        assert trial.curve_seconds == [1.0, 2.0, 3.0]
        assert trial.seconds == 3.0


def test_the_seed_of_a_trial_is_its_networks(tmp_path: Path) -> None:
    runs = [searched(new_run(tmp_path / str(i), SPACE, trials=4, seed=s)) for i, s in enumerate((5, 5, 6))]
    seeds = [{trial.started.key: trial.started.seed for trial in record.trials.values()} for record in runs]
    assert seeds[0] == seeds[1]
    assert all(seeds[0][key] != seeds[2][key] for key in seeds[0].keys() & seeds[2].keys())
    assert len(set(seeds[0].values())) == len(seeds[0])


def test_pareto_asha_keeps_all_of_the_front_of_which_asha_stops_some(tmp_path: Path) -> None:
    """The curves of the pretended trainings never cross, and `random` proposes the same whatever becomes of it."""
    asked = {"sampler": "random", "trials": 40, "baselines": 2, "objectives": TRADE_OFF}
    stopping = {"eta": 3, "min_epochs": 1}
    records = {
        name: searched(new_run(tmp_path / name, SPACE, scheduler={"name": name, **params}, **asked))
        for name, params in {"none": {}, "asha": stopping, "pareto_asha": stopping}.items()
    }
    front = records["none"].front([Objective(**goal) for goal in TRADE_OFF])
    states = {name: [record.trials[number].state for number in front] for name, record in records.items()}
    assert len({tuple(t.started.key for t in record.trials.values()) for record in records.values()}) == 1
    assert states["pareto_asha"] == ["complete"] * len(front)
    assert states["asha"].count("stopped") >= 2
    spent = {name: sum(trial.epochs for trial in record.trials.values()) for name, record in records.items()}
    assert spent["asha"] < spent["pareto_asha"] < 0.75 * spent["none"]


def mirrored(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Yield what `pretend` does as a loss, and an accuracy that says the contrary."""
    for epoch, metrics in pretend(task, job):
        yield epoch, {"val_loss": 1 - metrics["val_accuracy"], "val_accuracy": 1 - metrics["val_accuracy"]}


@pytest.mark.parametrize("scheduler", ["asha", "pareto_asha"])
def test_the_first_measured_objective_decides_who_is_stopped(tmp_path: Path, scheduler: str) -> None:
    asked = {"sampler": "random", "trials": 12, "baselines": 2, "scheduler": scheduler}
    loss = ({"name": "macs", "direction": "min"}, {"name": "val_loss", "direction": "min"})
    by_loss = work_alone(new_run(tmp_path / "loss", SPACE, objectives=loss, **asked), FEASIBLE, mirrored)
    by_accuracy = searched(new_run(tmp_path / "accuracy", SPACE, objectives=TRADE_OFF, **asked))
    states = [[trial.state for trial in record.trials.values()] for record in (by_loss, by_accuracy)]
    assert states[0] == states[1]
    assert "stopped" in states[0]


@pytest.mark.parametrize("scheduler", ["asha", "pareto_asha"])
def test_an_epoch_without_the_compared_metric_is_worst(tmp_path: Path, scheduler: str) -> None:
    def partly(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
        for epoch, metrics in pretend(task, job):
            yield epoch, metrics if job.number % 4 else {"val_accuracy": math.nan}

    early = {"name": scheduler, "min_epochs": 1}
    asked = {"sampler": "random", "trials": 30, "scheduler": early, "objectives": TRADE_OFF}
    record = work_alone(new_run(tmp_path / "run", SPACE, baselines=0, **asked), FEASIBLE, partly)
    late = [trial for number, trial in record.trials.items() if number >= 12 and not number % 4]
    assert [(trial.state, trial.epochs) for trial in late] == [("stopped", 1)] * 5


@pytest.mark.parametrize("scheduler", ["none", "asha", "pareto_asha", "median", "hyperband"])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_killed_everywhere_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, sampler: str, scheduler: str
) -> None:
    asked = {"sampler": sampler, "scheduler": scheduler, "trials": 14, "baselines": 2, "objectives": TRADE_OFF}
    whole = searched(new_run(tmp_path / "whole", SPACE, **asked))
    store = new_run(tmp_path / "killed", SPACE, **asked)
    for session in range(200):
        try:
            resumed = searched(store, die_after(2 + session % 4))
            break
        except Killed:
            pass
    assert session > 15
    assert shown(resumed) == shown(whole)


def die_after(events: int) -> Callable[[Record], None]:
    """Return a listener that dies once a driver has written so many events."""
    left = iter(range(events - 1))

    def listen(record: Record) -> None:
        if next(left, None) is None:
            raise Killed

    return listen


def test_more_trials_can_be_asked_for(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=3, baselines=1)
    searched(store)
    assert len(searched(store, trials=5).trials) == 6
    assert len(searched(store, trials=2).trials) == 6


def test_an_exhausted_space_ends_the_search_with_success(tmp_path: Path) -> None:
    space = small_space(scope="network", widths=(1.0,), depths="fixed")
    store = new_run(tmp_path / "run", space, trials=50, baselines=2)
    record = work_alone(store, space.feasible())
    assert [note.what for note in record.notes][-2:] == ["exhausted", "finished"]
    assert len(record.trials) == 4
    assert {trial.state for trial in record.trials.values()} == {"complete"}


def begun(store: Store) -> Driver:
    driver = Driver(store, FEASIBLE, EPOCHS)
    driver.begin()
    return driver


def test_a_retry_goes_on_twice_and_then_fails(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=2, baselines=0)
    with store.lock():
        driver = begun(store)
        numbers = []
        for _ in range(3):
            job = driver.next_job()
            assert job is not None
            numbers.append(job.number)
            driver.failed(job.number, "WorkerDied: killed", retry=True)
        assert numbers == [0, 0, 0]
        trial = driver.record.trials[0]
        assert (trial.state, trial.cause) == ("failed", "WorkerDied: killed")
        assert [note.what for note in driver.record.notes].count("retried") == 2
        assert driver.next_job() is not None


def test_an_exception_is_not_retried(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=3, baselines=0)
    with store.lock():
        driver = begun(store)
        first = driver.next_job()
        assert first is not None
        driver.epoch_done(first.number, 1, {"val_accuracy": 0.5}, 2.0)
        driver.failed(first.number, "KeyError: 'layer3'")
        trial = driver.record.trials[0]
        assert (trial.state, trial.epochs, trial.seconds) == ("failed", 1, 2.0)
        second = driver.next_job()
        assert second is not None
        assert second.architecture != first.architecture


def test_in_an_exhausted_space_each_network_was_tried_once_failed_ones_too(tmp_path: Path) -> None:
    """By two drivers, the second of which knows them from the record."""
    space = small_space("network", (0.5, 1.0), "fixed")
    networks = {network.key for network in space.sample(1000)}
    store = new_run(tmp_path / "run", space, baselines=1)
    for trials in (len(networks) // 2, 1000):
        with store.lock():
            driver = Driver(store, space.feasible(), EPOCHS, trials)
            driver.begin()
            while (job := driver.next_job()) is not None:
                driver.epoch_done(job.number, 1, {"val_accuracy": 0.5}, 1.0)
                if job.number % 3:
                    driver.failed(job.number, "DivergedError: nan")
                else:
                    driver.completed(job.number)
            driver.close()
    tried = list(driver.record.trials.values())
    assert sorted(trial.started.key for trial in tried) == sorted(networks)
    assert [trial.state == "failed" for trial in tried] == [trial.number % 3 > 0 for trial in tried]
    assert [note.what for note in driver.record.notes[-2:]] == ["exhausted", "finished"]


@pytest.mark.parametrize("metrics", [{"val_accuracy": math.nan}, {"loss": 0.5}])
def test_a_trial_without_its_objective_fails(tmp_path: Path, metrics: Metrics) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=2, baselines=0, sampler="nsga2")
    with store.lock():
        driver = begun(store)
        job = driver.next_job()
        assert job is not None
        going = [driver.epoch_done(job.number, epoch, metrics, 1.0) for epoch in (1, 2, 3)]
        assert going == [True, True, False]
        trial = store.record().trials[0]
        assert trial.state == "failed"
        assert "'val_accuracy' must be a finite number, but was n" in trial.cause.lower()


def test_a_trial_may_end_before_its_last_epoch(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=0)
    with store.lock():
        driver = begun(store)
        job = driver.next_job()
        assert job is not None
        driver.epoch_done(job.number, 1, {"val_accuracy": 0.5}, 1.0)
        driver.completed(job.number)
        assert driver.finished
        assert driver.record.trials[0].state == "complete"


def test_trials_that_all_fail_alike_end_the_search(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=20, baselines=2)
    with store.lock():
        driver = begun(store)
        for number in range(5):
            assert not driver.stopping
            assert driver.next_job() is not None
            driver.failed(number, f"ValueError: network {number} is broken")
        assert driver.stopping
        assert driver.next_job() is None
        with pytest.raises(
            SearchError, match="all 5 so far failed alike, the last with 'ValueError: network 4 is broken'"
        ):
            driver.close()


def test_trials_that_fail_apart_do_not_end_the_search(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=20, baselines=2)
    with store.lock():
        driver = begun(store)
        for number in range(8):
            assert driver.next_job() is not None
            driver.failed(number, "ValueError: x" if number % 2 else "KeyError: x")
        assert not driver.stopping


def test_a_search_of_which_nothing_succeeded_says_so(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=1)
    with store.lock():
        driver = begun(store)
        for number in range(2):
            assert driver.next_job() is not None
            driver.failed(number, "ValueError: broken")
        with pytest.raises(SearchError, match="all 2 so far failed alike"):
            driver.close()


def test_only_the_fronts_checkpoints_stay(tmp_path: Path) -> None:
    import torch

    def saving(task: Task, job: Job):  # type: ignore[no-untyped-def]
        for epoch, metrics in pretend(task, job):
            save_checkpoint(job.checkpoint, {"w": torch.zeros(1)}, {"epoch": epoch})
            yield epoch, metrics

    store = new_run(tmp_path / "run", SPACE, trials=8, baselines=3, scheduler="asha", objectives=TRADE_OFF)
    record = work_alone(store, FEASIBLE, saving)
    kept = {number for number in record.trials if has_checkpoint(store.checkpoint(number))}
    assert kept == set(record.front(store.experiment.search.objectives))
    assert 0 < len(kept) < len(record.trials)


def test_a_recorded_search_of_one_rung_less_goes_on(tmp_path: Path) -> None:
    asked = {"name": "asha", "min_epochs": EPOCHS}
    store = new_run(tmp_path / "run", SPACE, trials=3, baselines=0, scheduler=asked)
    assert {trial.state for trial in searched(store).trials.values()} == {"complete"}
    assert len(searched(store, trials=4).trials) == 4
