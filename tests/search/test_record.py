import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsconv_nas.errors import RecordError
from bsconv_nas.search.record import (
    TRIAL_COLUMNS,
    Ended,
    EpochDone,
    Note,
    Objective,
    Record,
    Started,
    event_from_json,
    event_to_json,
    front,
)

numbers = st.integers(0, 10**6)
texts = st.text(max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.dictionaries(texts, st.floats(allow_nan=False), max_size=3)
values = st.recursive(st.none() | st.booleans() | st.integers() | floats | texts, lambda v: st.lists(v, max_size=3))
details = st.dictionaries(texts, values, max_size=3)
kinds = st.sampled_from(["baseline", "search", "retrain"])
costs = st.dictionaries(texts, st.integers(), max_size=3)
indices = st.lists(numbers, max_size=4).map(tuple)
events = st.one_of(
    st.builds(Started, numbers, kinds, texts, indices, costs, numbers, details, floats),
    st.builds(EpochDone, numbers, st.integers(1, 99), metrics, floats, floats),
    st.builds(
        Ended, numbers, st.sampled_from(["complete", "stopped", "failed"]), numbers, metrics, floats, texts, floats
    ),
    st.builds(Note, texts, details, floats),
)

MACS = (Objective("val_accuracy", "max"), Objective("macs", "min"))


def started(number, kind="search", macs=100, indices=(0, 0), key=None):
    return Started(number, kind, key or f"key{number}", indices, {"macs": macs, "params": 1, "memory": 2}, number)


def finished(number, accuracy, macs, kind="search", state="complete"):
    return [started(number, kind, macs), Ended(number, state, 1, {"val_accuracy": accuracy}, 2.0)]


@given(events)
def test_events_survive_json(event):
    line = json.dumps(event_to_json(event), allow_nan=False)
    assert event_from_json(json.loads(line)) == event


def test_nan_is_written_as_standard_json_and_comes_back():
    line = json.dumps(event_to_json(Ended(1, "failed", 2, {"loss": math.nan, "gain": -math.inf}, 1.0)), allow_nan=False)
    back = event_from_json(json.loads(line))
    assert isinstance(back, Ended)
    assert math.isnan(back.metrics["loss"])
    assert back.metrics["gain"] == -math.inf


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "An event must have schema 1, but got 2: read it with the version it names."),
        (
            {"event": "end"},
            "Unknown event 'end': valid are 'ended', 'epoch', 'note', 'started'; did you mean 'ended'.",
        ),
        ({"epoch": 3}, "Unknown field 'epoch' of event 'ended': valid are 'cause', 'epochs', 'metrics', 'number', "),
        ({"state": "done"}, "Field 'state' of event 'ended' does not hold: input should be 'running', 'complete', "),
        ({"number": None}, "Field 'number' of event 'ended' does not hold: input should be a valid integer."),
        ({"metrics": {"a": "b"}}, "Field 'metrics.a' of event 'ended' does not hold: input should be a valid number"),
    ],
)
def test_a_malformed_event_is_refused_by_one_sentence(change, sentence):
    row = {**event_to_json(Ended(1, "complete", 2, {}, 1.0)), **change}
    with pytest.raises(RecordError) as caught:
        event_from_json(row)
    assert str(caught.value).startswith(sentence)


def test_a_missing_field_is_named():
    row = event_to_json(EpochDone(1, 2, {}, 1.0))
    del row["seconds"]
    with pytest.raises(RecordError, match="Field 'seconds' of event 'epoch' does not hold: field required"):
        event_from_json(row)


def test_epochs_add_up_and_one_that_is_trained_again_replaces_what_followed():
    record = Record([started(0)])
    for epoch, accuracy in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)]:
        record.add(EpochDone(0, epoch, {"val_accuracy": accuracy}, seconds=epoch * 1.0))
    trial = record.trials[0]
    assert (trial.state, trial.epochs, trial.metrics) == ("running", 2, {"val_accuracy": 0.25})
    assert [m["val_accuracy"] for m in trial.curve] == [0.1, 0.25]
    assert trial.curve_seconds == [1.0, 2.0]


