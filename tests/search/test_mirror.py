import math
from datetime import datetime

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bsconv_nas.search.mirror import Mirror
from bsconv_nas.search.record import Ended, EpochDone, Objective, Record, Started

ACCURACY = Objective("val_accuracy", "max")
GOALS = (ACCURACY, Objective("macs", "min"))


def trial(number, state, accuracy=0.5, kind="search", attributes=None):
    metrics = {} if accuracy is None else {"val_accuracy": accuracy, "val_loss": 1.0}
    start = Started(number, kind, f"key{number}", (1, 2), {"macs": 7}, 0, attributes or {}, time=1000.0)
    if state == "running":
        return [start]
    epochs = [EpochDone(number, 1, {"val_accuracy": 0.25}, 1.0), EpochDone(number, 2, metrics, 2.0)]
    return [start, *epochs, Ended(number, state, 2, metrics, 2.0, "NaN" if state == "failed" else "", 1060.0)]


def read(path, name="run-1"):
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(path))))


def test_optuna_reads_the_finished_trials_with_their_states(tmp_path, table):
    events = [
        *trial(0, "complete", kind="baseline"),
        *trial(1, "stopped"),
        *trial(2, "failed", None),
        *trial(3, "running"),
        *trial(4, "complete", attributes={"nsga2:generation": 1}),
        *trial(5, "complete", kind="retrain"),
        *trial(6, "complete", math.nan),
    ]
    Mirror(tmp_path / "optuna.log", "run-1", table, GOALS).update(Record(events))
    study = read(tmp_path / "optuna.log")
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL]
    assert [t.state for t in study.trials] == states
    assert [t.user_attrs["number"] for t in study.trials] == [0, 1, 2, 4, 6]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    first = study.trials[0]
    assert (first.values, first.params) == ([0.5, 7.0], {"conv.a": "bsconv_u", "width.stage1": 1.0})
    assert (first.user_attrs["key"], first.user_attrs["kind"]) == ("key0", "baseline")
    assert first.datetime_complete - first.datetime_start == datetime.fromtimestamp(60) - datetime.fromtimestamp(0)
    assert study.trials[2].user_attrs["cause"] == "NaN"
    assert study.trials[3].system_attrs == {"nsga2:generation": 1}
    assert {t.number for t in study.best_trials} == {0, 3}


def test_nothing_is_printed(tmp_path, table, capfd):
    Mirror(tmp_path / "optuna.log", "run-1", table, GOALS).update(Record(trial(0, "complete")))
    assert capfd.readouterr() == ("", "")


def test_one_objective_has_its_learning_curve(tmp_path, table):
    Mirror(tmp_path / "optuna.log", "run-1", table, [ACCURACY]).update(Record(trial(0, "complete")))
    study = read(tmp_path / "optuna.log")
    assert study.best_value == 0.5
    assert study.trials[0].intermediate_values == {1: 0.25, 2: 0.5}


def test_each_trial_is_added_once_when_it_has_ended(tmp_path, table):
    record = Record(trial(0, "running") + trial(1, "complete"))
    mirror = Mirror(tmp_path / "optuna.log", "run-1", table, GOALS)
    mirror.update(record)
    assert [t.user_attrs["number"] for t in read(tmp_path / "optuna.log").trials] == [1]
    record.add(trial(0, "complete")[-1])
    mirror.update(record)
    mirror.update(record)
    assert [t.user_attrs["number"] for t in read(tmp_path / "optuna.log").trials] == [1, 0]


@pytest.mark.parametrize("left", ["", '{"op_code": 0, "worker', "no journal\n"])
def test_it_is_rebuilt_over_whatever_was_left(tmp_path, table, left):
    (tmp_path / "optuna.log").write_text(left)
    (tmp_path / "optuna.log.lock").symlink_to(tmp_path / "optuna.log")
    Mirror(tmp_path / "optuna.log", "run-1", table, GOALS).update(Record(trial(0, "complete")))
    assert not (tmp_path / "optuna.log.lock").is_symlink()  # for which Optuna's readers would wait
    assert len(read(tmp_path / "optuna.log").trials) == 1
