import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_search import (
    EPOCHS,
    TRADE_OFF,
    new_run,
    pretend,
    quality,
    small_space,
    task_of,
    work_alone,
)

import bsconv_nas as nas
from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import RecordError, SearchError
from bsconv_nas.search.checkpoint import has_checkpoint
from bsconv_nas.search.cluster import concurrency, connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.record import Record
from bsconv_nas.search.runner import search
from bsconv_nas.search.trial import Job, train

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))


def processes_of(scratch: Path) -> list[Path]:
    """Return the living processes that name a session's folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(scratch).encode() in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                found.append(process)
    return found


def rays_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TUNE_", "PYTHON"))}


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for all tests here: it takes seconds to start. In the end nothing of it is left."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    before = rays_environment()
    users = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    with connected(Resources(workers=2), 10**6) as scratch:
        assert len(processes_of(scratch)) > 3
        yield scratch
    os.environ["HOME"] = users
    assert not scratch.exists()
    assert processes_of(scratch) == []
    assert list(home.iterdir()) == []
    assert rays_environment() == before


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, cluster: Path) -> tuple[Path, Record]:
    store = new_run(tmp_path_factory.mktemp("runs") / "digits", SPACE, trials=5, baselines=3, objectives=TRADE_OFF)
    return store.path, search(store, FEASIBLE, task_of(SPACE, store))


def test_a_search_trains_what_it_records(digits: tuple[Path, Record]) -> None:
    _, record = digits
    assert [trial.started.kind for trial in record.trials.values()] == ["baseline"] * 3 + ["search"] * 5
    assert {trial.state for trial in record.trials.values()} == {"complete"}
    assert all(trial.epochs == EPOCHS and trial.seconds > 0 for trial in record.trials.values())
    assert len(record.keys) == 8
    assert all(trial.started.costs["macs"] <= 60_000 for trial in record.trials.values())
    assert max(trial.metrics["val_accuracy"] for trial in record.trials.values()) > 0.5
    assert record.notes[-1].what == "finished"


def test_the_recorded_seed_reproduces_a_trial(digits: tuple[Path, Record], tmp_path: Path) -> None:
    from bsconv_nas.search.store import Store

    path, record = digits
    trial = record.trials[6]
    network = SPACE.table.architecture(trial.started.indices)
    assert network.key == trial.started.key
    task = task_of(SPACE, Store.open(path))
    again = list(train(task, Job(6, network, trial.started.seed, str(tmp_path / "again"))))
    assert [metrics for _, metrics in again] == trial.curve


def test_only_weights_of_the_front_stay(digits: tuple[Path, Record]) -> None:
    from bsconv_nas.search.store import Store

    path, record = digits
    store = Store.open(path)
    kept = {number for number in record.trials if has_checkpoint(store.checkpoint(number))}
    assert kept == set(record.front(store.experiment.search.objectives))
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".json", ".jsonl", ".log", ".safetensors"}


def test_checkpoints_go_to_the_storage_that_the_experiment_names(tmp_path: Path) -> None:
    """Those of the front stay there, in a place of the run's own; nothing else does."""
    resources = {"workers": 1, "storage": f"file://{tmp_path}/elsewhere"}
    store = new_run(tmp_path / "run", SPACE, trials=2, baselines=1, resources=resources)
    record = search(store, FEASIBLE, task_of(SPACE, store))
    (place,) = (tmp_path / "elsewhere").iterdir()
    front = record.front(store.experiment.search.objectives)
    assert sorted(path.name for path in place.iterdir()) == sorted(map(str, front))
    assert all(has_checkpoint(store.checkpoint(number)) for number in front)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_storage_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = new_run(tmp_path / "run", SPACE, trials=2, resources={"storage": str(tmp_path / "file/runs")})
    with pytest.raises(SearchError, match=r"can write, but '.*' says: Cannot create .*: Not a directory; see"):
        search(store, FEASIBLE, task_of(SPACE, store), function=pretend)
    assert not store.record().trials


def test_a_search_without_checkpoints_leaves_no_folder_for_them(tmp_path: Path) -> None:
    resources = {"workers": 2, "storage": str(tmp_path / "elsewhere")}
    store = new_run(tmp_path / "run", SPACE, trials=1, baselines=0, resources=resources)
    search(store, FEASIBLE, task_of(SPACE, store), function=pretend)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_early_stopping_ends_trials_on_the_workers(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=20, baselines=3, scheduler="asha")
    record = search(store, FEASIBLE, task_of(SPACE, store), function=pretend)
    states = [trial.state for trial in record.trials.values()]
    assert states[:3] == ["complete"] * 3
    assert states.count("stopped") >= 8
    assert all((trial.state == "stopped") == (trial.epochs < EPOCHS) for trial in record.trials.values())
    best = max(record.trials.values(), key=lambda trial: quality(trial.started.indices))
    assert best.state == "complete"


