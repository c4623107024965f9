"""Latency tables: units, what times them, what they predict, and the sentences that refuse the rest."""

import dataclasses
import gc
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_latencies import made_up, rows_of, spaced
from odd_networks import ODD
from small_spaces import small_resnet, tiny_resnet
from torchvision import models

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import LATENCY, CostModel
from bsconv_nas.cost.latency import LatencyTable, Setting, Unit, cost_model
from bsconv_nas.cost.latency_cover import visits
from bsconv_nas.cost.latency_fit import correction, drift, unit_latencies
from bsconv_nas.cost.latency_measure import Stopwatch, lines, main, timed
from bsconv_nas.cost.latency_units import kind_of, network_units, reachable, work
from bsconv_nas.errors import LatencyError
from bsconv_nas.latency import measure, plan
from bsconv_nas.network.build import build
from bsconv_nas.space.table import Table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("factory", "size", "scope"),
    [
        (small_resnet, 8, "layer"),
        (models.resnet18, 64, "network"),
        (models.mobilenet_v2, 64, "network"),
        (models.shufflenet_v2_x0_5, 64, "network"),  # splits tensors
        (models.convnext_tiny, 64, "network"),  # multiplies by bare parameters
        *(
            (ODD[name].factory, ODD[name].input_size[-1], "layer")
            for name in ("squeeze", "functional", "pre-activation")
        ),
    ],
)
def test_a_built_network_runs_the_units_that_its_table_says(factory: Callable[[], Any], size: int, scope: str) -> None:
    table = spaced(factory, size, scope)
    units = set(reachable(table))
    for architecture in table.architectures(rows_of(table, 2)):
        network = build(factory(), table, architecture).eval()
        with torch.inference_mode():
            found = timed(Stopwatch(network, lambda: 0), units, torch.zeros(1, 3, size, size))
        counted = Counter({key: len(nodes) for key, nodes in found.items()})
        assert counted == Counter(network_units(table, architecture.indices))


def test_work_of_units_is_that_of_the_cost_model() -> None:
    table = spaced()
    for row in table.canonical(rows_of(table, 20)):
        macs = sum(work(key)[0] for key in network_units(table, row.tolist()))
        assert macs == CostModel(table).costs(row[None], ("macs",))["macs"][0]


def test_a_stopwatch_times_every_operation_and_nothing_else() -> None:
    ticks = iter(range(10**6))
    network = tiny_resnet().eval()
    watch = Stopwatch(network, lambda: next(ticks))
    image = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(watch.run(image), network(image))
    assert set(watch.times.values()) == {1}
    assert next(ticks) == 2 * len(watch.times)


def test_networks_are_chosen_until_every_unit_ran_often_enough() -> None:
    table = spaced()
    units = reachable(table)
    chosen = list(visits(table, units, Counter(dict.fromkeys(units, 2)), 5, np.random.default_rng(0)))
    ran = Counter(key for indices, _ in chosen for key in set(network_units(table, indices)))
    assert all(ran[key] >= 2 for key in units)
    assert sum(is_whole for _, is_whole in chosen) == 5
    assert len(chosen) < len(units) / 3
    assert not list(visits(table, units, Counter(), 0, np.random.default_rng(0)))


def line_of(table: Table, row: list[int], times: dict[str, float], slow: float = 1.0, whole: float = 0.0) -> dict:
    counts = Counter(network_units(table, row))
    units = {key: [times[key] * slow] * 3 + [8, count] for key, count in counts.items()}
    out = {"network": row, "reference_us": 100 * slow, "units": units}
    return out | ({"whole": {"p50_us": whole * slow, "spread": 0.01}} if whole else {})


def test_drift_is_taken_out_of_units_and_wholes() -> None:
    table = spaced()
    rng = np.random.default_rng(0)
    times = {key: float(rng.uniform(5, 50)) for key in reachable(table)}
    rows = table.canonical(rows_of(table, 60)).tolist()
    slow = [1.0 if i < 40 else 1.5 for i in range(60)]
    lines = [line_of(table, row, times, s, 1.0) for row, s in zip(rows, slow, strict=True)]
    np.testing.assert_allclose(drift(lines), slow)
    for key, unit in unit_latencies(lines, ()).items():
        assert unit.p50_us == pytest.approx(times[key], abs=1e-3)
        assert unit.spread < 1e-3


