import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from bsconv_nas.errors import RecordError
from bsconv_nas.search.calibration import Fidelity, Plan, calibration, fidelity, like_pairs, replayed
from bsconv_nas.search.record import Ended, EpochDone, Event, Objective, Record, Started
from bsconv_nas.search.scheduler import reached

OBJECTIVES = (Objective("val_accuracy", "max"), Objective("macs", "min"))


def record_of(curves: Sequence[Sequence[float]], macs: Sequence[int], seconds: Sequence[float] = ()) -> Record:
    """Return a record of complete trials; `seconds` are those of each epoch."""
    events: list[Event] = []
    for number, curve in enumerate(curves):
        events.append(Started(number, "search", f"k{number}", (0,), {"macs": macs[number]}, 0))
        times = itertools.accumulate(seconds or [1.0] * len(curve))
        for epoch, (value, time) in enumerate(zip(curve, times, strict=True), 1):
            events.append(EpochDone(number, epoch, {"val_accuracy": value}, time))
        events.append(Ended(number, "complete", len(curve), {"val_accuracy": curve[-1]}, time))
    return Record(events)


def everyone(n: int) -> np.ndarray:
    return ~np.eye(n, dtype=bool)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_tau_is_kendalls_where_all_are_alike() -> None:
    values = rng().random((12, 4))
    for epoch in range(1, 5):
        expected = stats.kendalltau(values[:, epoch - 1], values[:, -1]).statistic
        assert fidelity(epoch, values, everyone(12), rng()).tau == pytest.approx(expected)


def test_only_pairs_of_like_cost_count_by_hand() -> None:
    # Of like cost: 0, 1 and 2. After the first epoch 0 < 1 < 2, at the end 1 < 0 < 2: two pairs of three stand.
    values = np.array([[0.1, 0.2], [0.2, 0.1], [0.3, 0.3], [0.0, 0.9], [0.9, 0.0]])
    like = np.zeros((5, 5), dtype=bool)
    like[:3, :3] = everyone(3)
    assert fidelity(1, values, like, rng()).tau == pytest.approx((2 - 1) / 3)
    assert fidelity(1, values, everyone(5), rng()).tau < 0


def test_a_tie_counts_for_neither_order() -> None:
    values = np.array([[0.1, 0.1], [0.1, 0.2], [0.2, 0.3]])
    assert fidelity(1, values, everyone(3), rng()).tau == pytest.approx(2 / 3)


def test_the_interval_narrows_with_the_number_of_networks() -> None:
    widths = []
    for n in (10, 40, 160):
        final = rng().random(n)
        noisy = final + 0.2 * rng().permutation(final)
        found = fidelity(1, np.stack([noisy, final], 1), everyone(n), rng())
        assert found.low < found.tau < found.high
        widths.append(found.high - found.low)
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]
    perfect = fidelity(1, np.stack([final, final], 1), everyone(n), rng())
    assert (perfect.low, perfect.tau, perfect.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("tau", "low", "trusted"), [(0.6, 0.4, True), (0.59, 0.5, False), (0.9, 0.39, False), (1.0, 1.0, True)]
)
def test_an_epoch_is_trusted_by_tau_and_its_interval(tau: float, low: float, trusted: bool) -> None:
    assert Fidelity(1, tau, low, 1.0).trusted == trusted


def test_like_cost_is_within_ten_per_cent_of_the_macs() -> None:
    macs = np.array([1000, 1100, 1101, *[1000] * 9])
    like, tolerance = like_pairs(macs)
    assert tolerance == 0.1
    assert like[0, 1]
    assert not like[0, 2]
    assert like[1, 2]
    assert not like.diagonal().any()
    assert (like == like.T).all()


def test_like_cost_is_taken_wider_where_pairs_are_few() -> None:
    like, tolerance = like_pairs(np.array([round(1000 * 1.17**i) for i in range(40)]))
    assert tolerance == 0.2
    assert like.sum() == 2 * 39
    assert like_pairs(np.array([1000, 3000]))[1] == 0.5


# Five networks of one cost, two epochs of 1 and 3 seconds. The last of them is the worst and ends as the best.
LATE = [[0.5, 0.5], [0.4, 0.4], [0.3, 0.3], [0.2, 0.2], [0.1, 0.9]]


def test_a_replay_by_hand() -> None:
    """With eta 2 the first three stop nobody; the fourth stops if it is 3rd or 4th, the fifth from the 3rd place on."""
    record = record_of(LATE, [100] * 5, [1.0, 3.0])
    trials = list(record.trials.values())
    curves = [[reached(trial, epoch, OBJECTIVES) for epoch in (1, 2)] for trial in trials]
    plan = replayed(trials, curves, {4}, 2, 1, 0)
    stopped = 1 / 2 + 3 / 5
    assert plan.rungs == (1,)
    assert plan.epochs == pytest.approx(1 - stopped / 10, abs=0.02)
    assert plan.seconds == pytest.approx(1 - 3 * stopped / 20, abs=0.03)
    assert plan.lost == {"k4": pytest.approx(2 / 5, abs=0.1)}
    assert plan.lost_share == plan.lost["k4"]
    assert plan.gain == pytest.approx((1 - plan.lost["k4"]) / plan.seconds)
    assert replayed(trials, curves, {4}, 2, 1, 0) == plan


