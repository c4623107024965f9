import pytest

from bsconv_nas.report.curves import curves_figure, curves_info


def test_a_curve_a_trial_with_its_group(writer, network):
    writer.trial("baseline", network("dsc"), 0.70, epochs=2)
    writer.trial("search", network("bsconv_u"), 0.80, epochs=3)
    writer.trial("search", network("bsconv_s"), 0.30, state="stopped", epochs=1)
    writer.trial("search", network("regular"), 0.30, state="failed", epochs=0)
    curves = curves_info(writer.view())
    assert [(c.number, c.group) for c in curves] == [(0, "baseline dsc"), (1, "front"), (2, "search")]
    assert (curves[1].epochs, curves[1].seconds) == ((1, 2, 3), (1.0, 2.0, 3.0))
    assert curves[1].values[-1] == pytest.approx(80)


def test_lines_of_a_group_are_one_trace_with_gaps(writer, network):
    writer.trial("search", network("bsconv_s"), 0.30, epochs=1)
    writer.trial("search", network("bsconv_u"), 0.80, epochs=2)
    figure = curves_figure(curves_info(writer.view()))
    (trace,) = figure.data
    assert (trace.name, trace.x) == ("on the front", (1, None, 1, 2, None))
    assert len(trace.customdata) == len(trace.y) == 5
    assert figure.layout.updatemenus[0].buttons[1].args[0]["x"] == [[1.0, None, 1.0, 2.0, None]]


def test_retrainings_are_no_search_curves(view):
    kinds = {view.record.trials[curve.number].started.kind for curve in curves_info(view)}
    assert kinds == {"baseline", "search"}