def test_the_correction_finds_factors_and_constants_and_stays_at_the_sum_without_them() -> None:
    table = spaced()
    rng = np.random.default_rng(0)
    times = {key: float(rng.uniform(5, 50)) for key in reachable(table)}
    units = {key: Unit(value, value, 0.0, 2) for key, value in times.items()}
    rows = table.canonical(rows_of(table, 80)).tolist()

    def taken(row: list[int], factor: float, constant: float) -> float:
        parts = (times[k] * (factor if kind_of(k) == "pointwise" else 1) for k in network_units(table, row))
        return sum(parts) + constant

    for factor, constant in ((0.8, 15.0), (1.0, 0.0)):
        lines = [line_of(table, row, times, whole=taken(row, factor, constant)) for row in rows]
        found = correction(lines[:60], units)
        fitted = LatencyTable("s", {}, Setting(), units, found)
        for row in rows[60:]:
            predicted = found.constant_us + sum(map(fitted.latency_us, network_units(table, row)))
            assert predicted == pytest.approx(taken(row, factor, constant), rel=0.01)
        assert found.networks == 60


def test_units_that_were_not_timed_follow_from_those_of_their_kind_and_are_marked() -> None:
    table = spaced()
    keys = sorted(reachable(table))
    times = {key: 3.0 * (1 + work(key)[0]) ** 0.5 * (1 + work(key)[1]) ** 0.25 for key in keys}
    left = keys[::7]
    lines = [
        {"reference_us": 1.0, "units": {key: [t, t, t, 8, 1] for key, t in times.items() if key not in left}},
    ]
    found = unit_latencies(lines, keys)
    assert {key for key, unit in found.items() if unit.networks == 0} == set(left)
    for key in left:
        if sum(kind_of(other) == kind_of(key) for other in keys if other not in left) >= 4:
            assert found[key].p50_us == pytest.approx(times[key], rel=0.02), key


def test_a_prediction_is_the_sum_over_units_and_a_constant() -> None:
    table = spaced()
    latencies = made_up(table)
    model = cost_model(table, latencies)
    rows = table.canonical(rows_of(table, 50))
    costs = model.costs(rows)
    assert list(costs) == [*CostModel(table).columns, LATENCY]
    for row, predicted in zip(rows.tolist(), costs[LATENCY], strict=True):
        expected = 12_500 + sum(round(1000 * latencies.latency_us(key)) for key in network_units(table, row))
        assert predicted == expected
    one = model.cost(table.architecture(rows[0].tolist()))
    assert one.known()[LATENCY] == costs[LATENCY][0]
    shares = model.shares(LATENCY, rows[0])
    assert sum(value for _, value in shares) == costs[LATENCY][0]


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = made_up(spaced())
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    assert sum(line.startswith('  "conv ') for line in (tmp_path / "t.json").read_text().splitlines()) > 20


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


UNIT = "relu 4@8x8"


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf, "3", None])
@pytest.mark.parametrize("field", ["p50_us", "p90_us"])
def test_times_that_are_none_are_refused(tmp_path: Path, field: str, value: object) -> None:
    made_up(spaced()).save(tmp_path / "t.json")
    changed(tmp_path / "t.json", lambda data: data["units"][UNIT].update({field: value}))
    with pytest.raises(LatencyError, match=rf"must be positive numbers, but {field} of '{UNIT}' is "):
        LatencyTable.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data.update(format=9), r"must be of format 1, but is of 9: measure it anew\."),
        (lambda data: data.pop("units"), r"must be what bsconv-nas latency measure writes, but: 'units'\."),
        (
            lambda data: data["setting"].update(colour=1),
            r"bsconv-nas latency measure writes, but: .*colour",
        ),
        (lambda data: data["setting"].update(backend="compile"), r"cpu compile fp32 is not: take one of"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str) -> None:
    made_up(spaced()).save(tmp_path / "t.json")
    with pytest.raises(LatencyError, match=sentence):
        LatencyTable.load(changed(tmp_path / "t.json", change))


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match=r"No latency table '.*none\.json': check the path"):
        LatencyTable.load(tmp_path / "none.json")


