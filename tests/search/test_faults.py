"""Faults, each injected for real: one failed record with its cause, and the search goes on; if all fail alike, not."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from faulty_trials import Unreadable, broken, faulty, spoiling
from local_cluster import wait_until
from PIL import Image
from small_search import new_run, quality, resnet8, small_space, task_of

import bsconv_nas as nas
from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import SearchError
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.runner import search
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Task
from bsconv_nas.training.data import Dataset, DataSpec, load
from bsconv_nas.training.recipe import Recipe

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SCRIPT = Path(sys.executable).with_name("bsconv-nas")
SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))
DIED = "WorkerDied: "  # and what Ray says of it


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests here but those with a driver of their own."""
    with connected(Resources(workers=2), 10**7):
        yield


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run in which trials go wrong in each way. One more try for each will do: it takes the start of a process."""
    search_ = {"trials": 9, "baselines": 2, "sampler": "nsga2", "resources": {"workers": 2, "timeout_minutes": 0.3}}
    store = new_run(tmp_path_factory.mktemp("spoiled") / "run", SPACE, **search_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bsconv_nas.search.driver.RETRIES", 1)
        search(store, FEASIBLE, task_of(SPACE, store), function=faulty)
    return store


@pytest.mark.usefixtures("cluster")
def test_each_fault_is_one_failed_record(spoiled: Store) -> None:
    record = spoiled.record()
    causes = {number: trial.cause for number, trial in record.trials.items() if trial.state == "failed"}
    assert causes.pop(3).startswith(DIED)
    assert causes.pop(6).endswith("No space left on device")
    assert re.fullmatch(r"WorkerDied: SIGSEGV in _crash \(faulty_trials\.py, line \d+\)", causes.pop(10))
    assert causes == {
        1: "DivergedError: The loss must stay finite, but was nan in epoch 2: "
        "lower recipe.learning_rate or set recipe.clip",
        2: "KeyError: 'layer3'",
        4: "The objective 'val_accuracy' must be a finite number, but was nan",
        5: "MemoryError",
        8: "Timeout: no end after resources.timeout_minutes = 0.3",
    }
    assert [trial.epochs for trial in record.trials.values()] == [3, 1, 1, 1, 3, 1, 1, 3, 1, 3, 1]
    assert len(record.keys) == 11
    assert record.notes[-1].what == "finished"
    assert not any((spoiled.path / "checkpoints").glob("*/checkpoint.json.part"))


@pytest.mark.usefixtures("cluster")
def test_memory_that_ran_out_and_dead_workers_get_another_try_that_goes_on(spoiled: Store) -> None:
    record = spoiled.record()
    notes = [note.detail for note in record.notes if note.what == "retried"]
    retried = {detail["number"]: detail["cause"] for detail in notes}
    assert sorted(detail["number"] for detail in notes) == [0, 3, 5, 7, 10]
    assert retried[0].startswith("RuntimeError: ")
    assert "can't allocate memory" in retried[0]
    assert retried[3].startswith(DIED)
    assert retried[5] == "MemoryError"
    assert retried[7] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"
    for number in (0, 7, 9):
        trial = record.trials[number]
        full = [{"val_accuracy": quality(trial.started.indices) * (1 - 0.5**epoch)} for epoch in (1, 2, 3)]
        assert (trial.state, trial.curve) == ("complete", full)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 x 20 images that are too large to be kept in memory."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (66, 66, 3), np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root


@cache
def large_space() -> nas.SearchSpace:
    return nas.SearchSpace.from_module(resnet8, input_size=(3, 66, 66), num_classes=2, scope="network", widths=(0.5,))


def streamed(pictures: Path) -> Dataset:
    return load(DataSpec("folder", root=str(pictures), resolution=66))


def task(dataset: Dataset) -> Task:
    return Task(large_space().base, large_space().table, dataset, Recipe(epochs=1, batch_size=16))


@pytest.mark.usefixtures("cluster")
def test_a_sample_that_cannot_be_read_fails_the_trial_that_meets_it(pictures: Path, tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", large_space(), trials=2, baselines=2, resources={"workers": 1})
    dataset = streamed(pictures)
    record = search(store, large_space().feasible(), task(dataset), function=spoiling)
    assert [trial.state for trial in record.trials.values()] == ["complete", "failed", "complete", "complete"]
    (image,) = dataset.parts["train"].paths[:1]
    expected = f"DataError: Every image must be readable, but {image} is not: "
    assert record.trials[1].cause.startswith(expected)
    assert not [note for note in record.notes if note.what == "retried"]


@pytest.mark.usefixtures("cluster")
def test_a_sample_that_no_trial_can_read_ends_the_search(pictures: Path, tmp_path: Path) -> None:
    """It lies in the part that is evaluated at the end of an epoch: loading does not look at it."""
    dataset = streamed(pictures)
    image = Path(dataset.parts["selection"].paths[0])
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    store = new_run(tmp_path / "run", large_space(), trials=30, baselines=2, resources={"workers": 1})
    with pytest.raises(SearchError, match=f"all 5 so far failed alike, .*Every image must be readable, but {image} is"):
        search(store, large_space().feasible(), task(dataset))
    image.write_bytes(whole)
    assert sum(trial.state == "failed" for trial in store.record().trials.values()) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_search_in_which_all_fails_stops_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsconv_nas.search.driver.ALIKE", 2)  # each takes a process of its own
    store = new_run(tmp_path / "run", SPACE, trials=30, baselines=1, resources={"workers": 1})
    with pytest.raises(SearchError, match="all 2 so far failed alike, the last with 'ValueError: network 1 is broken'"):
        search(store, FEASIBLE, task_of(SPACE, store), function=broken)
    assert len(store.record().trials) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=0, resources={"workers": 1})
    with pytest.raises(SearchError, match="the last with \"ModuleNotFoundError: No module named 'mine'\""):
        search(store, FEASIBLE, task_of(SPACE, store), function=Unreadable())
    assert [note.what for note in store.record().notes] == ["planned"]  # and it is not tried again


EXPERIMENT = """
space = "space.toml"
recipe = { epochs = 3 }
resources = { workers = 1 }

