import math
import subprocess
import sys
from pathlib import Path

import pytest

from bsconv_nas.errors import ExperimentError
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Ended, EpochDone, Event, Kind, Objective, Record, Started
from bsconv_nas.search.scheduler import (
    LIKE_COST,
    Asha,
    Decision,
    Entry,
    ParetoAsha,
    Scheduler,
    compared,
    reached,
    replay,
    scheduler,
)

ACCURACY, MACS = Objective("val_accuracy", "max"), Objective("macs", "min")
TRADE_OFF = (ACCURACY, MACS)
STOPPING = ("asha", "hyperband", "median", "pareto_asha")


def decide(made: Scheduler, number: int, epoch: int, value: float, cost: float = math.nan) -> Decision:
    return made.decide(Entry(number, epoch, value, cost))


def filled(made: Asha, *points: tuple[float, float]) -> Asha:
    """Return a scheduler with (value, cost) entries at its first rung."""
    for number, (value, cost) in enumerate(points):
        made.observe(Entry(number, made.rungs[0], value, cost))
    return made


def test_rungs_lie_below_the_last_epoch() -> None:
    assert Asha(max_epochs=30, eta=3, min_epochs=1).rungs == (1, 3, 9, 27)
    assert Asha(max_epochs=27, eta=3, min_epochs=1).rungs == (1, 3, 9)
    assert Asha(max_epochs=16, eta=2, min_epochs=4).rungs == (4, 8)
    assert Asha(max_epochs=1).rungs == ()


ARRIVALS: list[tuple[float, Decision]] = [
    # By entries so far: one and two stop nobody; of three to five the best goes on; of six the best two.
    (0.5, "continue"),
    (0.1, "continue"),
    (0.4, "stop"),
    (0.6, "continue"),
    (0.5, "stop"),
    (0.55, "continue"),
]


@pytest.mark.parametrize("kind", [Asha, ParetoAsha])
def test_decisions_of_plain_asha_by_hand(kind: type[Asha]) -> None:
    asha = kind(max_epochs=9, eta=3, min_epochs=1)
    answers = [decide(asha, number, 1, value) for number, (value, _) in enumerate(ARRIVALS)]
    assert answers == [answer for _, answer in ARRIVALS]


def test_ties_go_on_together() -> None:
    asha = Asha(max_epochs=9, eta=3)
    assert [decide(asha, number, 1, 0.5) for number in range(6)] == ["continue"] * 6


def test_other_epochs_compare_nobody() -> None:
    asha = Asha(max_epochs=9, eta=3)
    for number in range(9):
        asha.observe(Entry(number, 3, 1.0))
    assert decide(asha, 9, 2, 0.0) == "continue"
    assert decide(asha, 9, 3, 0.0) == "stop"
    assert decide(asha, 9, 9, 0.0) == "continue"


def test_rungs_are_apart() -> None:
    asha = filled(Asha(max_epochs=9, eta=2), *[(1.0, 0.0)] * 4)
    assert decide(asha, 5, 2, 0.0) == "continue"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("cost", [math.nan, 10.0])
def test_nan_is_worst_also_where_it_is_the_cheapest(value: float, cost: float) -> None:
    asha = filled(ParetoAsha(max_epochs=9, eta=2, min_epochs=1), *[(0.1, 12.0)] * 4)
    assert decide(asha, 4, 1, value, cost) == "stop"
    assert decide(asha, 5, 1, 0.2, cost) == "continue"


def test_an_epoch_that_is_trained_again_counts_once() -> None:
    asha = Asha(max_epochs=9, eta=3)
    for _ in range(5):
        decide(asha, 0, 1, 0.5)
    assert decide(asha, 1, 1, 0.1) == "continue"


def test_a_trial_that_begins_again_leaves_the_rungs_ahead() -> None:
    """As the record forgets the epochs behind the one that is trained again."""
    asha = Asha(max_epochs=9, eta=2)
    asha.observe(Entry(0, 3, 0.9))
    asha.observe(Entry(0, 4, 0.9))
    asha.observe(Entry(1, 4, 0.9))
    asha.observe(Entry(0, 1, 0.9))
    assert decide(asha, 2, 4, 0.1) == "stop"
    asha.observe(Entry(1, 1, 0.9))
    assert decide(asha, 2, 4, 0.1) == "continue"