def test_a_table_of_another_space_is_refused_by_what_it_lacks() -> None:
    latencies = made_up(spaced())
    other = spaced(size=16)
    with pytest.raises(LatencyError, match=r"space 'made up' and lacks \d+ units .*\(images of 3x16x16\)"):
        cost_model(other, latencies)
    key = sorted(latencies.units)[0]
    short = {k: unit for k, unit in latencies.units.items() if k != key}
    with pytest.raises(LatencyError, match=r"lacks 1 units .*, 'adaptiveavgpool2d .*: measure them by"):
        cost_model(spaced(), dataclasses.replace(latencies, units=short))


def test_a_table_that_was_measured_otherwise_is_refused_by_what_differs() -> None:
    table = made_up(spaced())
    table.check({"precision": "fp32", "processor": "none", "threads": 1}, "t.json")
    for asked, sentence in (
        ({"threads": 4}, r"'t\.json' must be measured with latency\.threads = 4, but was with 1"),
        ({"processor": "AMD"}, r"latency\.processor = 'AMD', but was with 'none'"),
    ):
        with pytest.raises(LatencyError, match=sentence):
            table.check(asked, "t.json")


@cache
def digits() -> SearchSpace:
    return SearchSpace.load(ROOT / "search_spaces" / "digits_resnet.toml")


def task_of(setting: Setting, visits: list[Any]) -> dict[str, Any]:
    return {
        "base": dataclasses.asdict(digits().base),
        "table": digits().table.to_json(),
        "setting": dataclasses.asdict(setting),
        "units": sorted(reachable(digits().table)),
        "spread": 0.01,
        "passes": 8,
        "visits": visits,
    }


SETTINGS = [Setting(), Setting(batch=2), Setting(precision="bf16", channels_last=True)]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_worker_times_every_unit_of_a_network_and_some_as_wholes(setting: Setting) -> None:
    threads = torch.get_num_threads()
    row = digits().table.base.indices
    task = task_of(setting, [[row, True], [row, False]])
    whole, other = lines(json.loads(json.dumps(task)))
    torch.set_num_threads(threads)
    assert whole["network"] == list(row)
    assert "whole" not in other
    counts = Counter(network_units(digits().table, row))
    for line in (whole, other):
        assert {key: times[-1] for key, times in line["units"].items()} == counts
        assert all(0 < p20 <= p50 <= p90 and n >= 8 for p20, p50, p90, n, _ in line["units"].values())
    assert whole["whole"]["p50_us"] > 0


def test_measuring_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """The first time it ends after a network; a torn line is what a kill leaves."""
    space = digits()
    asked = plan(space, "digits", Setting(), tmp_path)
    before = len(asked.left())
    table = measure(asked, 1e-6)
    assert sum(unit.networks > 0 for unit in table.units.values()) > 10
    assert table.units.keys() == reachable(space.table).keys()
    assert LatencyTable.load(asked.path) == table
    with asked.log.open("a") as log:
        log.write('{"network": [0')
    assert len(asked.lines()) == 1
    assert asked.log.read_text().count("\n") == 1
    assert len(asked.left()) < before
    assert table.setting.name in asked.path.name
    assert str(torch.__version__).split("+")[0] in asked.path.name


def test_a_network_that_cannot_be_timed_is_answered_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(Setting(), [])
    task["base"]["factory"] = "torchvision.models:resnet18"
    monkeypatch.setattr("sys.stdin", StringIO(json.dumps(task)))
    main()
    assert json.loads(capsys.readouterr().out)["error"].startswith("Factory 'torchvision.models:resnet18' must accept")


def test_a_unit_that_its_space_does_not_know_is_refused() -> None:
    task = task_of(Setting(), [[digits().table.base.indices, False]])
    task["units"].remove("relu 16@8x8")
    with pytest.raises(ValueError, match="'relu 16@8x8' of a built network is no unit of its space"):
        list(lines(task))
    assert gc.isenabled()


@pytest.mark.parametrize(("device", "backend"), [("cuda", "eager"), ("cpu", "compile"), ("cpu", "onnxruntime")])
def test_what_nobody_has_tested_is_refused(device: Any, backend: Any) -> None:
    with pytest.raises(LatencyError, match=f"and {device} {backend} fp32 is not: take one of cpu eager bf16, cpu"):
        Setting(device, backend)