def test_what_is_lost_is_a_share_of_the_whole_front() -> None:
    plan = Plan(3, 1, (1,), 0.5, 0.4, {"a": 0.5, "b": 0.1}, 6)
    assert plan.lost_share == pytest.approx(0.1)
    assert plan.gain == pytest.approx(0.9 / 0.4)


def constant(n: int, epochs: int) -> list[list[float]]:
    """Return curves that never cross."""
    return [[0.5 + 0.01 * (7 * i % n) + 0.001 * e for e in range(epochs)] for i in range(n)]


def test_curves_that_never_cross_can_be_trusted_at_once() -> None:
    macs = [round(1000 * 1.04**i) for i in range(24)]
    found = calibration(record_of(constant(24, 9), macs), OBJECTIVES, 9)
    assert (found.networks, found.tolerance) == (24, 0.1)
    assert found.pairs == 23 + 22
    assert [row.epoch for row in found.fidelities] == list(range(1, 9))
    assert {row.tau for row in found.fidelities} == {1.0}
    assert [(plan.eta, plan.min_epochs) for plan in found.plans] == [(2, 1), (3, 1), (4, 1)]
    assert found.plans[1].rungs == (1, 3)
    assert found.recommended is max(found.plans, key=lambda plan: plan.gain)
    assert all(plan.lost == {} and plan.epochs < 0.8 for plan in found.plans)


def test_a_rung_is_taken_where_all_behind_it_are_trusted_too() -> None:
    """Epochs 2 and 4 of nine say nothing, which are rungs behind the first one for eta 2 and 4."""
    curves, drawn = constant(24, 9), rng()
    for epoch in (2, 4):
        for curve, value in zip(curves, drawn.permutation(24), strict=True):
            curve[epoch - 1] = float(value)
    found = calibration(record_of(curves, [1000] * 24), OBJECTIVES, 9)
    assert [row.epoch for row in found.fidelities if not row.trusted] == [2, 4]
    assert [(plan.eta, plan.rungs) for plan in found.plans] == [(2, (3, 6)), (3, (1, 3)), (4, (3,))]


def test_nothing_is_advised_where_nothing_can_be_trusted() -> None:
    curves = [[float(value), 0.01 * i] for i, value in enumerate(rng().permutation(24))]
    found = calibration(record_of(curves, [1000] * 24), OBJECTIVES, 2)
    assert found.plans == ()
    assert found.recommended is None


def test_early_stopping_that_hardly_gains_is_not_advised() -> None:
    found = calibration(record_of(constant(24, 9), [1000] * 24), OBJECTIVES, 9)
    assert found.recommended is not None
    poor = tuple(dataclasses.replace(plan, seconds=0.95) for plan in found.plans)
    assert dataclasses.replace(found, plans=poor).recommended is None


def test_only_full_trainings_of_the_search_count() -> None:
    record = record_of([*constant(9, 3), [0.9]], [1000] * 10)
    record.trials[0].state = "stopped"
    record.trials[10] = dataclasses.replace(
        record.trials[1], started=dataclasses.replace(record.trials[1].started, number=10, kind="retrain")
    )
    assert calibration(record, OBJECTIVES, 3).networks == 8
    record.trials[1].state = "failed"
    with pytest.raises(RecordError, match="at least 8 networks with all 3 epochs, but the run has 7: go on with it by"):
        calibration(record, OBJECTIVES, 3)


def test_networks_of_unlike_cost_cannot_be_compared() -> None:
    with pytest.raises(RecordError, match="needs networks of like cost, but no two of 8 are within 50% of their MACs"):
        calibration(record_of(constant(8, 3), [2**i for i in range(8)]), OBJECTIVES, 3)


def test_a_loss_ranks_the_other_way_round() -> None:
    losses = [[1 - value for value in curve] for curve in constant(12, 3)]
    for trial in (record := record_of(losses, [1000] * 12)).trials.values():
        trial.curve = [{"val_loss": row["val_accuracy"]} for row in trial.curve]
        trial.metrics = trial.curve[-1]
    found = calibration(record, (Objective("val_loss", "min"), Objective("macs", "min")), 3)
    assert [row.tau for row in found.fidelities] == [1.0, 1.0]
    assert found.plans[0].front == 1
    assert not any(math.isnan(plan.seconds) or plan.lost for plan in found.plans)
