"""Even draws over log MACs: no part of the range is left out, however few are drawn."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_study import check, optimised
from small_search import small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.stratified import StratifiedSampler, position
from bsconv_nas.search.uniform import UniformSampler
from bsconv_nas.space.table import Architecture

FREE = small_space().feasible(Budget())
BAND = small_space().feasible(Budget(macs=["40K", "90K"]))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 200))
def test_positions_leave_no_wide_gap(seed: int, count: int) -> None:
    places = np.sort([position(seed, n) for n in range(count)])
    assert places[0] >= 0
    assert places[-1] < 1
    assert np.diff([*places, places[0] + 1]).max() <= 2 / count + 1e-12


def shares(found: list[Architecture]) -> npt.NDArray[np.float64]:
    """Return where networks lie between the cheapest and the costliest, by log MACs, in order."""
    everything = np.array([a.indices for a in FREE.sample(10**5, np.random.default_rng(0))])
    ends = np.log2(FREE.model.costs(everything)["macs"])
    macs = np.log2(FREE.model.costs(np.array([a.indices for a in found]))["macs"])
    return np.sort((macs - ends.min()) / np.ptp(ends))


def unevenness(found: list[Architecture]) -> float:
    """Return the Kolmogorov distance to an even distribution."""
    places = shares(found)
    steps = np.arange(len(places) + 1) / len(places)
    return float(max(np.abs(steps[1:] - places).max(), np.abs(steps[:-1] - places).max()))


@pytest.mark.parametrize("seed", range(3))
def test_networks_lie_evenly_over_log_macs_where_uniform_draws_do_not(seed: int) -> None:
    even = optimised(StratifiedSampler(feasible=FREE, seed=seed), FREE, 64, "val_accuracy")
    assert unevenness(even) < 0.1
    assert np.diff([0, *shares(even), 1]).max() < 2 / 64 + 0.05
    assert unevenness(optimised(UniformSampler(feasible=FREE, seed=seed), FREE, 64, "val_accuracy")) > 0.2


@pytest.mark.parametrize("sampler", [StratifiedSampler, UniformSampler])
def test_it_serves_a_study_of_ones_own(sampler: type[StratifiedSampler] | type[UniformSampler]) -> None:
    runs = [optimised(sampler(feasible=BAND, seed=seed), BAND, 40, "val_accuracy", "macs") for seed in (1, 1, 2)]
    for found in runs:
        check(BAND, found)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("sampler", [StratifiedSampler, UniformSampler])
def test_a_small_space_is_drawn_to_its_last_network(
    sampler: type[StratifiedSampler] | type[UniformSampler],
) -> None:
    few = small_space(scope="network", widths=(1.0,)).feasible(Budget())
    networks = few.sample(1000, np.random.default_rng(0))
    found = optimised(sampler(feasible=few, seed=0), few, len(networks), "val_accuracy")
    assert {a.key for a in found} == {a.key for a in networks}