SMALL_AND_LARGE = [(0.30, 10.0), (0.20, 10.0), (0.25, 10.0), (0.80, 14.0), (0.82, 14.0), (0.85, 14.0)]


def test_a_network_of_the_front_that_plain_asha_stops() -> None:
    """Cheap networks are less accurate than all costly ones; the best of them is on the front all the same."""
    cheap = (0.35, 10.0)
    assert decide(filled(Asha(9, eta=3), *SMALL_AND_LARGE), 6, 1, *cheap) == "stop"
    assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *SMALL_AND_LARGE), 6, 1, *cheap) == "continue"


def test_what_is_beaten_at_less_cost_and_behind_at_like_cost_stops() -> None:
    for value, cost in ((0.22, 10.0), (0.81, 14.0), (0.29, 13.0)):
        assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *SMALL_AND_LARGE), 6, 1, value, cost) == "stop"


# Eta is 2: four entries at least. Behind the cheap good one, which beats all that follow, nobody is on the front.
BEATEN = (0.9, 0.0)


def test_the_best_of_like_cost_go_on_though_they_are_beaten() -> None:
    like = [(0.5, 5.0), (0.4, 5.0), (0.3, 5.0)]
    assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *like), 9, 1, 0.45, 5.0) == "continue"  # 2nd of 4
    assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *like), 9, 1, 0.35, 5.0) == "stop"  # 3rd of 4


@pytest.mark.parametrize(("away", "answer"), [(0.999 * LIKE_COST, "stop"), (1.001 * LIKE_COST, "continue")])
@pytest.mark.parametrize("side", [-1, 1])
def test_like_cost_ends_at_035_octaves(away: float, side: int, answer: Decision) -> None:
    # Better ones within reach make the third of six out of the second of four.
    assert LIKE_COST == 0.35
    like = [(0.5, 5.0), (0.4, 5.0), (0.3, 5.0), (0.6, 5.0 + side * away), (0.6, 5.0 + side * away)]
    assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *like), 9, 1, 0.45, 5.0) == answer


def test_where_few_are_of_like_cost_the_nearest_are_compared() -> None:
    # Two of like cost; the fourth nearest is one octave away, and the better ones beyond it count no more.
    near = [(0.4, 5.1), (0.5, 5.9), (0.3, 4.2), (0.6, 6.5), (0.6, 3.5), (0.6, 6.6), (0.6, 7.0)]
    assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *near), 9, 1, 0.45, 5.0) == "continue"
    assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *near), 9, 1, 0.35, 5.0) == "stop"


def test_equally_near_entries_are_compared_together_whoever_came_first() -> None:
    near = [(0.4, 5.0), (0.3, 5.0), (0.6, 6.0), (0.6, 4.0)]
    for points in (near, near[::-1]):
        assert decide(filled(ParetoAsha(9, eta=2, min_epochs=1), BEATEN, *points), 9, 1, 0.45, 5.0) == "stop"


def test_fewer_than_two_eta_entries_stop_nobody() -> None:
    # The last one counts itself.
    assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *[BEATEN] * 4), 9, 1, 0.1, 5.0) == "continue"
    assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *[BEATEN] * 5), 9, 1, 0.1, 5.0) == "stop"


def test_of_one_cost_only_the_better_one_is_on_the_front() -> None:
    crowd = [(0.5, 5.0), *[(0.9, 5.2)] * 8]
    for value, answer in ((0.49, "stop"), (0.5, "continue"), (0.51, "continue")):
        assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *crowd), 9, 1, value, 5.0) == answer
    assert decide(filled(ParetoAsha(9, eta=3, min_epochs=1), *crowd), 9, 1, 0.1, 4.99) == "continue"


def events_of(*kinds: Kind, epochs: int = 3) -> list[Event]:
    events: list[Event] = []
    for number, kind in enumerate(kinds):
        events.append(Started(number, kind, f"k{number}", (0,), {"macs": 2 ** (10 + number), "params": 7}, 0))
        for epoch in range(1, epochs + 1):
            metrics = {"val_accuracy": 0.1 * number + 0.01 * epoch, "val_loss": 1 - 0.1 * number}
            events.append(EpochDone(number, epoch, metrics, 1.0))
        events.append(Ended(number, "complete", epochs, {}, 1.0))
    return events


