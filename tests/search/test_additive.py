"""The additive model against truths that it can and cannot hold, and what is proposed by it."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import Study
from optuna.trial import TrialState
from own_study import check, next_network, optimised, study_of, suggested, tell, values
from small_search import quality, small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.additive import AdditiveSampler, front_gain
from bsconv_nas.search.additive_model import Encoding, fit
from bsconv_nas.search.table_sampler import Goal, History
from bsconv_nas.space.sampling import FeasibleSet

Floats = npt.NDArray[np.float64]
FREE = small_space().feasible(Budget())
TIGHT = small_space().feasible(Budget(macs="60K"))
points = st.lists(st.integers(0, 6), min_size=3, max_size=3)


def rows_of(feasible: FeasibleSet, count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.array([a.indices for a in feasible.sample(count, np.random.default_rng(seed))])


def predictions(targets: Floats, rows: npt.NDArray[np.int64], fresh: npt.NDArray[np.int64]) -> Floats:
    """Return what the likeliest model says of fresh networks."""
    encode = Encoding(FREE, rows)
    (posterior,) = fit(encode(rows), targets[:, None])
    return posterior.draw(np.random.default_rng(0), temperature=0.0)(encode(fresh))


def truth(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=Encoding(FREE, rows_of(FREE, 50, 0))(rows_of(FREE, 1, 0)).shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_an_additive_truth_is_found(seed: int) -> None:
    """The error on networks that were not seen falls to the noise's share of it, and with the number that were."""
    fresh, center = rows_of(FREE, 300, 100 + seed), Encoding(FREE, rows_of(FREE, 50, 0))
    exact = center(fresh) @ truth(seed)
    errors = []
    for count in (20, 80, 640):
        rows = rows_of(FREE, count, seed)
        noise = 0.1 * exact.std() * np.random.default_rng(seed).normal(size=count)
        error = predictions(center(rows) @ truth(seed) + noise, rows, fresh) - exact
        errors.append(float(np.sqrt(np.mean(error**2)) / exact.std()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_shrunk_away_and_a_truth_is_not(seed: int) -> None:
    rows, fresh = rows_of(FREE, 200, seed), rows_of(FREE, 300, 100 + seed)
    exact = Encoding(FREE, rows)(rows) @ truth(seed)
    noise = np.random.default_rng(seed).normal(size=len(rows))
    assert predictions(noise, rows, fresh).std() < 0.2 * noise.std()
    assert predictions(exact, rows, fresh).std() > 0.8 * exact.std()


def test_draws_scatter_as_the_posterior_says() -> None:
    rows = rows_of(FREE, 60, 0)
    encode = Encoding(FREE, rows)
    (posterior,) = fit(encode(rows), np.array([[quality(tuple(row))] for row in rows.tolist()]))
    rng = np.random.default_rng(0)
    drawn = np.array([posterior.draw(rng).weights for _ in range(2000)]) @ posterior.basis
    scores = (drawn - posterior.mean) / posterior.deviation
    assert np.abs(scores.mean(axis=0)).max() < 0.1
    assert np.abs(scores.std(axis=0) - 1).max() < 0.1
    halved = np.array([posterior.draw(rng, 0.5).weights for _ in range(2000)]) @ posterior.basis
    assert np.abs((halved - posterior.mean).std(axis=0) / posterior.deviation - 0.5).max() < 0.05


def test_the_truth_lies_within_the_scatter_of_the_draws() -> None:
    fresh, scores = rows_of(FREE, 100, 1), []
    for seed in range(10):
        rows = rows_of(FREE, 40, 100 + seed)
        encode = Encoding(FREE, rows)
        exact, rng = encode(fresh) @ truth(seed), np.random.default_rng(seed)
        noisy = encode(rows) @ truth(seed) + 0.3 * exact.std() * rng.normal(size=len(rows))
        (posterior,) = fit(encode(rows), noisy[:, None])
        drawn = np.array([posterior.draw(rng)(encode(fresh)) for _ in range(100)])
        scores.append((exact - drawn.mean(axis=0)) / drawn.std(axis=0))
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.5


def test_one_training_gone_wrong_bends_little() -> None:
    rows, fresh = rows_of(FREE, 100, 0), rows_of(FREE, 300, 1)
    whole = Encoding(FREE, rows)(rows) @ truth(0)
    broken = whole.copy()
    broken[7] -= 1000 * whole.std()
    change = predictions(broken, rows, fresh) - predictions(whole, rows, fresh)
    assert np.sqrt(np.mean(change**2)) < whole.std()


def test_what_is_dropped_has_no_features() -> None:
    names = FREE.table.names
    depth = names.index("depth.layer1")
    inside = [i for i, name in enumerate(names) if name.startswith("conv.layer1.")]
    rows = rows_of(FREE, 200, 0)
    dropped, kept = rows.copy(), rows.copy()
    dropped[:, depth], kept[:, depth] = 0, 1
    encode = Encoding(FREE, rows)
    other = dropped.copy()
    other[:, inside] = (other[:, inside] + 1) % 4
    assert np.array_equal(encode(dropped), encode(other))
    assert not np.array_equal(encode(kept), encode(np.where(np.isin(range(len(names)), inside), other, kept)))
    indicators = slice(0, int(FREE.table.sizes.sum()))
    assert set(encode(kept)[:, indicators].sum(axis=1)) == {len(names)}
    assert set(encode(dropped)[:, indicators].sum(axis=1)) == {len(names) - len(inside)}


def volume(front: Floats, reference: Floats) -> float:
    """Return the hypervolume, cell by cell of the grid that all coordinates span."""
    axes = [np.unique([low, *column[column > low]]) for low, column in zip(reference, front.T, strict=True)]
    total = 0.0
    for cell in itertools.product(*(range(1, len(axis)) for axis in axes)):
        upper = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
        lower = np.array([axis[i - 1] for axis, i in zip(axes, cell, strict=True)])
        if (front >= upper).all(axis=1).any():
            total += float(np.prod(upper - lower))
    return total


@pytest.mark.parametrize("goals", [2, 3])
@given(front=st.lists(points, min_size=1, max_size=6), candidate=points, reference=points)
def test_the_gain_is_the_growth_of_the_hypervolume(
    goals: int, front: list[list[int]], candidate: list[int], reference: list[int]
) -> None:
    known, one, low = (np.array(p, dtype=np.float64)[..., :goals] for p in (front, candidate, reference))
    gain = float(front_gain(known, low)(one[None])[0])
    growth = volume(np.vstack([known, one]), low) - volume(known, low)
    if (known >= one).all(axis=1).any():
        assert growth == 0
        assert gain <= 0
    else:
        assert gain == pytest.approx(growth, abs=1e-9)


def test_below_the_front_the_gain_is_the_way_to_it() -> None:
    front = np.array([[0.0, 4.0], [2.0, 2.0], [4.0, 0.0]])
    gain = front_gain(front, np.array([-1.0, -1.0]))
    behind = np.random.default_rng(0).uniform(-1, 1, size=(50, 2))
    way = -gain(behind)[:, None] * np.ptp(front, axis=0)
    assert (gain(behind) < 0).all()
    assert (gain(behind + way - 1e-9) <= 0).all()
    assert (gain(behind + way + 1e-9) > 0).all()


def test_one_objective_is_its_own_gain() -> None:
    values = np.array([[0.3], [0.1]])
    assert front_gain(np.array([[0.2]]), np.array([0.0]))(values).tolist() == [0.3, 0.1]


def tell_of(study: Study, feasible: FeasibleSet, count: int) -> None:
    """Enter trials that are random networks."""
    networks = feasible.sample(count, np.random.default_rng(0))
    found = [values(feasible, a) for a in networks]
    tell(study, feasible, [a.indices for a in networks], [[v["val_accuracy"], v["macs"]] for v in found])


def told(seed: int) -> tuple[int, ...]:
    """Return what is proposed after the same trials, whatever the seed."""
    study = study_of(AdditiveSampler(feasible=TIGHT, seed=seed), "val_accuracy", "macs")
    tell_of(study, TIGHT, 30)
    return next_network(study, TIGHT).indices


def test_proposals_follow_from_the_seed_and_differ_by_it() -> None:
    found = [told(seed) for seed in range(6)]
    assert found == [told(seed) for seed in range(6)]
    assert len(set(found)) > 1


def test_draws_differ_by_the_seed_and_agree_at_temperature_zero() -> None:
    rows = rows_of(TIGHT, 40, 0)
    accuracy = np.array([[quality(tuple(row))] for row in rows.tolist()])
    history = History(rows, (TrialState.COMPLETE,) * len(rows), accuracy, (Goal(1.0),))

    def drawn(seed: int, temperature: float) -> Floats:
        sampler = AdditiveSampler(feasible=TIGHT, temperature=temperature)
        return sampler._drawn(history, np.random.default_rng(seed))(rows)

    assert np.array_equal(drawn(0, 0.0), drawn(1, 0.0))
    assert np.array_equal(drawn(0, 1.0), drawn(0, 1.0))
    assert not np.allclose(drawn(0, 1.0), drawn(1, 1.0))


def asked_beside(seed: int, first: TrialState) -> float:
    """Return what a proposal adds to the front if the one before it, running or failed, reaches what is expected."""
    sampler = AdditiveSampler(feasible=FREE, temperature=0.0, seed=seed)
    study = study_of(sampler, "val_accuracy", "macs")
    tell_of(study, FREE, 60)
    predict = sampler._drawn(sampler.history(study), np.random.default_rng(0))
    trial = study.ask()
    beside = suggested(trial, FREE)
    if first == TrialState.FAIL:
        study.tell(trial, state=first)
    found = next_network(study, FREE)
    history = sampler.history(study)
    front = np.vstack([history.targets(FREE), predict(np.array([beside.indices]))])
    return float(front_gain(front, history.reference(FREE))(predict(np.array([found.indices])))[0])


def test_what_runs_counts_with_what_is_expected_of_it() -> None:
    """Else proposals made side by side are after the same gain; one that failed leaves its gain to others."""
    gains = np.array(
        [[asked_beside(seed, state) for state in (TrialState.RUNNING, TrialState.FAIL)] for seed in range(4)]
    )
    assert (gains[:, 0] > 0).all()
    assert (gains[:, 0] >= gains[:, 1]).all()
    assert gains[:, 0].mean() > gains[:, 1].mean()


@pytest.mark.parametrize("goals", [("val_accuracy",), ("val_accuracy", "macs"), ("val_accuracy", "macs", "params")])
def test_it_learns_in_a_study_of_ones_own(goals: tuple[str, ...]) -> None:
    found = optimised(AdditiveSampler(feasible=TIGHT, seed=0), TIGHT, 40, *goals)
    check(TIGHT, found)
    if len(goals) == 1:
        scores = [quality(a.indices) for a in found]
        best = max(quality(a.indices) for a in TIGHT.sample(4000, np.random.default_rng(0)))
        assert np.mean(scores[-10:]) > np.mean(scores[:1]) + 0.5 * (best - np.mean(scores[:1]))


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"generations": -1}, {"temperature": -0.1}, {"temperature": np.nan}])
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        AdditiveSampler(feasible=TIGHT, **wrong)  # type: ignore[arg-type]
