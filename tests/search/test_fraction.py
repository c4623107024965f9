"""How many trials share a GPU, by value: no GPU is needed."""

import pytest
from small_search import small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.fraction import CONTEXT, MARGIN, SHARERS, Step, costliest, sharers

GIB = 2**30


@pytest.mark.parametrize(
    ("seconds", "device_seconds", "gib", "count"),
    [
        (0.020, 0.020, 1, 1),  # the GPU never waits: nothing to gain
        (0.020, 0.019, 1, 1),  # or next to nothing
        (0.020, 0.010, 1, 2),
        (0.020, 0.0067, 1, 3),
        (0.020, 0.005, 1, 4),
        (0.020, 0.004, 1, 8),  # four would leave a fifth of the GPU idle
        (0.020, 0.0001, 1, 8),
        (0.020, 0.0001, 8, 4),  # memory bounds it
        (0.020, 0.0001, 20, 3),
        (0.020, 0.0001, 30, 2),
        (0.020, 0.0001, 60, 1),
        (0.020, 0.0001, 200, 1),  # too large for one: the trial itself will say so
    ],
)
def test_as_many_share_as_fit_and_gain(seconds: float, device_seconds: float, gib: float, count: int) -> None:
    assert sharers(Step(seconds, device_seconds, int(gib * GIB)), 80 * GIB, cores=16, wanted=16) == count


@pytest.mark.parametrize(("cores", "wanted", "count"), [(0.5, 8, 1), (2, 8, 2), (5.5, 8, 4), (64, 3, 3), (64, 7, 4)])
def test_no_more_share_than_cores_and_workers_are_there(cores: float, wanted: int, count: int) -> None:
    assert sharers(Step(0.02, 0.001, GIB), 80 * GIB, cores, wanted) == count


def test_the_margin_is_kept() -> None:
    """At just the memory that two need, two share; at one byte less, one has it alone."""
    step = Step(0.02, 0.001, 7 * GIB)
    need = int(2 * MARGIN * (7 * GIB + CONTEXT))
    assert [sharers(step, need - less, 16, 16) for less in (0, 1)] == [2, 1]


def test_every_answer_is_a_fraction_of_the_list() -> None:
    steps = [Step(1.0, 1 / n, m * GIB) for n in range(1, 12) for m in range(1, 40, 3)]
    found = {sharers(step, 80 * GIB, 16, wanted) for step in steps for wanted in range(1, 12)}
    assert found == set(SHARERS)


def test_the_costliest_networks_keep_the_budget_and_nearly_reach_it() -> None:
    space = small_space()
    found = costliest(space.feasible(Budget(macs="60K", params="9K")))
    costs = [space.cost(architecture) for architecture in found]
    assert 1 <= len(costs) <= 2
    assert all(cost.macs <= 60_000 and cost.params <= 9_000 for cost in costs)
    assert max(cost.macs for cost in costs) > 55_000
    whole = [space.cost(architecture) for architecture in costliest(space.feasible(None))]
    assert max(cost.macs for cost in whole) >= max(space.cost(a).macs for a in space.sample(2000, seed=0))
