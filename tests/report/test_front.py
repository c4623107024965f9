import math
from dataclasses import replace

import pytest

from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import BsconvNasError
from bsconv_nas.report.front import front_figure, front_info, save_image
from bsconv_nas.search.record import Objective


@pytest.fixture
def small(writer, network):
    """Two search trials on the front, one dominated, one stopped, one failed; two baselines, one on the front."""
    writer.trial("baseline", network("bsconv_u"), 0.80)
    writer.trial("baseline", network("dsc"), 0.79)
    writer.trial("search", network("bsconv_s"), 0.78)
    writer.trial("search", network("regular", depth_layer2=0), 0.85)
    writer.trial("search", network("regular", depth_layer3=0), 0.84)
    writer.trial("search", network("regular", depth_layer1=0), 0.30, state="stopped", epochs=1)
    writer.trial("search", network("regular"), math.nan, state="failed", epochs=0, cause="loss <b>NaN</b>")
    return writer.view()


def test_groups_tell_states_and_baselines_apart(small):
    points = front_info(small).points
    assert points["group"].tolist() == [
        "baseline bsconv_u",
        "baseline dsc",
        "complete",
        "complete",
        "complete",
        "stopped",
        "failed",
    ]
    assert points["value"].tolist()[:6] == pytest.approx([80, 79, 78, 85, 84, 30])


def test_the_line_is_the_front_over_each_axis_and_ends_at_the_budget(small):
    macs, params, _ = front_info(small).axes
    trials = small.trials.set_index("number")
    assert (macs.column, macs.bounds) == ("macs", (20_000_000,))
    assert macs.line[0] == (trials["macs"][2], pytest.approx(78))
    assert [y for _, y in macs.line] == pytest.approx([78, 79, 80, 85])
    assert [x for x, _ in params.line] == sorted(trials["params"][[2, 0, 4, 3]])
    assert params.bounds == ()


def test_the_line_is_extended_to_the_budget(writer, network):
    writer.trial("search", network("bsconv_s"), 0.78)
    (first, last) = front_info(writer.view()).axes[0].line
    assert (first[1], last) == (pytest.approx(78), (20_000_000, pytest.approx(78)))


def test_what_lies_far_below_stands_at_the_foot(small):
    info = front_info(small)
    assert 76 < info.floor < 78 < 85 < info.top
    assert info.points["shown"].tolist()[4:] == pytest.approx([84, info.floor, info.floor])


def test_the_hover_label_says_what_the_network_is(small):
    label = front_info(small).points["hover"][3]
    trial = small.trials.iloc[3]
    assert label.startswith(f"<b>{trial['key']}</b><br>trial 3 (search, complete), seed 0<br>")
    assert "validation accuracy 85.00 %" in label
    assert "<br>layer2: 2 regular<br>layer3: 6 regular<br>" in label
    assert label.endswith("channels: 16 · 32 · 64<br>blocks kept: 3 · 0 · 2")


def test_a_hover_label_escapes_the_cause_of_a_failure(small):
    assert front_info(small).points["hover"][6].endswith("<br>loss &lt;b&gt;NaN&lt;/b&gt;")


def test_a_switch_offers_every_cost(small):
    figure = front_figure(front_info(small))
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["MACs", "Parameters", "Memory"]
    assert all(len(button.args[0]["x"]) == len(figure.data) for button in buttons)
    assert buttons[1].args[1]["xaxis.title.text"] == "Parameters (logarithmic)"


def test_baselines_have_their_decompositions_colour(small):
    colors = {trace.name: trace.marker.color for trace in front_figure(front_info(small)).data}
    assert (colors["baseline bsconv_u"], colors["baseline dsc"]) == ("#009E73", "#E69F00")


def test_the_runs_own_cost_comes_first(small):
    view = replace(small, objectives=(Objective("val_accuracy", "max"), Objective("params", "min")), budget=Budget())
    assert [axis.column for axis in front_info(view).axes] == ["params", "macs", "memory"]


def test_a_band_has_two_lines(small):
    view = replace(small, budget=Budget(macs=["5M", "20M"]))
    assert front_info(view).axes[0].bounds == (5_000_000, 20_000_000)
    budget = next(trace for trace in front_figure(front_info(view)).data if trace.name == "budget")
    assert budget.x == (5_000_000, 5_000_000, None, 20_000_000, 20_000_000, None)


def test_retrained_networks_have_error_bars(view):
    figure = front_figure(front_info(view))
    bars = next(trace for trace in figure.data if trace.name == "retrained (test, mean ± std)")
    assert len(bars.y) == len(bars.error_y.array) == 3


def test_a_picture_needs_a_trial(writer, tmp_path):
    with pytest.raises(BsconvNasError, match="needs a trial, but run 'cifar10-1' has none yet"):
        save_image(writer.view(), tmp_path / "front.png")


def test_a_picture_without_a_browser_says_what_is_missing(view, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))
    with pytest.raises(BsconvNasError, match="needs kaleido and a Chrome or Chromium"):
        save_image(view, tmp_path / "front.png")


@pytest.mark.browser
def test_a_picture_is_a_png_or_an_svg(view, tmp_path):
    save_image(view, tmp_path / "front.png")
    save_image(view, tmp_path / "front.svg")
    assert (tmp_path / "front.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "accuracy [%]" in (tmp_path / "front.svg").read_text()
