"""Searches that are killed, interrupted and gone on with, against those that were left alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killing import EPOCHS, STEPS, User, asked, end_of, events_of, noted, once_each, timeless, user, weights
from local_cluster import wait_until
from small_search import TRADE_OFF, new_run, small_space, task_of, work_alone

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.budget import Budget
from bsconv_nas.search import cluster
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.runner import search
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Task, train
from bsconv_nas.training.data import load

SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As workers have it: the order of additions is in the last digits of every result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def left_alone(someone: User, run: Path) -> None:
    """Search in this process as a single worker would that nothing befalls."""
    experiment = Experiment.load(someone.folder / "tiny.toml")
    space = SearchSpace.load(experiment.space, (1, 8, 8), 10)
    store = Store.create(run, experiment, space.to_json(), {})
    task = Task(space.base, space.table, load(experiment.images), experiment.recipe)
    with store.lock():
        driver = Driver(store, space.feasible(Budget(**experiment.budget)), EPOCHS)
        driver.begin()
        while (job := driver.next_job()) is not None:
            for epoch, metrics in train(task, job):
                if not driver.epoch_done(job.number, epoch, metrics, 1.0):
                    break
        driver.close()


def test_a_search_killed_twice_ends_as_if_nothing_had_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    with user(tiny__toml=asked("additive", "pareto_asha")) as someone:
        monkeypatch.syspath_prepend(someone.folder)
        whole, run = someone.folder / "whole", someone.folder / "run"
        left_alone(someone, whole)
        trained = someone.steps
        first, again = ["search", "tiny.toml", "--run", "run"], ["resume", "run"]
        killed = end_of(someone, run, first, again, ["driver", "worker"], seed=5, halfway=1.0)
        assert killed == {"driver": 1, "worker": 1}
        assert timeless(run) == timeless(whole)
        assert [note for note in noted(run) if note[0] != "fvcore"] == noted(whole)
        assert weights(run) == weights(whole)
        once_each(events_of(run))
        assert trained <= someone.steps - trained <= trained + 2 * STEPS
        assert someone.left_over == []
        wait_until(lambda: someone.processes() == [], "the end of all processes", 30)


@pytest.mark.parametrize("scheduler", ["none", "asha", "pareto_asha"])
@pytest.mark.parametrize("sampler", ["additive", "tpe", "nsga2"])
def test_more_trials_are_those_of_a_longer_search(tmp_path: Path, sampler: str, scheduler: str) -> None:
    plan = {"sampler": {"name": sampler, "startup": 2}, "scheduler": scheduler, "baselines": 2}
    plan |= {"objectives": TRADE_OFF}
    work_alone(new_run(tmp_path / "whole", SPACE, trials=12, **plan), FEASIBLE)
    store = new_run(tmp_path / "run", SPACE, trials=5, **plan)
    work_alone(store, FEASIBLE)
    work_alone(store, FEASIBLE, trials=12)
    assert timeless(store.path) == timeless(tmp_path / "whole")
    assert noted(store.path) == noted(tmp_path / "whole")


def test_the_number_that_was_asked_for_last_is_gone_on_to(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=3, baselines=0)
    with store.lock():
        Driver(store, FEASIBLE, EPOCHS, 5).begin()
    assert len(work_alone(store, FEASIBLE).trials) == 5


def test_an_exhausted_space_is_noted_once(tmp_path: Path) -> None:
    space = small_space(scope="network", widths=(1.0,), depths="fixed")
    store = new_run(tmp_path / "run", space, trials=50, baselines=2)
    work_alone(store, space.feasible())
    record = work_alone(store, space.feasible(), trials=60)
    assert [note.what for note in record.notes].count("exhausted") == 1


def test_what_a_killed_writer_leaves_does_no_harm(tmp_path: Path) -> None:
    """Half a run folder, half a checkpoint."""
    (tmp_path / ".small.0123abcd").mkdir()
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=1)
    half = Path(store.checkpoint(0))
    half.mkdir(parents=True)
    for name in ("0123456789abcdef.safetensors", "checkpoint.json.part"):
        (half / name).write_bytes(b"half of it")
    work_alone(new_run(tmp_path / "whole", SPACE, trials=1, baselines=1), FEASIBLE, train)
    work_alone(store, FEASIBLE, train)
    assert timeless(store.path) == timeless(tmp_path / "whole")
    assert weights(store.path) == weights(tmp_path / "whole")


def test_a_run_folder_comes_with_all_that_belongs_into_it(tmp_path: Path) -> None:
    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    experiment = new_run(tmp_path / "first", SPACE).experiment
    store = Store.create(tmp_path / "run", experiment, {}, {}, [lambda folder: (folder / "base").touch()])
    assert (store.path / "base").is_file()
    with pytest.raises(KeyboardInterrupt):
        Store.create(tmp_path / "other", experiment, {}, {}, [die])
    assert {path.name for path in tmp_path.iterdir()} == {"first", "run"}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for temporary files that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def sleeper(scratch: Path, first: str = "pass") -> Iterator[subprocess.Popen[bytes]]:
    """Have a process that seems to be of the session in `scratch`, and has done something `first`."""
    command = [sys.executable, "-c", f"import time; {first}; print(flush=True); time.sleep(3600)"]
    environment = cluster._settings(scratch) | os.environ  # titles are written over what comes first
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its environment is its own from now on
        try:
            yield process
        finally:
            process.kill()


def killed_session(temporary: Path) -> Path:
    """Return the scratch folder of a session whose driver is gone."""
    scratch = temporary / "bsn-dead"
    scratch.mkdir()
    (scratch / cluster.LOCK).touch()
    return scratch


def test_the_processes_of_a_killed_session_are_ended_and_no_others(temporary: Path) -> None:
    scratch = killed_session(temporary)
    with sleeper(scratch) as late, sleeper(temporary / "bsn-deadly") as other:
        cluster.sweep()
        assert late.wait(timeout=60) == -signal.SIGKILL
        assert other.poll() is None
        assert not scratch.exists()


def test_a_process_that_has_changed_its_title_is_not_missed(temporary: Path) -> None:
    """Ray's agents do so as soon as they run; the place for a title goes on into the environment."""
    titled = "import ray; ray._raylet.setproctitle('ray::Agent')"
    with sleeper(scratch := killed_session(temporary), titled) as agent:
        cluster.sweep()
        assert agent.wait(timeout=60) == -signal.SIGKILL
        assert not scratch.exists()