[search]
trial = "faulty_trials:rising"
sampler = "random"
trials = 12
baselines = 2
objectives = [{ name = "score", direction = "max" }, { name = "macs", direction = "min" }]
"""
SPACE_FILE = """
[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 8 }
input_size = [1, 8, 8]
"""


@pytest.mark.usefixtures("cluster")
def test_a_full_disk_ends_the_driver_with_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    """A real driver may suddenly write no more; with room again, it is gone on with."""
    for name, text in {"full.toml": EXPERIMENT, "space.toml": SPACE_FILE}.items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [SCRIPT, "search", "full.toml", "--run", "run"]
    events = tmp_path / "run/trials.jsonl"
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **streams) as driver:
        wait_until(lambda: events.is_file() and events.read_text().count('"ended"') >= 4, "four trials", 300)
        _, hard = resource.prlimit(driver.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (events.stat().st_size + 500, hard))
        _, said = driver.communicate(timeout=300)
    assert driver.returncode == 2
    (sentence,) = (line for line in said.splitlines() if "LOG ERROR" not in line)  # Ray's log is full, too
    assert sentence.startswith("error: Run folder 'run' must be writable, but: File too large; what it holds is whole")
    before = Store.open(tmp_path / "run").record()
    assert 4 <= sum(trial.state == "complete" for trial in before.trials.values()) < 14
    after = nas.resume(nas.load_run(tmp_path / "run")).record
    assert [trial.state for trial in after.trials.values()] == ["complete"] * 14
    assert len(after.keys) == 14
    for number, trial in before.trials.items():
        assert after.trials[number].started == trial.started
        if trial.state == "complete":
            assert after.trials[number] == trial
    assert after.notes[-1].what in ("finished", "fvcore")
