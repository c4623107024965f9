import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bsconv_nas.errors import RecordError
from bsconv_nas.search.checkpoint import has_checkpoint, save_checkpoint
from bsconv_nas.search.record import Ended, EpochDone, Note, Started, event_from_json, event_to_json
from bsconv_nas.search.store import Store, kept

SPACE = {"base": {"factory": "a:b"}, "table": {}}
ENVIRONMENT = {"versions": {"python": "3.11"}}


def started(number, kind="search", macs=100):
    return Started(number, kind, f"key{number}", (0, 1), {"macs": macs}, number, time=1.0)


@pytest.fixture
def store(tmp_path, experiment):
    return Store.create(tmp_path / "runs" / "tiny-1", experiment, SPACE, ENVIRONMENT)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_folder_holds_what_it_was_made_of(store, experiment):
    opened = Store.open(store.path)
    assert opened.name == "tiny-1"
    assert opened.experiment.to_json(opened.path) == experiment.to_json(opened.path)
    assert (opened.space, opened.environment) == (SPACE, ENVIRONMENT)
    assert opened.record().trials == {}
    names = ["environment.json", "experiment.json", "space.json", "trials.jsonl"]
    assert sorted(path.name for path in store.path.iterdir()) == names
    assert [path.name for path in store.path.parent.iterdir()] == ["tiny-1"]


def test_events_are_on_disk_once_append_returns(store):
    with store.lock():
        for event in (started(0), EpochDone(0, 1, {"val_accuracy": 0.5}, 1.0), Note("repaired")):
            stamped = store.append(event)
            lines = (store.path / "trials.jsonl").read_text().splitlines()
            assert event_from_json(json.loads(lines[-1])) == stamped
    record = Store.open(store.path).record()
    assert record.trials[0].metrics == {"val_accuracy": 0.5}
    assert abs(record.notes[0].time - time.time()) < 60
    assert record.trials[0].started == started(0)


def test_without_a_path_the_next_free_number_is_taken(tmp_path, experiment, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny-2").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-2" / "note.txt").write_text("mine")
    names = [Store.create(None, experiment, SPACE, ENVIRONMENT).name for _ in range(3)]
    assert names == ["tiny-1", "tiny-3", "tiny-4"]
    assert (tmp_path / "runs" / "tiny-2" / "note.txt").read_text() == "mine"


CREATE = """
import sys
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.store import Store
experiment = Experiment.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*(Store.create(None, experiment, {}, {}).name for _ in range(10)))
"""


