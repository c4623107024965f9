"""A search over two real nodes, one of which dies in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from local_cluster import HEAD, LocalCluster, local_cluster, wait_until

from bsconv_nas.api import SearchSpace
from bsconv_nas.search.record import EpochDone, Note, Record, event_from_json
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Task, train
from bsconv_nas.training.data import load

OTHER = "127.0.0.3"
EPOCHS = 5
# What a user's own trial function may look like: the real training, told about in a file.
WATCHED = """
import json, os, sys, time
from pathlib import Path

import ray
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.search.trial import train

def resnet8(in_channels=1, num_classes=10):
    return cifar_resnet(8, in_channels=in_channels, num_classes=num_classes, width=8)


def mapped(address):
    # The file that is mapped at an address, and the place in it: the same for the same bytes in shared memory.
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, offset, device, inode, *name = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return [mode, device, inode, int(offset, 16) + address - start, *name]


def told(**what):
    with Path(__file__).with_name("log.jsonl").open("a") as file:
        file.write(json.dumps({"node": ray.util.get_node_ip_address(), "process": os.getpid(), **what}) + "\\n")


def watched(task, job):
    images = task.dataset.parts["train"].images
    told(number=job.number, known=job.epochs, dataset=id(task.dataset), images=mapped(images.ctypes.data))
    for epoch, metrics in train(task, job):
        told(number=job.number, epoch=epoch)
        yield epoch, metrics
        while epoch == 2 and Path(__file__).with_name("hold").read_text() == ray.util.get_node_ip_address():
            time.sleep(0.05)  # until this node is killed
        ended, pause = time.monotonic(), Path(__file__).with_name("pause")
        while time.monotonic() < ended + float(pause.read_text()):  # which may change meanwhile
            time.sleep(0.05)
"""
DRIVER = """
import sys, time
from bsconv_nas.search.cluster import connected
import ray
from watched import watched
from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.runner import search
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Task
from bsconv_nas.training.data import load

address, nodes = sys.argv[1], int(sys.argv[2])
experiment = Experiment.load("tiny.toml")
space = SearchSpace.load(experiment.space, (1, 8, 8), 10)
store = Store.create("run", experiment, space.to_json(), {})
task = Task(space.base, space.table, load(experiment.data), experiment.recipe)
with connected(experiment.resources, 0, address):
    while len(ray.nodes()) < nodes:
        time.sleep(0.1)
    search(store, space.feasible(Budget(**experiment.budget)), task, address=address, function=watched)
"""
SPACE = """
base = {factory = "watched:resnet8", input_size = [1, 8, 8]}
choices = {widths = [0.5, 1.0]}
"""
EXPERIMENT = f"""
space = "space.toml"
data = {{name = "digits", limit = 300}}
recipe = {{epochs = {EPOCHS}, batch_size = 32}}
search = {{sampler = "random", trials = 6, baselines = 1}}
budget = {{macs = "60K"}}
resources = {{workers = 3}}
"""


FILES = {
    "watched__py": WATCHED,
    "driver__py": DRIVER,
    "space__toml": SPACE,
    "tiny__toml": EXPERIMENT,
    "pause": "0.4",
    "hold": OTHER,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2, **FILES) as cluster:
        cluster.start(OTHER, 1)
        yield cluster


@contextmanager
def driving(cluster: LocalCluster, nodes: int) -> Iterator[subprocess.Popen[str]]:
    """Begin the search in a process of its own, once so many nodes are there; it ends with the `with` block."""
    command = [sys.executable, "driver.py", cluster.address, str(nodes)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events_of(run: Path) -> list[Any]:
    return [event_from_json(line) for line in lines(run / "trials.jsonl")]


def begun_in(folder: Path) -> list[dict[str, Any]]:
    """Return what was told at the begin of each trial, and of each further try."""
    return [line for line in lines(folder / "log.jsonl") if "known" in line]


def half_trained_there(folder: Path) -> int | None:
    """Return the trial that is held on the other node, once its epochs until then are recorded."""
    begun = {line["number"]: line["node"] for line in begun_in(folder)}
    record = Store(folder / "run").record() if (folder / "run").exists() else Record()
    running = (trial for trial in record.trials.values() if trial.state == "running" and trial.epochs == 2)
    return next((trial.number for trial in running if begun.get(trial.number) == OTHER), None)


@pytest.fixture(scope="module")
def victim(cluster: LocalCluster) -> int:
    """Search until a trial is half-trained on the other node, kill that node, wait for the end: the trial's number."""
    with driving(cluster, nodes=2) as driver:
        found: list[int] = []

        def there() -> bool:
            assert driver.poll() is None, driver.communicate()
            number = half_trained_there(cluster.folder)
            found.extend([] if number is None else [number])
            return bool(found)

        wait_until(there, "half a training on the other node")
        cluster.kill(OTHER)
        said = driver.communicate(timeout=300)
        assert (driver.returncode, said) == (0, ("", "")), "the death of a node is the record's matter"
    return found[0]