def test_ctrl_c_ends_a_search_that_can_go_on(tmp_path: Path) -> None:
    asked = {"trials": 8, "baselines": 2, "resources": {"workers": 1}}
    store = new_run(tmp_path / "interrupted", SPACE, **asked)
    handler = signal.getsignal(signal.SIGINT)

    def press(record: Record) -> None:
        if record.notes[-1].what != "interrupted" and len(record.trials) == 5 and record.trials[4].epochs == 1:
            os.kill(os.getpid(), signal.SIGINT)

    first = search(store, FEASIBLE, task_of(SPACE, store), function=pretend, on_change=press)
    assert first.notes[-1].what == "interrupted"
    assert [trial.state for trial in first.trials.values()] == ["complete"] * 4 + ["running"]
    assert signal.getsignal(signal.SIGINT) is handler
    rest = search(store, FEASIBLE, task_of(SPACE, store), function=pretend)
    assert rest.notes[-1].what == "finished"
    expected = work_alone(new_run(tmp_path / "whole", SPACE, **asked), FEASIBLE)
    assert rest.trials.keys() == expected.trials.keys()
    for number, trial in expected.trials.items():
        other = rest.trials[number]
        assert (other.started.key, other.started.attributes) == (trial.started.key, trial.started.attributes)
        assert (other.state, other.curve) == (trial.state, trial.curve)


@pytest.mark.slow
def test_a_search_away_from_the_main_thread(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=2, baselines=0)
    records = []

    def go() -> None:
        records.append(search(store, FEASIBLE, task_of(SPACE, store), function=pretend))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert [trial.state for trial in records[0].trials.values()] == ["complete"] * 2


def test_what_the_driver_raises_comes_through(tmp_path: Path) -> None:
    store = new_run(tmp_path / "run", SPACE, trials=4, baselines=0, resources={"workers": 1})

    def full_disk(record: Record) -> None:
        if len(record.trials) == 2:
            raise RecordError("Run folder 'run' must be writable, but: No space left on device.")

    with pytest.raises(RecordError, match=r"No space left on device\.$"):
        search(store, FEASIBLE, task_of(SPACE, store), function=pretend, on_change=full_disk)


def test_the_cluster_decides_how_many_run_at_a_time() -> None:
    assert concurrency(Resources(workers=8, cpus_per_trial=0.5)) == 4
    assert concurrency(Resources(workers=1, cpus_per_trial=0.5)) == 1
    assert concurrency(Resources(workers=8, cpus_per_trial=1.5)) == 1


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"cpus_per_trial": 3}, "3 CPU .resources.cpus_per_trial., but no node of the Ray cluster has more than 2: "),
        (
            {"gpus_per_trial": 0.5},
            "0.5 GPU .resources.gpus_per_trial., but no node of the Ray cluster has more than 0: ",
        ),
    ],
)
def test_trials_that_fit_no_machine_are_refused(resources: dict[str, float], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        concurrency(Resources.model_validate(resources))


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for scratch folders that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_scratch_folders_of_killed_sessions_are_swept(short_folder: Path) -> None:
    for name in ("bsn-dead", "bsn-alive", "bsn-unlocked", "other"):
        (short_folder / name).mkdir()
        (short_folder / name / "token").touch()
    for name in ("bsn-dead", "other"):
        (short_folder / name / "lock").touch()
    command = [sys.executable, "-c", HOLD, str(short_folder / "bsn-alive/lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with connected(Resources(), 0) as scratch, connected(Resources(), 0) as second:
            there = {path.name for path in short_folder.iterdir()}
            assert there == {"bsn-alive", "bsn-unlocked", "other", scratch.name, second.name}
        assert {path.name for path in short_folder.iterdir()} == {"bsn-alive", "bsn-unlocked", "other"}
        holder.communicate()


def test_a_search_that_breaks_before_its_first_trial_leaves_no_folder(own_project: Path) -> None:
    def broken_display(record: Record) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nas.search(
            nas.Experiment.load(own_project / "experiments/tiny.toml"), own_project / "new", on_change=broken_display
        )
    assert not (own_project / "new").exists()


def test_an_interrupted_search_counts_nothing_more(own_project: Path) -> None:
    events = own_project / "runs/tiny/trials.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if '"fvcore"' not in line))

    def press(record: Record) -> None:
        if record.notes[-1].what == "planned" and len(record.trials) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    run = nas.resume(nas.load_run(events.parent), trials=6, on_change=press)
    whats = [note.what for note in run.record.notes]
    assert whats[-1] == "interrupted"
    assert "fvcore" not in whats
