"""A search under a latency budget: what is recorded, shown and kept, without training."""

from pathlib import Path

import pytest
from made_up_latencies import made_up
from small_search import new_run, small_space, work_alone

from bsconv_nas.cost.analytic import LATENCY
from bsconv_nas.cost.budget import Budget
from bsconv_nas.cost.latency import LatencyTable, Setting
from bsconv_nas.errors import LatencyError
from bsconv_nas.latency import Plan
from bsconv_nas.run import Run
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.latencies import keep_latencies, kept_latencies, measured_latencies, read_latencies
from bsconv_nas.search.record import Objective

GOALS = [{"name": "val_accuracy", "direction": "max"}, {"name": "latency_ms", "direction": "min"}]


def experiment(tmp_path: Path, text: str) -> Experiment:
    (tmp_path / "x.toml").write_text(f'space = "s.toml"\n{text}')
    return Experiment.load(tmp_path / "x.toml")


@pytest.mark.parametrize("sampler", ["random", "additive", "tpe"])
def test_a_search_keeps_a_latency_budget_and_takes_latency_as_an_objective(tmp_path: Path, sampler: str) -> None:
    plain = small_space()
    space = plain.with_latencies(made_up(plain.table))
    limit = max(space.costs(space.sample(20))[LATENCY]) / 1e6 - 0.05
    budget = Budget(latency_ms=limit, macs="10M")
    store = new_run(tmp_path / "run", space, trials=6, baselines=2, objectives=GOALS, sampler=sampler)
    keep_latencies(store.path, space.latencies)
    record = work_alone(store, space.feasible(budget))
    assert len(record.trials) >= 6
    for trial in record.trials.values():
        assert 0 < trial.started.costs[LATENCY] <= limit * 1e6
    run = Run(store)
    assert run.experiment.search.objectives == (Objective("val_accuracy", "max"), Objective(LATENCY, "min"))
    assert run.space.latencies == space.latencies
    assert run.front[LATENCY].is_monotonic_increasing
    predicted = run.space.costs([run.architecture(number) for number in run.trials["number"]])[LATENCY]
    assert run.trials[LATENCY].tolist() == predicted.tolist()
    assert run.view().costs[0] == LATENCY
    assert run.view().largest[LATENCY] >= predicted.max()


def test_what_no_table_is_named_for_is_measured_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, space = [], small_space()

    def measured(plan: Plan) -> LatencyTable:
        asked.append(plan)
        return made_up(plan.space.table)

    monkeypatch.setattr("bsconv_nas.latency.measure", measured)
    text = '[budget]\nlatency_ms = 3.0\n[latency]\nprecision = "bf16"\nbatch = 2\n'
    assert measured_latencies(experiment(tmp_path, text), space) == made_up(space.table)
    (plan,) = asked
    assert (plan.name, plan.setting, plan.path.parent) == ("s", Setting(precision="bf16", batch=2), Path("latency"))
    assert plan.path.name.startswith("s-1x8x8-")
    assert measured_latencies(experiment(tmp_path, ""), space) is None
    assert len(asked) == 1


def test_a_latency_budget_without_a_table_is_refused() -> None:
    with pytest.raises(LatencyError, match=r"A budget of latency <= 3 ms needs measured latencies: give"):
        small_space().sample(1, Budget(latency_ms=3))


def test_a_table_is_found_beside_the_file_and_recorded_by_its_name(tmp_path: Path) -> None:
    made_up(small_space().table).save(tmp_path / "t.json")
    asked = experiment(tmp_path, '[budget]\nlatency_ms = 3.0\n[latency]\ntable = "t.json"\nthreads = 1\n')
    found = read_latencies(asked)
    assert found == LatencyTable.load(tmp_path / "t.json")
    assert asked.to_json()["latency"]["table"] == "t.json"
    keep_latencies(tmp_path, found)
    assert kept_latencies(tmp_path) == found
    assert asked.asks_latency


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("", False),
        ('[budget]\nmacs = "1M"', False),
        ("[budget]\nlatency_ms = 1", True),
        ('[[search.objectives]]\nname = "latency_ms"\ndirection = "min"', True),
    ],
)
def test_latencies_are_measured_only_where_they_are_asked_for(tmp_path: Path, text: str, asks: bool) -> None:
    assert experiment(tmp_path, text).asks_latency == asks
    assert read_latencies(experiment(tmp_path, text)) is None