@pytest.mark.parametrize("name", STOPPING)
def test_a_record_brings_the_rungs_back(name: str) -> None:
    record = Record(events_of("baseline", *["search"] * 7, "retrain"))
    rebuilt, whole = (scheduler(name, {"min_epochs": 1}, 9) for _ in range(2))
    replay(rebuilt, record, TRADE_OFF)
    for number in range(8):
        for epoch in (1, 2, 3):
            whole.observe(Entry(number, epoch, 0.1 * number + 0.01 * epoch, 10 + number))
    tries = [Entry(10 + 7 * epoch + i, epoch, 0.15 * i, 14) for i in range(6) for epoch in (1, 3)]
    answers = [rebuilt.decide(entry) for entry in tries]
    assert answers == [whole.decide(entry) for entry in tries]
    assert set(answers) == {"continue", "stop"}


def test_where_nothing_is_told_the_first_rung_of_pareto_asha_is_at_half_of_the_training() -> None:
    rungs = {epochs: ParetoAsha(epochs).rungs for epochs in (2, 3, 6, 7, 200)}
    assert rungs == {2: (1,), 3: (2,), 6: (3,), 7: (4,), 200: (100,)}
    with pytest.raises(ExperimentError, match=r"got min_epochs = 1 and recipe\.epochs = 1"):
        scheduler("pareto_asha", {}, 1)


def test_what_the_driver_may_not_have_settled_is_left_to_it() -> None:
    events = [event for event in events_of(*["search"] * 3) if not isinstance(event, Ended)]
    asha = Asha(max_epochs=9, eta=2)
    replay(asha, Record(events), TRADE_OFF)
    assert decide(asha, 9, 3, 0.0) == "continue"
    assert decide(asha, 9, 1, 0.0) == "stop"


@pytest.mark.parametrize(
    ("objectives", "value", "cost"),
    [
        ((ACCURACY,), 0.32, math.nan),
        (TRADE_OFF, 0.32, 13.0),
        ((MACS, ACCURACY), 0.32, 13.0),
        ((Objective("val_loss", "min"), ACCURACY, Objective("params", "min"), MACS), -0.7, math.log2(7)),
        ((Objective("macs", "max"), ACCURACY), 0.32, -13.0),
        ((MACS,), 0.32, 13.0),
        ((Objective("iou", "max"), MACS), -math.inf, 13.0),
    ],
)
def test_the_first_measured_objective_is_compared_at_the_first_cost(
    objectives: tuple[Objective, ...], value: float, cost: float
) -> None:
    trial = Record(events_of(*["search"] * 4)).trials[3]
    found = reached(trial, 2, objectives)
    assert (found.number, found.epoch) == (3, 2)
    assert found.value == pytest.approx(value)
    assert found.cost == pytest.approx(cost, nan_ok=True)


def test_a_cost_is_what_is_known_before_the_first_epoch() -> None:
    latency = Objective("latency_ms", "min")
    assert compared((latency, ACCURACY), {"latency_ms": 3}) == (ACCURACY, latency)
    assert compared((latency,), {"macs": 3}) == (latency, None)


def test_without_a_scheduler_everything_goes_on() -> None:
    always = scheduler("none", {}, 9)
    assert {decide(always, number, 1, -number) for number in range(9)} == {"continue"}


def test_the_median_rule_of_ray_by_hand() -> None:
    # Running means after two epochs: 0.35, 0.45, 0.55; the median is 0.45.
    for value, answer in ((0.44, "stop"), (0.46, "continue")):
        median = scheduler("median", {}, 9)
        for number, start in enumerate((0.3, 0.4, 0.5)):
            assert decide(median, number, 1, start) == "continue"
            assert decide(median, number, 2, start + 0.1) == "continue"
        assert decide(median, 3, 1, 0.42) == "continue"
        assert decide(median, 3, 2, value) == answer


def test_two_others_are_too_few_for_a_median() -> None:
    median = scheduler("median", {"min_epochs": 2}, 9)
    for number in range(2):
        median.observe(Entry(number, 2, 0.9))
    assert decide(median, 2, 2, 0.1) == "continue"
    assert decide(median, 3, 1, 0.1) == "continue"
    assert decide(median, 3, 2, 0.1) == "stop"


