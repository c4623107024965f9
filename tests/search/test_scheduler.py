import math
from pathlib import Path

import pytest

from bsconv_nas.errors import ExperimentError
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import EpochDone, Record, Started
from bsconv_nas.search.scheduler import Asha, replay, scheduler


def test_rungs_lie_below_the_last_epoch() -> None:
    assert Asha(max_epochs=30, eta=3, min_epochs=1).rungs == (1, 3, 9, 27)
    assert Asha(max_epochs=27, eta=3, min_epochs=1).rungs == (1, 3, 9)
    assert Asha(max_epochs=16, eta=2, min_epochs=4).rungs == (4, 8)
    assert Asha(max_epochs=1).rungs == ()


def test_decisions_at_a_rung_by_hand() -> None:
    asha = Asha(max_epochs=9, eta=3)
    # By entries so far: one and two stop nobody; of three to five the best goes on; of six the best two.
    arrivals = [
        (0.5, "continue"),
        (0.1, "continue"),
        (0.4, "stop"),
        (0.6, "continue"),
        (0.5, "stop"),
        (0.55, "continue"),
    ]
    assert [asha.decide(number, 1, value) for number, (value, _) in enumerate(arrivals)] == [d for _, d in arrivals]


def test_ties_go_on_together() -> None:
    asha = Asha(max_epochs=9, eta=3)
    assert [asha.decide(number, 1, 0.5) for number in range(6)] == ["continue"] * 6


def test_other_epochs_compare_nobody() -> None:
    asha = Asha(max_epochs=9, eta=3)
    for number in range(9):
        asha.observe(number, 3, 1.0)
    assert asha.decide(9, 2, 0.0) == "continue"
    assert asha.decide(9, 3, 0.0) == "stop"
    assert asha.decide(9, 9, 0.0) == "continue"


def test_rungs_are_apart() -> None:
    asha = Asha(max_epochs=9, eta=2)
    for number in range(4):
        asha.observe(number, 1, 1.0)
    assert asha.decide(5, 2, 0.0) == "continue"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nan_is_worst(value: float) -> None:
    asha = Asha(max_epochs=9, eta=2)
    asha.observe(0, 1, 0.1)
    assert asha.decide(1, 1, value) == "stop"
    assert asha.decide(2, 1, 0.2) == "continue"


def test_an_epoch_that_is_trained_again_counts_once() -> None:
    asha = Asha(max_epochs=9, eta=3)
    for _ in range(5):
        asha.decide(0, 1, 0.5)
    assert asha.decide(1, 1, 0.1) == "continue"


def test_a_record_brings_the_rungs_back() -> None:
    events = []
    for number, kind in enumerate(["baseline", "search", "search", "retrain"]):
        events.append(Started(number, kind, f"k{number}", (0,), {}, 0))  # type: ignore[arg-type]
        events += [EpochDone(number, epoch, {"val_accuracy": 0.1 * number + 0.01 * epoch}, 1.0) for epoch in (1, 2, 3)]
    rebuilt, whole = Asha(max_epochs=9), Asha(max_epochs=9)
    replay(rebuilt, Record(events), "val_accuracy")
    for number in range(3):
        for epoch in (1, 3):
            whole.observe(number, epoch, 0.1 * number + 0.01 * epoch)
    for epoch, value in ((1, 0.15), (1, 0.25), (3, 0.15), (3, 0.25)):
        assert rebuilt.decide(10 + epoch, epoch, value) == whole.decide(10 + epoch, epoch, value)
    assert rebuilt.decide(20, 1, 0.15) == "stop"


def test_without_a_scheduler_everything_goes_on() -> None:
    always = scheduler("none", {}, 9)
    assert {always.decide(number, 1, -number) for number in range(9)} == {"continue"}


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("ashaa", {}, "Unknown search.scheduler 'ashaa': valid are 'asha', 'none'; did you mean 'asha'"),
        ("asha", {"etta": 3}, "Unknown parameter 'etta' of search.scheduler 'asha': valid are 'eta', 'min_epochs'"),
        ("none", {"eta": 3}, "Unknown parameter 'eta' of search.scheduler 'none': it takes none"),
        ("asha", {"eta": 1}, "eta of at least 2 and min_epochs of at least 1, but got eta = 1"),
        (
            "asha",
            {"min_epochs": 9},
            "needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs = 9 and recipe.epochs = 9: "
            'move one of them or set search.scheduler = "none".',
        ),
        ("asha", {"eta": 2.5}, "must be a whole number, but got 2.5"),
    ],
)
def test_wrong_schedulers_are_refused(name: str, params: dict[str, float], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        scheduler(name, params, 9)


def test_a_run_that_was_recorded_without_rungs_goes_on() -> None:
    assert scheduler("asha", {}, 1, idle=True).decide(0, 1, 0.5) == "continue"


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_shipped_experiments_compare_or_say_why_not(file: Path) -> None:
    experiment = Experiment.load(file)
    name, params = experiment.search.scheduler.name, experiment.search.scheduler.params
    scheduler(name, params, experiment.recipe.epochs)
    if name == "asha":
        with pytest.raises(ExperimentError, match=r"needs min_epochs below recipe.epochs.*and recipe.epochs = 1: "):
            scheduler(name, params, 1)