def test_processes_that_start_together_get_different_folders(tmp_path, experiment_file):
    command = [sys.executable, "-c", CREATE, str(experiment_file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    names = " ".join(process.communicate()[0] for process in processes).split()
    assert sorted(names) == sorted(f"tiny-{n}" for n in range(1, 31))


def test_an_empty_folder_is_taken(tmp_path, experiment):
    (tmp_path / "here").mkdir()
    assert Store.open(Store.create(tmp_path / "here", experiment, SPACE, ENVIRONMENT).path).space == SPACE


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda p: (p.mkdir(), (p / "b.txt").touch()),
            "must be new or empty, but '{path}' holds 'b.txt': choose another",
        ),
        (lambda p: (p.mkdir(), (p / "experiment.json").touch()), "must be new or empty, but '{path}' holds a run"),
        (lambda p: p.touch(), "must be new or empty, but '{path}' holds 'x': choose another --run."),
    ],
)
def test_a_place_that_holds_something_is_refused_and_untouched(tmp_path, experiment, make, sentence):
    path = tmp_path / "x"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    for refuse in (Store.check_free, lambda path: Store.create(path, experiment, SPACE, ENVIRONMENT)):
        with pytest.raises(RecordError) as caught:
            refuse(path)
        assert sentence.format(path=path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_is_refused(tmp_path, experiment, monkeypatch):
    (tmp_path / "runs").touch()
    with pytest.raises(RecordError, match=r"Folder '.*runs' must take a new run, but: (File exists|Not a dir)"):
        Store.create(tmp_path / "runs" / "x", experiment, SPACE, ENVIRONMENT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match="Folder 'runs' must take a new run, but: "):
        Store.create(None, experiment, SPACE, ENVIRONMENT)
    for path in (None, "runs/x", "runs/deep/x"):
        with pytest.raises(RecordError, match=r"Folder '.*' must take a new run, but: Not a directory\.$"):
            Store.check_free(path)


def test_a_free_place_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for path in (None, "new", "empty", "deep/down/new", tmp_path / "new"):
        Store.check_free(path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_the_current_folder_is_not_taken_away(tmp_path, experiment, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RecordError, match="A run folder must not be the current folder"):
        Store.create(".", experiment, SPACE, ENVIRONMENT)
    assert sorted(tmp_path.glob("*")) == [tmp_path / "experiments", tmp_path / "here"]


def test_nothing_is_left_where_writing_fails(tmp_path, experiment):
    with pytest.raises(TypeError):
        Store.create(tmp_path / "runs" / "x", experiment, {"base": object()}, ENVIRONMENT)
    assert list((tmp_path / "runs").iterdir()) == []


def write(store, name, text):
    (store.path / name).write_text(text)


GOOD = json.dumps(event_to_json(Note("a"))) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("experiment.json", None, "A run folder must hold 'experiment.json', but '{path}' does not: it is no run or"),
        ("trials.jsonl", None, "A run folder must hold 'trials.jsonl', but '{path}' does not"),
        ("space.json", "{", "'{path}/space.json' must be a JSON file, but: Expecting property name"),
        ("space.json", "[1]", "'{path}/space.json' must hold a JSON object, but holds list [1]."),
        ("environment.json", "", "'{path}/environment.json' must be a JSON file, but: Expecting value"),
        ("experiment.json", "{}", "In run folder '{path}': 'experiment.json' needs the key 'name': add it."),
        ("experiment.json", '{"nam": 1}', "In run folder '{path}': "),
        ("space.json", "[" * 100_000, "'{path}/space.json' must be a JSON file, but: maximum recursion depth"),
        ("environment.json", '{"data": "x"}', "'data' in '{path}/environment.json' must be what a search writes"),
        ("environment.json", '{"data": {"mean": "x"}}', "'data' in '{path}/environment.json' must be what a search"),
        ("environment.json", '{"data": {"counts": 3}}', "'data' in '{path}/environment.json' must be what a search"),
        ("trials.jsonl", "[" * 100_000 + "\n", "Line 1 of '{path}/trials.jsonl' is damaged: an event must be a JSON"),
        ("trials.jsonl", "{\n", "Line 1 of '{path}/trials.jsonl' is damaged: an event must be a JSON object, but:"),
        ("trials.jsonl", GOOD + "[]\n", "Line 2 of '{path}/trials.jsonl' is damaged: an event must be a JSON object"),
        ("trials.jsonl", GOOD + "\n", "Line 2 of '{path}/trials.jsonl' is damaged: an event must be a JSON object"),
        ("trials.jsonl", GOOD + "{}\n", "Line 2 of '{path}/trials.jsonl' is damaged: An event must have schema 1"),
        (
            "trials.jsonl",
            GOOD + json.dumps(event_to_json(Ended(3, "complete", 1, {}, 1.0))) + "\n",
            "Line 2 of '{path}/trials.jsonl' is damaged: Trial 3 must start before its other events",
        ),
        ("trials.jsonl", "\x00\x00" + GOOD, "Line 1 of '{path}/trials.jsonl' is damaged: an event must be"),
    ],
)
def test_a_damaged_run_folder_is_refused_by_one_sentence(store, name, text, sentence):
    (store.path / name).unlink() if text is None else (store.path / name).write_text(text)
    with pytest.raises(RecordError) as caught:
        Store.open(store.path).record()
    assert str(caught.value).startswith(sentence.format(path=store.path))
    assert "\n" not in str(caught.value)


def test_an_absent_run_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"No run folder '.*/none': check the path"):
        Store.open(tmp_path / "none")