def test_an_end_sets_the_last_epochs_figures():
    record = Record([started(0), EpochDone(0, 1, {"val_accuracy": 0.9}, 1.0)])
    record.add(Ended(0, "stopped", 1, {"val_accuracy": 0.8}, 1.5, "rung", time=7.0))
    trial = record.trials[0]
    assert (trial.state, trial.metrics, trial.seconds) == ("stopped", {"val_accuracy": 0.8}, 1.5)
    assert (trial.cause, trial.ended) == ("rung", 7.0)
    assert trial.values == {"macs": 100, "params": 1, "memory": 2, "val_accuracy": 0.8}


def test_an_event_of_a_trial_that_never_started_is_refused():
    with pytest.raises(RecordError, match="Trial 4 must start before its other events"):
        Record([EpochDone(4, 1, {}, 1.0)])


def test_keys_are_those_of_baselines_and_search_trials():
    assert Record([started(0, "baseline"), started(1), started(2, "retrain")]).keys == {"key0", "key1"}


def test_the_frame_has_the_contracts_columns_and_one_per_dimension(table):
    events = [*finished(1, 0.5, 200), started(0, "baseline", 50, (1, 2)), Note("repaired")]
    frame = Record(events).frame(table)
    assert list(frame.columns) == [*TRIAL_COLUMNS, "conv.a", "width.stage1"]
    assert frame["number"].tolist() == [0, 1]
    assert frame.loc[0, ["kind", "state", "conv.a", "width.stage1"]].tolist() == [
        "baseline",
        "running",
        "bsconv_u",
        1.0,
    ]
    assert math.isnan(frame.loc[0, "val_accuracy"])
    assert frame.loc[1, ["val_accuracy", "macs", "seconds"]].tolist() == [0.5, 200, 2.0]


def test_an_empty_record_has_an_empty_frame_and_front(table):
    frame = Record().frame(table)
    assert list(frame.columns) == [*TRIAL_COLUMNS, *table.names]
    assert len(front(frame, MACS)) == 0
    assert Record().front(MACS) == []


def test_the_front_holds_complete_search_trials_and_baselines_only(table):
    events = [
        *finished(0, 0.5, 100, "baseline"),
        *finished(1, 0.9, 50, state="stopped"),
        *finished(2, 0.9, 50, "retrain"),
        *finished(3, math.nan, 10),
        *finished(4, 0.6, 200),
        *finished(5, 0.55, 300),
        started(6),
    ]
    record = Record(events)
    assert record.front(MACS) == [0, 4]
    assert front(record.frame(table), MACS)["number"].tolist() == [0, 4]
    assert record.front(MACS[:1]) == [0, 4]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nobody_beats(points):
    events = [e for n, (accuracy, macs) in enumerate(points) for e in finished(n, accuracy / 5, macs)]

    def beaten(i):
        a, m = points[i]
        return any(b >= a and n <= m and (b, n) != (a, m) for b, n in points)

    kept = Record(events).front(MACS)
    unbeaten = [i for i in range(len(points)) if not beaten(i)]
    assert {points[i] for i in kept} == {points[i] for i in unbeaten}
    assert set(kept) <= set(unbeaten)


def test_a_front_of_three_objectives_keeps_what_two_would_drop():
    goals = (*MACS, Objective("params", "min"))
    costs = [{"macs": 1, "params": 9, "memory": 0}, {"macs": 2, "params": 1, "memory": 0}]
    events = []
    for n, cost in enumerate(costs):
        events += [Started(n, "search", str(n), (), cost, 0), Ended(n, "complete", 1, {"val_accuracy": 0.5}, 1.0)]
    assert Record(events).front(MACS) == [0]
    assert Record(events).front(goals) == [0, 1]
    assert np.all([isinstance(n, int) for n in Record(events).front(goals)])
