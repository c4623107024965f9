"""What is retrained, and the driver that does it; its trials pretend to be trained, which takes no time."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_search import EPOCHS, TRADE_OFF, new_run, pretend, quality, small_space, task_of, work_alone

from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import RecordError, SearchError
from bsconv_nas.run import Run
from bsconv_nas.search.checkpoint import has_checkpoint, save_checkpoint
from bsconv_nas.search.record import Note, Record, Trial
from bsconv_nas.search.retrain import Pair, Retraining, chosen, outlook
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Metrics, Task, TrialFunction

SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished search: 4 baselines, 8 networks."""
    store = new_run(tmp_path / "run", SPACE, trials=8, baselines=4, objectives=TRADE_OFF)
    work_alone(store, FEASIBLE)
    return store


def examined(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Pretend, and be tested after the last epoch."""
    for epoch, metrics in pretend(task, job):
        unseen = {"report_accuracy": 0.5, "test_accuracy": quality(job.architecture.indices)}
        yield epoch, metrics | (unseen if epoch == EPOCHS else {})


def work(driver: Retraining, function: TrialFunction = examined, limit: float = math.inf) -> None:
    """Do a retraining's jobs one after the other, at most `limit` of them."""
    task = task_of(SPACE, driver._store)
    while limit > 0 and (job := driver.next_job()) is not None:
        limit -= 1
        for epoch, metrics in function(task, job):
            if not driver.epoch_done(job.number, epoch, metrics, 1.0):
                break
    driver.close()


def retrained(record: Record) -> list[Trial]:
    return [trial for trial in record.trials.values() if trial.started.kind == "retrain"]


def pairs_of(store: Store, members: int = 1) -> list[Pair]:
    run = Run(store)
    return chosen(run.trials, run.front, members)


def test_members_are_searched_networks_spread_over_the_front(store: Store) -> None:
    run = Run(store)
    front = run.front[run.front["kind"] == "search"]
    members = [pair.member for pair in chosen(run.trials, run.front, 99)]
    assert sorted(members) == sorted(front["number"])
    assert members[0] == front.loc[front["val_accuracy"].idxmax(), "number"]
    assert [pair.member for pair in chosen(run.trials, run.front, 2)] == members[:2]


def trials_of(*rows: tuple[str, str, float, int]) -> pd.DataFrame:
    """Return trials with kind, state, accuracy and MACs, numbered from 0."""
    trials = pd.DataFrame(rows, columns=["kind", "state", "val_accuracy", "macs"])
    return trials.assign(number=range(len(trials)))


LIKE = ("baseline", "complete", 0.6, 710), ("baseline", "complete", 0.7, 1040), ("baseline", "complete", 0.5, 900)
UNLIKE = ("baseline", "complete", 0.8, 690), ("baseline", "complete", 0.9, 1060), ("baseline", "failed", 0.9, 1000)


@pytest.mark.parametrize(
    ("baselines", "rivals"),
    [
        ((*LIKE, *UNLIKE), (2, 1)),  # the two most accurate within 0.7 and 1.05 of its MACs
        (LIKE[:1], (1,)),
        (UNLIKE, (1,)),  # none of like cost: those that cost less
        (UNLIKE[1:], ()),
    ],
)
def test_rivals_are_the_best_uniform_networks_of_like_cost(baselines: tuple[Any, ...], rivals: tuple[int, ...]) -> None:
    trials = trials_of(("search", "complete", 0.5, 1000), *baselines)
    assert chosen(trials, trials.iloc[:1], 1) == [Pair(0, rivals)]


def test_a_front_of_baselines_alone_is_compared_too(store: Store) -> None:
    run = Run(store)
    baselines = run.trials[run.trials["kind"] == "baseline"]
    pairs = chosen(baselines, baselines, 1)
    assert pairs[0].member == baselines.loc[baselines["val_accuracy"].idxmax(), "number"]
    assert pairs[0].member not in pairs[0].rivals


def test_nothing_to_choose_from(store: Store) -> None:
    run = Run(store)
    with pytest.raises(RecordError, match="A run is retrained once a trial is complete, but this one has none"):
        chosen(run.trials, run.front.iloc[:0], 1)


def test_each_network_is_trained_with_each_seed(store: Store) -> None:
    pairs = pairs_of(store)
    before, front = Run(store).trials, Run(store).front["number"].tolist()
    with store.lock():
        driver = Retraining(store, pairs, 3, EPOCHS)
        driver.begin()
        assert not driver.finished
        work(driver)
        assert driver.finished
    trials = retrained(store.record())
    numbers = {pairs[0].member, *pairs[0].rivals}
    assert {trial.started.key for trial in trials} == {before.loc[n, "key"] for n in numbers}
    assert len({(trial.started.key, trial.started.seed) for trial in trials}) == len(trials) == 3 * len(numbers)
    assert all(trial.state == "complete" and trial.epochs == EPOCHS for trial in trials)
    assert [trial.number for trial in trials] == list(range(len(before), len(before) + len(trials)))
    by_key = {trial.started.key: trial.started for trial in store.record().trials.values()}
    assert all(trial.started.costs == by_key[trial.started.key].costs for trial in trials)
    marks = [note.what for note in store.record().notes]
    assert marks[-2:] == ["retraining", "retrained"]
    assert Run(store).front["number"].tolist() == front


def test_what_was_retrained_is_not_trained_again(store: Store) -> None:
    pairs = pairs_of(store)
    with store.lock():
        for seeds, total in ((1, 1), (1, 1), (2, 2)):
            driver = Retraining(store, pairs, seeds, EPOCHS)
            driver.begin()
            work(driver)
            assert len(retrained(store.record())) == total * (1 + len(pairs[0].rivals))


def test_an_interrupted_retraining_goes_on(store: Store) -> None:
    def half(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
        for epoch, metrics in examined(task, job):
            yield epoch, metrics
            if epoch == 1:
                driver.interrupted = True
                return

    with store.lock():
        driver = Retraining(store, pairs_of(store), 2, EPOCHS)
        driver.begin()
        work(driver, half)
        assert driver.stopping
        assert [trial.state for trial in retrained(store.record())] == ["running"]
        assert store.record().notes[-1].what == "interrupted"
        again = Retraining(store, pairs_of(store), 2, EPOCHS)
        again.begin()
        job = again.next_job()
        assert job is not None
        assert (job.number, job.epochs) == (12, 1)
        again.epoch_done(job.number, 2, {"val_accuracy": 0.5}, 1.0)
        assert again.record.trials[12].curve_seconds == [1.0, 2.0]


@pytest.mark.parametrize(("retry", "tries"), [(True, 3), (False, 1)])
def test_only_dead_workers_get_another_try(store: Store, retry: bool, tries: int) -> None:
    with store.lock():
        driver = Retraining(store, [Pair(pairs_of(store)[0].member, ())], 1, EPOCHS)
        driver.begin()
        seen = 0
        while (job := driver.next_job()) is not None:
            seen += 1
            driver.failed(job.number, "WorkerDied: gone", retry=retry)
        with pytest.raises(SearchError, match=r"all 1 failed, the last with 'WorkerDied: gone'"):
            driver.close()
    assert seen == tries
    assert [trial.state for trial in retrained(store.record())] == ["failed"]


def test_a_worker_that_breaks_after_its_end_changes_nothing(store: Store) -> None:
    with store.lock():
        driver = Retraining(store, pairs_of(store), 1, EPOCHS)
        driver.begin()
        work(driver)
        driver.failed(12, "WorkerDied: late", retry=True)
        assert driver.finished
    assert retrained(store.record())[0].state == "complete"


def test_weights_of_retrained_networks_stay(store: Store) -> None:
    torch = pytest.importorskip("torch")

    def saved(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
        save_checkpoint(job.checkpoint, {"weight": torch.zeros(1)}, {})
        yield from examined(task, job)

    with store.lock():
        driver = Retraining(store, pairs_of(store), 2, EPOCHS)
        driver.begin()
        work(driver, saved)
    assert all(has_checkpoint(store.checkpoint(trial.number)) for trial in retrained(store.record()))


def test_the_outlook_counts_epochs(store: Store) -> None:
    pairs = pairs_of(store)
    networks = 1 + len(pairs[0].rivals)
    seen = []

    def look(record: Record) -> None:
        if any(note.what == "retraining" for note in record.notes):
            seen.append(outlook(record, EPOCHS, workers=1))

    with store.lock():
        driver = Retraining(store, pairs, 2, EPOCHS, look)
        driver.begin()
        work(driver)
        total = 2 * networks
        assert dataclasses.astuple(seen[0]) == (0, total, 0, total * EPOCHS, None)
        after_one_epoch = next(found for found in seen if found.epochs == 1)
        assert after_one_epoch.eta_seconds == pytest.approx(total * EPOCHS - 1)  # an epoch takes a second
        assert dataclasses.astuple(seen[-1]) == (total, total, total * EPOCHS, total * EPOCHS, 0.0)
        again = Retraining(store, pairs, 2, EPOCHS, look)
        again.begin()
        assert dataclasses.astuple(seen[-1]) == (0, 0, 0, 0, None)
    assert store.record().notes[-1] == dataclasses.replace(
        Note("retraining", {"trainings": 0}), time=store.record().notes[-1].time
    )


@pytest.mark.parametrize("change", [lambda pairs: pairs, lambda pairs: pairs[::-1]])
def test_seeds_belong_to_networks(store: Store, change: Callable[[list[Pair]], list[Pair]]) -> None:
    pairs = change(pairs_of(store, 2))
    with store.lock():
        driver = Retraining(store, pairs, 2, EPOCHS)
        driver.begin()
        work(driver)
    seeds = {(trial.started.key, trial.started.seed) for trial in retrained(store.record())}
    expected = Retraining(store, pairs_of(store, 2), 2, EPOCHS)._jobs
    assert seeds == {(network.started.key, seed) for network, seed in expected}