def test_bytes_that_are_no_text_are_damage_too(store):
    (store.path / "trials.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecordError, match="Line 1 of"):
        store.record()


def test_a_torn_tail_is_no_event_and_the_next_driver_cuts_it_off(store):
    with store.lock():
        store.append(started(0))
    whole = (store.path / "trials.jsonl").read_bytes()
    for tail in (whole[:17], whole[:-1]):
        (store.path / "trials.jsonl").write_bytes(whole + tail)
        assert set(store.record().trials) == {0}
        assert (store.path / "trials.jsonl").read_bytes() == whole + tail
        with store.lock():
            assert (store.path / "trials.jsonl").read_bytes() == whole
    with store.lock():
        store.append(started(1))
    assert set(store.record().trials) == {0, 1}


WRITER = """
import sys, itertools
from bsconv_nas.search.record import Note
from bsconv_nas.search.store import Store
store = Store.open(sys.argv[1])
with store.lock():
    for n in itertools.count():
        store.append(Note("n", {"n": n, "text": "x" * 50_000}))
        print(n, flush=True)
"""


def test_a_driver_killed_at_any_moment_loses_no_event_that_it_had_appended(store):
    count = 0
    for pause in (0.0, 0.053):
        process = python(WRITER, store.path)
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        said = 1 + len(process.communicate()[0].split())
        notes = store.record().notes[count:]
        assert [note.detail["n"] for note in notes] == list(range(len(notes)))
        assert said <= len(notes) <= said + 1
        count += len(notes)
    with store.lock():
        store.append(Note("after"))
    assert store.record().notes[-1].what == "after"
    assert len(store.record().notes) == count + 1


def test_a_second_driver_is_refused_while_readers_are_welcome(store):
    process = python(WRITER, store.path)
    process.stdout.readline()
    with pytest.raises(RecordError) as caught, Store.open(store.path).lock():
        pass
    sentence = f"A run must have one driver, but another process is driving {str(store.path)!r}: wait for its end."
    assert str(caught.value) == sentence
    assert store.record().notes
    process.kill()
    process.communicate()
    with store.lock():
        store.append(Note("mine now"))


def test_two_stores_of_one_process_are_two_drivers(store):
    with store.lock(), pytest.raises(RecordError, match="one driver"), Store.open(store.path).lock():
        pass
    with Store.open(store.path).lock():
        pass


def test_reading_does_not_give_the_lock_away(store):
    with store.lock():
        store.record()
        with pytest.raises(RecordError, match="one driver"), Store.open(store.path).lock():
            pass


def test_the_lock_ends_with_an_error_and_errors_pass_through(store):
    with pytest.raises(BlockingIOError, match="mine"), store.lock():
        raise BlockingIOError("mine")
    with store.lock():
        store.append(Note("again"))


FULL = """
import resource, signal, sys
from bsconv_nas.errors import RecordError
from bsconv_nas.search.record import Note
from bsconv_nas.search.store import Store
store = Store.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
with store.lock():
    store.append(Note("fits"))
    try:
        store.append(Note("x" * 9000))
    except RecordError as error:
        print(error)
    store.append(Note("fits too"))
"""


def test_a_write_that_fails_half_way_leaves_no_torn_line(store):
    out, err = python(FULL, store.path).communicate()
    assert out.startswith(f"Run folder {str(store.path)!r} must be writable, but: "), err
    assert [note.what for note in store.record().notes] == ["fits", "fits too"]


def test_a_record_that_cannot_be_written_is_not_driven(store):
    (store.path / "trials.jsonl").unlink()
    (store.path / "trials.jsonl").mkdir()
    with pytest.raises(RecordError, match=r"trials\.jsonl' must be writable, but: Is a directory"), store.lock():
        pass


def test_checkpoints_of_the_front_and_of_running_and_retrained_trials_stay(store, experiment):
    ends = {0: ("complete", 0.5), 1: ("complete", 0.4), 2: ("stopped", 0.9), 3: ("failed", 0.9), 5: ("complete", 0.1)}
    with store.lock():
        for number in range(6):
            store.append(started(number, "retrain" if number == 5 else "search"))
            save_checkpoint(store.checkpoint(number), {"a": torch.ones(1)}, {"epoch": 1})
            if number in ends:
                store.append(Ended(number, ends[number][0], 1, {"val_accuracy": ends[number][1]}, 1.0))
    keep = kept(store.record(), experiment)
    assert keep == {0, 4, 5}
    store.prune_checkpoints(keep)
    assert [n for n in range(6) if has_checkpoint(store.checkpoint(n))] == [0, 4, 5]


def test_no_absolute_path_and_no_host_is_recorded(store, tmp_path):
    text = "".join(path.read_text() for path in store.path.iterdir())
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text
