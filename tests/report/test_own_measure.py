"""A run that measures something else than accuracy: what is best, how it is written, what is not claimed."""

import math
from dataclasses import replace

import pytest

from bsconv_nas.report import page, summary
from bsconv_nas.report.curves import curves_info
from bsconv_nas.report.front import front_figure, front_info
from bsconv_nas.report.importance import importance_info
from bsconv_nas.report.measure import ACCURACY, Measure
from bsconv_nas.report.operators import operators_info
from bsconv_nas.report.progress import gain_info, progress_info
from bsconv_nas.report.tables import baselines_table, front_table
from bsconv_nas.report.view import View
from bsconv_nas.search.record import EpochDone, Objective, Record

LOSS = Measure(Objective("loss", "min"))


@pytest.fixture
def losses(writer, network) -> View:
    """A baseline of loss 0.5, and two searched networks of 0.4 and 0.9; no trial has an accuracy."""
    trials = {"dsc": ("baseline", 0.5), "bsconv_u": ("search", 0.4), "bsconv_s": ("search", 0.9)}
    for operator, (kind, loss) in trials.items():
        writer.trial(kind, network(operator, depth_layer1=1), math.nan, loss=loss)
    events = [replace(e, metrics={"loss": 1 / e.epoch}) if isinstance(e, EpochDone) else e for e in writer.events]
    goals = (LOSS.objective, Objective("macs", "min"))
    return replace(writer.view(objectives=goals, measure=LOSS), record=Record(events))


def test_the_lowest_is_the_best_where_less_is_better(losses):
    assert (summary.best(losses, "search"), summary.best(losses, "baseline")) == (0.4, 0.5)
    found = summary.comparison(losses)
    assert (found.value, found.baseline_value, found.tie) == (0.4, 0.5, False)
    assert found.gap == pytest.approx(0.1)
    said, caveat = summary.sentences(losses)
    assert "reached 0.4 at" in said
    assert caveat.startswith("That is \N{MINUS SIGN}0.1 in loss, from a single seed each; the winner is the best of 2")


def test_a_lead_is_positive_where_less_is_better(losses):
    assert losses.trials.sort_values("macs")["loss"].tolist() == [0.9, 0.5, 0.4]
    assert [(row.value, row.gap) for row in front_table(losses) if row.kind == "search"] == [
        (0.9, None),
        (0.4, pytest.approx(0.1)),
    ]
    assert [(row.value, row.gap) for row in baselines_table(losses)] == [(0.5, pytest.approx(-0.4))]


def test_the_better_stands_higher_in_the_figure(losses):
    info = front_info(losses)
    assert sorted(info.points["value"]) == [0.4, 0.5, 0.9]
    low, high = front_figure(info).layout.yaxis.range
    assert low > 0.9 > 0.4 > high
    assert [value for _, value in info.axes[0].line][:3] == [0.9, 0.5, 0.4]
    assert front_figure(info).layout.yaxis.title.text == "loss"


def test_curves_and_rows_are_in_the_metric_itself(losses):
    assert curves_info(losses)[0].values == (1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)
    assert [row.partition(" · ")[2] for row in operators_info(losses).rows] == [
        LOSS.text(value) for value in losses.front.sort_values("macs")["loss"]
    ]


def test_what_is_defined_by_accuracies_is_left_out(losses):
    assert (progress_info(losses), gain_info(losses), importance_info(losses)) == (None, None, None)
    text = page.render(losses)
    body = text[text.index("<header>") :]
    for shown in ("the line is the best loss", "The hypervolume is drawn of accuracies alone.", ">0.4<"):
        assert shown in body
    for hidden in (" %<", "accuracy [%]", "validation accuracy", "seed noise", "retrain)"):
        assert hidden not in body


def test_a_value_that_is_missing_is_a_dash():
    assert [m.text(math.nan) for m in (ACCURACY, LOSS)] == ["\N{EN DASH}"] * 2