def test_a_process_that_is_just_being_started_is_not_missed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between fork and exec the kernel shows no environment: what the first look finds then is nothing."""
    scratch, look, looks = killed_session(temporary), cluster._processes, [[]]
    monkeypatch.setattr(cluster, "_processes", lambda folder: looks.pop() if looks else look(folder))
    with sleeper(scratch) as starting:
        cluster.sweep()
        assert starting.wait(timeout=60) == -signal.SIGKILL
        assert not scratch.exists()


def test_a_removal_that_was_broken_off_is_finished_by_the_next_session(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = killed_session(temporary)
    for number in range(20):
        (scratch / f"session_{number}").mkdir()
    left, rmdir = iter(range(19)), os.rmdir

    def stop(path: str, *, dir_fd: int | None = None) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        rmdir(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", stop)
        with pytest.raises(KeyboardInterrupt):
            cluster.sweep()
    assert scratch.exists()
    cluster.sweep()
    assert not scratch.exists()


def test_a_process_that_got_the_number_of_a_dead_one_is_not_killed(temporary: Path) -> None:
    with sleeper(temporary / "bsn-other") as other:
        cluster._kill(other.pid, temporary / "bsn-dead")
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.3)


def test_a_search_killed_after_its_last_event_is_tidied_up_without_ray(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=1)
    work_alone(store, FEASIBLE)
    events = store.path / "trials.jsonl"
    *lines, last = events.read_text().splitlines(keepends=True)
    assert '"finished"' in last
    events.write_text("".join(lines))
    (store.path / "checkpoints").mkdir()
    (store.path / "checkpoints/shared").touch()
    monkeypatch.setattr("bsconv_nas.search.runner.connected", pytest.fail)
    with sleeper(killed_session(temporary)) as late:
        record = search(store, FEASIBLE, task_of(SPACE, store))
        assert late.wait(timeout=60) == -signal.SIGKILL
    assert record.notes[-1].what == "finished"
    assert not (store.path / "checkpoints").exists()
    assert list(temporary.iterdir()) == []
