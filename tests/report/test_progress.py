import math

import pytest

from bsconv_nas.cost.budget import Budget
from bsconv_nas.report.progress import gain_info, progress_figure, progress_info


def costs(view):
    return view.trials["macs"].astype(float).tolist()


@pytest.fixture
def three(writer, network):
    """A baseline, a better and dearer search trial, and a stopped one."""
    writer.trial("baseline", network("bsconv_u", depth_layer1=1), 0.60)
    writer.trial("search", network("bsconv_u"), 0.80, epochs=4)
    writer.trial("search", network("dsc"), 0.90, state="stopped", epochs=2)
    return writer.view()


def test_hypervolume_is_the_area_above_chance_in_points_times_octaves(three):
    info = progress_info(three)
    first, second, _ = costs(three)
    octaves = [math.log2(20e6 / first), math.log2(20e6 / second)]
    expected = [50 * octaves[0], 50 * octaves[0] + 20 * octaves[1]]
    assert info.hypervolume == pytest.approx([expected[0], expected[1], expected[1]])
    assert info.baselines == pytest.approx(expected[0])


def test_stopped_trials_cost_time_but_dominate_nothing(three):
    info = progress_info(three)
    assert (info.trials, info.seconds) == ((1, 2, 3), (6.0, 10.0, 12.0))


def test_trials_count_in_the_order_of_their_ends(three):
    by_end = sorted(three.record.trials.values(), key=lambda trial: trial.ended)
    by_end[0].ended = by_end[-1].ended + 1
    assert progress_info(three).seconds == (4.0, 6.0, 12.0)


def test_the_reference_is_chance_at_the_budget_else_at_the_largest_network(three, writer):
    info = progress_info(three)
    assert (info.chance, info.reference, info.origin) == (0.1, 20e6, "the budget")
    info = progress_info(writer.view(budget=Budget()))
    assert info.reference == writer.model.cost(largest(writer)).macs
    assert info.origin == "the largest network of the space"


def largest(writer):
    values = {d.name: "regular" if d.kind == "conv" else max(d.options) for d in writer.table.dimensions}
    return writer.table.from_values(values)


def test_the_reference_is_stated_on_the_figure(three):
    note = progress_figure(progress_info(three)).layout.annotations[0].text
    assert note == "reference: 10.00 % (chance) at 20 M MACs (the budget)"


def test_what_is_worse_than_chance_dominates_nothing(writer, network):
    writer.trial("search", network("dsc"), 0.05)
    assert progress_info(writer.view()).hypervolume == (0.0,)


def test_without_a_complete_trial_there_is_no_hypervolume(writer, network):
    assert progress_info(writer.view()) is None
    writer.started("search", network("dsc"))
    assert progress_info(writer.view()) is None


def test_gain_is_the_mean_difference_of_the_fronts_over_log_cost(writer, network):
    writer.trial("baseline", network("bsconv_u", depth_layer1=1), 0.60)
    writer.trial("search", network("bsconv_u", depth_layer1=0), 0.62)
    writer.trial("search", network("bsconv_u", depth_layer1=2), 0.59)
    writer.trial("search", network("bsconv_u"), 0.65)
    view = writer.view()
    low, _, _, step = costs(view)
    octaves = [math.log2(step / low), math.log2(20e6 / step)]
    found = gain_info(view)
    assert (found.low, found.high, found.octaves) == (low, 20e6, pytest.approx(sum(octaves)))
    assert found.points == pytest.approx((2 * octaves[0] + 5 * octaves[1]) / sum(octaves))


def test_gain_is_signed(writer, network):
    writer.trial("baseline", network("bsconv_u", depth_layer1=1), 0.60)
    writer.trial("search", network("bsconv_u", depth_layer1=0), 0.55)
    assert gain_info(writer.view()).points == pytest.approx(-5)


def test_gain_needs_both_sides_and_a_shared_interval(writer, network):
    writer.trial("search", network("bsconv_u"), 0.55)
    assert gain_info(writer.view()) is None
    writer.trial("baseline", network("bsconv_u", depth_layer1=1), 0.60)
    assert gain_info(writer.view(budget=Budget())) is None
    assert gain_info(writer.view()) is not None
