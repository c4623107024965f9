import numpy as np
import pandas as pd
import pytest

from bsconv_nas.errors import RecordError
from bsconv_nas.search.pick import knee, pick
from bsconv_nas.search.record import Objective


def frame(*rows: tuple[str, str, str, float, int]) -> pd.DataFrame:
    trials = pd.DataFrame(rows, columns=["key", "kind", "state", "val_accuracy", "macs"])
    return trials.assign(number=range(10, 10 + len(trials)))


TRIALS = frame(
    ("ab12", "baseline", "complete", 0.70, 100),
    ("ab34", "search", "complete", 0.90, 300),
    ("ef78", "search", "complete", 0.92, 900),  # ties with the next at a higher cost: off the front
    ("cd56", "search", "complete", 0.92, 500),
    ("0199", "search", "complete", 0.94, 1000),
    ("aa00", "search", "failed", float("nan"), 50),
    ("ab34", "retrain", "complete", 0.99, 300),
)
FRONT = TRIALS.iloc[[0, 1, 3, 4]]


@pytest.mark.parametrize(
    ("how", "number"), [("best", 14), ("knee", 11), ("cd56", 13), ("cd", 13), ("ab3", 11), ("ef", 12), ("01", 14)]
)
def test_pick(how: str, number: int) -> None:
    assert pick(TRIALS, FRONT, how) == number


def test_best_is_the_cheapest_of_equally_accurate() -> None:
    without = TRIALS[TRIALS["key"] != "0199"]
    assert pick(without, FRONT.iloc[:3], "best") == 13


def test_best_and_knee_follow_what_is_measured() -> None:
    losses = FRONT.assign(loss=1 - FRONT["val_accuracy"], val_accuracy=float("nan"))
    for how, number in (("best", 14), ("knee", 11)):
        assert pick(TRIALS, losses, how, measured=Objective("loss", "min")) == number


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("ab", "but 'ab' fits 2: ab12, ab34."),
        ("", "but '' fits 5: 0199, ab12, ab34, cd56, ef78."),
        ("aa", "but 'aa' fits none; valid are '0199', 'ab12', 'ab34', 'cd56'."),
        ("ab13", "but 'ab13' fits none; valid are '0199', 'ab12', 'ab34', 'cd56'; did you mean 'ab34'."),
    ],
)
def test_a_prefix_must_fit_one_network(how: str, sentence: str) -> None:
    with pytest.raises(RecordError) as refusal:
        pick(TRIALS, FRONT, how)
    assert str(refusal.value) == f"A pick must be 'best', 'knee' or the first digits of one key, {sentence}"


def test_nothing_to_pick_from() -> None:
    with pytest.raises(RecordError, match="once a trial is complete, but this run has none: search on"):
        pick(TRIALS.iloc[5:6], FRONT.iloc[:0], "best")


@pytest.mark.parametrize(
    ("cost", "accuracy", "place"),
    [
        ([1, 2, 10], [0.5, 0.9, 0.92], 1),
        ([10, 1, 2], [0.92, 0.5, 0.9], 2),  # in any order
        ([0, 4, 5, 10], [0.0, 0.6, 0.8, 1.0], 2),  # distances to the chord: 0, 0.2, 0.3, 0
        ([0, 1], [0.1, 0.9], 0),  # a chord alone: none is off it
        ([5], [0.5], 0),
        ([1, 2, 3], [0.5, 0.5, 0.5], 0),
    ],
)
def test_the_knee_is_farthest_above_the_chord(cost: list[float], accuracy: list[float], place: int) -> None:
    assert knee(np.array(cost, float), np.array(accuracy)) == place


def test_the_knee_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(0)
    cost, accuracy = np.sort(rng.random(20)), np.sort(rng.random(20))
    assert knee(cost, accuracy) == knee(1e6 * cost + 3e4, accuracy / 100)