def test_a_dead_nodes_trial_goes_on_elsewhere_from_its_last_checkpoint(cluster: LocalCluster, victim: int) -> None:
    events = events_of(cluster.folder / "run")
    retried = [i for i, event in enumerate(events) if isinstance(event, Note) and event.what == "retried"]
    assert [events[i].detail["number"] for i in retried] == [victim]
    recorded = [
        event.epoch for event in events[: retried[0]] if isinstance(event, EpochDone) and event.number == victim
    ]
    assert recorded == list(range(1, len(recorded) + 1))
    assert 2 <= len(recorded) < EPOCHS
    told = [line for line in lines(cluster.folder / "log.jsonl") if line["number"] == victim]
    begun = [line for line in told if "known" in line]
    assert [(line["node"], line["known"]) for line in begun] == [(OTHER, 0), (HEAD, len(recorded))]
    again = [line["epoch"] for line in told if "epoch" in line and line["node"] == HEAD]
    assert again == list(range(len(recorded) + 1, EPOCHS + 1))


def test_the_record_of_a_search_that_lost_a_node_is_whole(cluster: LocalCluster, victim: int) -> None:
    store = Store(cluster.folder / "run")
    epochs = [(event.number, event.epoch) for event in events_of(store.path) if isinstance(event, EpochDone)]
    assert sorted(epochs) == [(number, epoch) for number in range(7) for epoch in range(1, EPOCHS + 1)]
    record = store.record()
    assert [trial.started.kind for trial in record.trials.values()] == ["baseline"] + ["search"] * 6
    assert {trial.state for trial in record.trials.values()} == {"complete"}
    assert len(record.keys) == 7
    assert record.notes[-1].what == "finished"
    assert cluster.left_over == []


def test_the_training_that_moved_is_as_good_as_one_that_did_not(
    cluster: LocalCluster, victim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(cluster.folder)
    store = Store.open(cluster.folder / "run")
    space, trial = SearchSpace.from_json(store.space), store.record().trials[victim]
    task = Task(space.base, space.table, load(store.experiment.data), store.experiment.recipe)
    job = Job(victim, space.table.architecture(trial.started.indices), trial.started.seed, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert [metrics for _, metrics in train(task, job)] == trial.curve
    torch.set_num_threads(threads)


def test_the_data_lie_once_on_a_node_whatever_runs_there(cluster: LocalCluster, victim: int) -> None:
    """All trials of all workers read one place in the shared memory of their node."""
    begun = begun_in(cluster.folder)
    places = {node: {tuple(line["images"]) for line in begun if line["node"] == node} for node in (HEAD, OTHER)}
    assert len({line["process"] for line in begun if line["node"] == HEAD}) >= 2
    assert [len(places[node]) for node in (HEAD, OTHER)] == [1, 1]
    assert places[HEAD] != places[OTHER]
    assert all(place[0].endswith("s") for node in places for place in places[node]), "shared, not a copy of its own"


@pytest.mark.slow
def test_a_node_that_comes_later_is_put_to_work() -> None:
    """As one does that a cluster starts in the place of a dead one."""
    waiting = {"pause": "600", "hold": "", "tiny__toml": EXPERIMENT.replace("trials = 6", "trials = 3")}
    with local_cluster(1, **{**FILES, **waiting}) as cluster:
        with driving(cluster, nodes=1) as driver:
            wait_until(lambda: bool(begun_in(cluster.folder)), "the first trial", 300)
            cluster.start(OTHER, 1)
            wait_until(lambda: begun_in(cluster.folder)[-1]["node"] == OTHER, "a trial on the new node", 300)
            (cluster.folder / "none").write_text("0")
            (cluster.folder / "none").replace(cluster.folder / "pause")
            assert driver.communicate(timeout=300) == ("", "")
        assert begun_in(cluster.folder)[0]["node"] == HEAD
        assert driver.returncode == 0
        assert len(Store(cluster.folder / "run").record().keys) == 4
