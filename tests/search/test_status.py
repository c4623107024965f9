import csv
import io
import json
import math

import pytest

from bsconv_nas.search.record import Ended, EpochDone, Note, Record, Started, front
from bsconv_nas.search.status import front_text, status


def trial(number, kind, accuracy, macs, seconds, state="complete"):
    start = Started(number, kind, f"key{number}", (0, 1), {"macs": macs}, 0, time=100.0 + number)
    metrics = {"val_accuracy": accuracy}
    if state == "running":
        return [start, EpochDone(number, 1, metrics, seconds, 150.0)]
    return [start, Ended(number, state, 3, metrics, seconds, time=200.0 + number)]


EVENTS = [
    *trial(0, "baseline", 0.5, 10, 20.0),
    *trial(1, "search", 0.7, 30, 40.0),
    *trial(2, "search", 0.9, 20, 30.0, "stopped"),
    *trial(3, "search", math.nan, 5, 30.0, "failed"),
    *trial(4, "search", 0.6, 40, 10.0, "running"),
    *trial(5, "retrain", 0.95, 30, 100.0),
]


def test_the_numbers_of_a_run_add_up(experiment):
    found = status(Record(EVENTS), experiment)
    assert found.counts == {
        ("baseline", "complete"): 1,
        ("search", "complete"): 1,
        ("search", "stopped"): 1,
        ("search", "failed"): 1,
        ("search", "running"): 1,
        ("retrain", "complete"): 1,
    }
    assert (found.total("complete"), found.total("running")) == (2, 1)
    assert found.best is not None
    assert (found.best.number, found.front, found.finished) == (1, (0, 1), False)
    assert found.device_seconds == 130.0  # without the retraining's


def at(time, what):
    return Note(what, {"baselines": 0, "trials": 1} if what == "planned" else {}, time=time)


def epoch(time):
    return EpochDone(0, 1, {}, 1.0, time)


BEGUN = [at(10.0, "planned"), Started(0, "search", "key0", (0, 1), {}, 0, time=12.0), epoch(15.0)]


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([], 0.0),
        (BEGUN[:1], 0.0),
        (BEGUN, 5.0),  # going on, or killed
        ([*BEGUN, at(20.0, "finished")], 10.0),
        ([*BEGUN, at(20.0, "finished"), at(25.0, "fvcore")], 10.0),
        ([*BEGUN, at(20.0, "interrupted"), at(100.0, "planned"), epoch(103.0)], 13.0),
        ([*BEGUN, at(100.0, "planned"), epoch(103.0)], 8.0),  # killed, and gone on with
        ([*BEGUN, at(20.0, "finished"), at(30.0, "retraining"), epoch(50.0), at(60.0, "retrained")], 10.0),
        ([*BEGUN, at(30.0, "retraining"), at(60.0, "interrupted"), epoch(70.0)], 5.0),
        ([*BEGUN, at(14.0, "finished")], 5.0),  # a clock set back
    ],
)
def test_wall_time_is_that_in_which_the_search_ran(experiment, events, seconds):
    assert status(Record(events), experiment).wall_seconds == seconds


def test_what_is_left_is_estimated_from_what_has_ended(experiment):
    plan = Note("planned", {"baselines": 3, "trials": 5})
    found = status(Record([Note("planned", {"baselines": 9, "trials": 9}), plan, *EVENTS]), experiment)
    assert (found.planned, found.eta_seconds) == (8, 30.0 * (8 - 4) - 10.0)
    workers = experiment.resources.model_copy(update={"workers": 2})
    halved = status(Record([plan, *EVENTS]), experiment.model_copy(update={"resources": workers}))
    assert halved.eta_seconds == (30.0 * 4 - 10.0) / 2
    assert status(Record(EVENTS), experiment).planned == experiment.search.trials


def test_nothing_is_left_of_a_finished_run(experiment):
    found = status(Record([*EVENTS, Note("finished")]), experiment)
    assert (found.finished, found.eta_seconds) == (True, 0.0)
    again = status(Record([*EVENTS, Note("finished"), Note("planned", {"baselines": 1, "trials": 9})]), experiment)
    assert (again.finished, again.eta_seconds) == (False, 30.0 * 6 - 10.0)


def test_a_run_that_has_just_begun_promises_nothing(experiment):
    found = status(Record(), experiment)
    assert (found.counts, found.best, found.front, found.eta_seconds) == ({}, None, (), None)
    assert (found.device_seconds, found.wall_seconds) == (0, 0)


def test_a_front_is_written_as_csv_and_json(experiment, table):
    rows = front(Record(EVENTS).frame(table), experiment.search.objectives)
    lines = list(csv.DictReader(io.StringIO(front_text(rows, "csv"))))
    assert [(line["number"], line["macs"], line["conv.a"]) for line in lines] == [
        ("0", "10", "regular"),
        ("1", "30", "regular"),
    ]
    objects = json.loads(front_text(rows, "json"))
    assert [(o["key"], o["val_accuracy"], o["width.stage1"]) for o in objects] == [
        ("key0", 0.5, 0.75),
        ("key1", 0.7, 0.75),
    ]
    assert objects[0]["params"] is None
    assert json.loads(front_text(rows[:0], "json")) == []


def test_of_equally_accurate_trials_the_cheapest_is_best(experiment):
    found = status(Record([*trial(0, "baseline", 0.7, 90, 1.0), *trial(1, "search", 0.7, 30, 1.0)]), experiment)
    assert found.best is not None
    assert found.best.number == 1
    assert found.best.number in found.front