def test_the_brackets_of_ray_begin_later_and_later() -> None:
    """The worst of 60 trials at each epoch: one stops at its bracket's first rung."""
    hyperband = scheduler("hyperband", {"eta": 3, "brackets": 3}, 27)
    stopped: dict[int, int] = {}
    for number in range(60):
        for epoch in range(1, 27):
            if decide(hyperband, number, epoch, -number + 0.0) == "stop":
                stopped[number] = epoch
                break
    assert set(stopped.values()) == {1, 3, 9}
    assert len(stopped) >= 55


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_schedulers_of_ray_stop_what_is_not_finite_and_forget_it(name: str) -> None:
    made = scheduler(name, {"brackets": 1} if name == "hyperband" else {}, 9)
    for number in range(4):
        made.observe(Entry(number, 1, 0.5))
    for number in range(4, 14):
        assert decide(made, number, 1, math.nan) == "stop"
    assert decide(made, 14, 1, 0.4) == "stop"
    assert decide(made, 15, 1, 0.6) == "continue"


def test_an_epoch_that_is_trained_again_leaves_rays_median_as_it_was() -> None:
    median = scheduler("median", {}, 9)
    for number in range(3):
        for epoch in (1, 2):
            assert decide(median, number, epoch, 0.5) == "continue"
    assert decide(median, 0, 1, 0.1) == "continue"
    assert decide(median, 3, 2, 0.4) == "stop"


def test_rays_draws_leave_numpys_generator_alone() -> None:
    code = (
        "import numpy as np; from bsconv_nas.search.scheduler import Entry, scheduler\n"
        "np.random.seed(5); first = np.random.random(); np.random.seed(5)\n"
        "scheduler('hyperband', {}, 9).decide(Entry(0, 1, 0.5)); assert np.random.random() == first"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("ashaa", {}, "Unknown search.scheduler 'ashaa': valid are 'asha', .*'pareto_asha'; did you mean 'asha'"),
        ("asha", {"etta": 3}, "Unknown parameter 'etta' of search.scheduler 'asha': valid are 'eta', 'min_epochs'"),
        ("none", {"eta": 3}, "Unknown parameter 'eta' of search.scheduler 'none': it takes none"),
        (
            "pareto_asha",
            {"eta": 1},
            "'eta' of search.scheduler 'pareto_asha' must be a whole number of at least 2, but",
        ),
        ("median", {"min_samples": 0}, "'min_samples' of search.scheduler 'median' must be .* at least 1, but got 0"),
        ("hyperband", {"brackets": -1}, "'brackets' of search.scheduler 'hyperband' must be .* at least 1, but got -1"),
        (
            "asha",
            {"min_epochs": 9},
            "'asha' needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs = 9 and "
            'recipe.epochs = 9: move one of them or set search.scheduler = "none".',
        ),
        ("asha", {"eta": 2.5}, "must be a whole number of at least 2, but got 2.5"),
        ("asha", {"eta": True}, "must be a whole number of at least 2, but got True"),
    ],
)
def test_wrong_schedulers_are_refused(name: str, params: dict[str, float], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        scheduler(name, params, 9)


@pytest.mark.parametrize("name", STOPPING)
def test_a_scheduler_that_compares_nobody_is_refused(name: str) -> None:
    with pytest.raises(ExperimentError, match=f"'{name}' needs min_epochs below recipe.epochs.*min_epochs = 1 and"):
        scheduler(name, {}, 1)


@pytest.mark.parametrize("name", STOPPING)
def test_a_run_that_was_recorded_without_rungs_goes_on(name: str) -> None:
    made = scheduler(name, {"min_epochs": 5}, 3, idle=True)
    assert {decide(made, number, epoch, -number) for number in range(9) for epoch in (1, 2)} == {"continue"}


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_shipped_experiments_compare_or_say_why_not(file: Path) -> None:
    experiment = Experiment.load(file)
    name, params = experiment.search.scheduler.name, experiment.search.scheduler.params
    scheduler(name, params, experiment.recipe.epochs)
    if name != "none":
        assert name == "pareto_asha", "with a cost among the objectives, cheap networks are spared"
        with pytest.raises(ExperimentError, match=r"needs min_epochs below recipe.epochs.*and recipe.epochs = 1: "):
            scheduler(name, params, 1)
