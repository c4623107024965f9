"""Who breeds: the best of the young, never the old, by front rank and crowding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from own_study import check, next_network, optimised, study_of, tell
from small_search import quality, small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.evolution import EvolutionSampler, ranking
from bsconv_nas.space.neighbours import changes

FREE = small_space().feasible(Budget())
TIGHT = small_space().feasible(Budget(macs="60K"))
TABLE = FREE.table
HIGH = tuple(int(size) - 1 for size in TABLE.sizes)  # far from all that `young` gives


def young(count: int) -> list[list[int]]:
    """Return networks with the first operator at most places, one step apart."""
    rows = [[1] * 4 + [0] * 6 for _ in range(count)]
    for i, row in enumerate(rows[1:]):
        row[4 + i] = 1
    return rows


def parents(child: tuple[int, ...], rows: list[list[int]]) -> list[int]:
    """Return of which networks a child is one change away."""
    return [i for i, row in enumerate(rows) if changes(TABLE, np.array([child]), np.array(row))[0] == 1]


def child_of(rows: list[list[int]], values: list[float], seed: int, alive: int, tournament: int) -> tuple[int, ...]:
    sampler = EvolutionSampler(feasible=FREE, population=alive, tournament=tournament, seed=seed)
    study = study_of(sampler, "val_accuracy")
    tell(study, FREE, rows, [[value] for value in values])
    return next_network(study, FREE).indices


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_the_population_breeds_by_one_change(seed: int) -> None:
    rows = [*young(4), list(HIGH)]
    assert 4 in parents(child_of(rows, [0.1, 0.2, 0.3, 0.4, 0.9], seed, 5, 5), rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_lucky_old_network_no_longer_breeds(seed: int) -> None:
    rows = [list(HIGH), *young(5)]
    values = [0.99, 0.1, 0.5, 0.1, 0.1, 0.1]
    assert 0 in parents(child_of(rows, values, seed, 6, 6), rows)
    child = child_of(rows, values, seed, 5, 5)
    assert 2 in parents(child, rows)
    assert 0 not in parents(child, rows)


def test_a_tournament_of_one_is_open_to_all() -> None:
    rows = [list(HIGH), *young(3)[1:]]
    bred = {0 in parents(child_of(rows, [0.1, 0.5, 0.9], seed, 3, 1), rows) for seed in range(20)}
    assert bred == {True, False}


def test_a_stopped_trial_never_breeds() -> None:
    study = study_of(EvolutionSampler(feasible=FREE, population=5, tournament=5, seed=0), "val_accuracy")
    tell(study, FREE, young(2), [[0.1], [0.2]])
    tell(study, FREE, [list(HIGH)], [[0.99]], TrialState.PRUNED)
    assert 0 not in parents(next_network(study, FREE).indices, [list(HIGH)])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_network_comes_before_one_that_beats_it(values: list[tuple[int, int]]) -> None:
    targets = np.array(values, dtype=np.float64)
    places = ranking(targets)
    assert sorted(places.tolist()) == list(range(len(values)))
    for i, a in enumerate(targets):
        for j, b in enumerate(targets):
            if (a >= b).all() and (a > b).any():
                assert places[i] < places[j]


def test_of_one_rank_the_ends_and_the_lonely_come_first() -> None:
    targets = np.array([[0.0, 10.0], [1.0, 9.0], [1.5, 8.5], [5.0, 5.0], [10.0, 0.0]])
    places = ranking(targets)
    assert set(places[[0, 4]].tolist()) == {0, 1}
    assert places[3] == 2
    assert places[2] < places[1]


@pytest.mark.parametrize("goals", [("val_accuracy",), ("val_accuracy", "macs")])
def test_it_learns_in_a_study_of_ones_own(goals: tuple[str, ...]) -> None:
    found = optimised(EvolutionSampler(feasible=TIGHT, population=10, tournament=5, seed=0), TIGHT, 60, *goals)
    check(TIGHT, found)
    if len(goals) == 1:
        scores = [quality(a.indices) for a in found]
        assert np.mean(scores[-15:]) > np.max(scores[:15])
    again = optimised(EvolutionSampler(feasible=TIGHT, population=10, tournament=5, seed=0), TIGHT, 60, *goals)
    assert found == again


@pytest.mark.parametrize(("population", "tournament"), [(5, 0), (5, 6), (0, 0)])
def test_wrong_sizes_are_refused(population: int, tournament: int) -> None:
    with pytest.raises(ValueError, match="tournament must be at least 1 and at most the population"):
        EvolutionSampler(feasible=TIGHT, population=population, tournament=tournament)
