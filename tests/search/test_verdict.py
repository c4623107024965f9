import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_search import new_run, small_space, work_alone

from bsconv_nas.cost.budget import Budget
from bsconv_nas.run import Run
from bsconv_nas.search.record import Ended, Record, Started
from bsconv_nas.search.retrain import Pair
from bsconv_nas.search.verdict import Comparison, Unrivalled, comparisons, uniform_operator, verdict

SPACE = small_space()
TABLE = SPACE.table
SEEDS = (5, 5)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """4 baselines and 3 searched networks."""
    store = new_run(tmp_path_factory.mktemp("runs") / "run", SPACE, trials=3, baselines=4)
    return work_alone(store, SPACE.feasible(Budget(macs="60K")))


def with_trainings(record: Record, accuracies: dict[int, list[tuple[float, float]]]) -> Record:
    """Return a copy of `record` with (report, test) accuracies of retrainings by the number of their network."""
    copied = Record()
    copied.trials.update(record.trials)
    for network, results in accuracies.items():
        for seed, (report, test) in enumerate(results):
            number = len(copied.trials)
            first = record.trials[network].started
            copied.add(Started(number, "retrain", first.key, first.indices, first.costs, seed, time=1.0))
            metrics = {"val_accuracy": 0.5, "report_accuracy": report, "test_accuracy": test}
            copied.add(Ended(number, "complete", 3, metrics, 1.0, time=2.0))
    return copied


def compared(record: Record, pairs: list[Pair]) -> list[Any]:
    return comparisons(record, record.frame(TABLE), pairs, TABLE)


def test_gain_and_margin_are_welchs(record: Record) -> None:
    ours, theirs = [0.90, 0.91, 0.93], [0.88, 0.89]
    found = with_trainings(record, {5: [(0.5, a) for a in ours], 0: [(0.5, a) for a in theirs]})
    (comparison,) = compared(found, [Pair(5, (0,))])
    # By hand: Welch's t with the Welch-Satterthwaite degrees of freedom.
    a, b = 100 * np.array(ours), 100 * np.array(theirs)
    variances = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / (len(a) - 1) + variances[1] ** 2 / (len(b) - 1))
    assert comparison.gain == pytest.approx(a.mean() - b.mean())
    assert comparison.margin == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)))
    assert comparison.seeds == (3, 2)
    assert comparison.key == record.trials[5].started.key
    assert comparison.rival == record.trials[0].started.key
    assert comparison.macs == record.trials[5].started.costs["macs"]
    assert comparison.operator == uniform_operator(TABLE, record.trials[0].started.indices)


def test_the_rival_is_chosen_without_the_test_split(record: Record) -> None:
    trainings = {5: [(0.5, 0.9)] * 2, 0: [(0.7, 0.1)] * 2, 1: [(0.6, 0.99)] * 2}
    (comparison,) = compared(with_trainings(record, trainings), [Pair(5, (0, 1))])
    assert comparison.rival == record.trials[0].started.key
    assert comparison.gain == pytest.approx(80.0)


def test_what_was_not_retrained_is_not_compared(record: Record) -> None:
    assert compared(record, [Pair(5, (0,))]) == []
    assert compared(with_trainings(record, {5: [(0.5, 0.9)]}), [Pair(5, (0,))]) == []
    assert compared(with_trainings(record, {0: [(0.5, 0.9)]}), [Pair(5, (0,))]) == []
    assert compared(with_trainings(record, {0: [(0.5, 0.9)]}), [Pair(5, ())]) == []


def test_a_member_cheaper_than_every_uniform_network_is_compared_to_none(record: Record) -> None:
    trainings = {5: [(0.5, 0.9), (0.5, 0.92)], 0: [(0.7, 0.1)]}
    found = compared(with_trainings(record, trainings), [Pair(5, ())])
    member = record.trials[5].started
    assert found == [Unrivalled(member.key, member.costs["macs"], 2, pytest.approx(91.0))]


def test_why_there_is_no_comparison_is_a_sentence() -> None:
    cheap = Unrivalled("c3", 900_000, 2, 91.04)
    assert verdict([cheap, comparison(0.44, 0.21)])[1] == (
        "At 900 K MACs no comparison: the search completed no uniform network of like or less cost to set against this "
        "one (91.0 % test accuracy, 2 seeds)."
    )
    assert "(91.0 % test accuracy, 1 seed)." in verdict([Unrivalled("c3", 900_000, 1, 91.04)])[0]


