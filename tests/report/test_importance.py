import numpy as np
import pytest

from bsconv_nas.report.importance import importance_figure, importance_info


def test_the_dimension_that_decides_comes_first(writer, feasible):
    names = writer.table.names
    for architecture in feasible.sample(40, np.random.default_rng(0)):
        kept = writer.table.describe(architecture)["depth.layer2"]
        writer.trial("search", architecture, 0.5 + 0.1 * kept, epochs=1)
    info = importance_info(writer.view())
    assert (info.names[0], info.kinds[0], info.trials) == ("depth.layer2", "blocks kept", 40)
    assert info.shares[0] > 0.8
    assert len(info.names) == 20
    assert set(info.names) <= set(names)
    assert sum(len(bar.x) for bar in importance_figure(info).data) == 20


def test_a_long_run_is_thinned_evenly(writer, feasible, monkeypatch):
    monkeypatch.setattr("bsconv_nas.report.importance.MAX_TRIALS", 20)
    for i, architecture in enumerate(feasible.sample(41, np.random.default_rng(0))):
        writer.trial("search", architecture, 0.5 + i / 100, epochs=1)
    assert importance_info(writer.view()).trials == 14


@pytest.mark.parametrize(("trials", "accuracies"), [(0, ()), (9, (0.5, 0.6)), (12, (0.5,))])
def test_too_few_trials_or_no_variation_say_nothing(writer, feasible, trials, accuracies):
    for i, architecture in enumerate(feasible.sample(trials, np.random.default_rng(0))):
        writer.trial("search", architecture, accuracies[i % len(accuracies)], epochs=1)
    assert importance_info(writer.view()) is None