@pytest.mark.parametrize(("ours", "theirs", "margin"), [([0.9], [0.8, 0.81], math.nan), ([0.9, 0.9], [0.8, 0.8], 0.0)])
def test_too_few_seeds_and_no_spread(record: Record, ours: list[float], theirs: list[float], margin: float) -> None:
    trainings = {5: [(0.5, a) for a in ours], 0: [(0.5, a) for a in theirs]}
    (comparison,) = compared(with_trainings(record, trainings), [Pair(5, (0,))])
    np.testing.assert_equal(comparison.margin, margin)


def test_uniform_networks_are_known_by_their_operator(tmp_path: Path) -> None:
    names = ("regular", "dsc", "bsconv_u", "bsconv_s")
    baselines = SPACE.feasible().baselines(12)
    assert {uniform_operator(TABLE, network.indices) for network in baselines} == set(names)
    for network in baselines:
        operators = {
            str(v).partition(":")[0] for n, v in TABLE.resolve(network.indices).items() if n.startswith("conv.")
        }
        assert operators == {uniform_operator(TABLE, network.indices)}
    mixed = [network for network in SPACE.sample(50) if uniform_operator(TABLE, network.indices) is None]
    assert mixed
    for network in mixed:
        operators = {
            str(v).partition(":")[0] for n, v in TABLE.resolve(network.indices).items() if n.startswith("conv.")
        }
        assert len(operators) > 1


def test_a_tied_space_is_uniform_throughout() -> None:
    tied = small_space(scope="network")
    assert all(uniform_operator(tied.table, network.indices) for network in tied.sample(10))


def comparison(gain: float, margin: float, *, mixed: bool = True, rival_macs: int = 39_000_000) -> Comparison:
    return Comparison("a1", 40_000_000, "b2", rival_macs, "bsconv_u", SEEDS, mixed, gain, margin)


BASIS = "(bsconv_u, 39 M MACs; test accuracy, 5 against 5 seeds, 95 % interval)."


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            comparison(0.44, 0.21),
            f"At 40 M MACs mixing gains 0.4 +- 0.2 points over the best uniform network of like cost {BASIS}",
        ),
        (
            comparison(-0.8, 0.3),
            f"At 40 M MACs mixing loses 0.8 +- 0.3 points against the best uniform network of like cost {BASIS}",
        ),
        (
            comparison(-0.2, 0.3),
            "At 40 M MACs a tie: mixing differs by -0.2 +- 0.3 points from the best uniform network of like cost "
            f"{BASIS}",
        ),
        (
            comparison(0.0, 0.0),
            "At 40 M MACs a tie: mixing differs by +0.0 +- 0.0 points from the best uniform network of like cost "
            f"{BASIS}",
        ),
        (
            comparison(1.0, math.nan),
            "At 40 M MACs mixing differs by +1.0 points from the best uniform network of like cost (bsconv_u, 39 M "
            "MACs; test accuracy, 5 against 5 seeds: too few for an interval).",
        ),
        (
            comparison(0.5, 0.1, mixed=False),
            "At 40 M MACs this uniform network gains 0.5 +- 0.1 points over the best uniform network of like cost "
            f"{BASIS}",
        ),
        (
            comparison(0.5, 0.1, rival_macs=20_000_000),
            "At 40 M MACs mixing gains 0.5 +- 0.1 points over the best uniform network that costs less (bsconv_u, 20 M "
            "MACs; test accuracy, 5 against 5 seeds, 95 % interval).",
        ),
    ],
)
def test_the_verdict_is_a_sentence(found: Comparison, sentence: str) -> None:
    assert verdict([found]) == (sentence,)


def test_the_costliest_comes_first() -> None:
    cheap = Comparison("c3", 10_000_000, "d4", 10_000_000, "dsc", SEEDS, True, 1.0, 0.5)
    assert [text[:10] for text in verdict([cheap, comparison(1.0, 0.5)])] == ["At 40 M MA", "At 10 M MA"]
    assert verdict([]) == ()


def test_a_run_reads_its_last_verdict(tmp_path: Path) -> None:
    from bsconv_nas.search.record import Note

    store = new_run(tmp_path / "run", SPACE)
    with store.lock():
        store.append(Note("verdict", {"sentences": ["Old."]}))
        store.append(Note("verdict", {"sentences": ["New."]}))
    assert Run(store).view().verdict == ("New.",)
