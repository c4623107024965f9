import io
import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from small_search import new_run, small_space
from test_calibration import constant, record_of

import bsconv_nas as nas
from bsconv_nas.calibrate import calibrate, planned, print_calibration
from bsconv_nas.cli import main
from bsconv_nas.errors import ExperimentError
from bsconv_nas.run import Run
from bsconv_nas.search.record import Ended, EpochDone, Note, Record
from bsconv_nas.search.scheduler import scheduler

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

EPOCHS = 3  # of the small search


def run_of(path: Path, curves: list[list[float]], macs: list[int], *last: str) -> Run:
    """Return a run that knows these curves; `last` are its closing notes."""
    store = new_run(path, small_space(), trials=len(curves))
    indices = (0,) * len(small_space().table.dimensions)
    with store.lock():
        store.append(Note("planned", {"baselines": 0, "trials": len(curves)}))
        for trial in record_of(curves, macs).trials.values():
            started = {**trial.started.costs, "params": 1, "memory": 1}
            store.append(type(trial.started)(trial.number, "search", trial.started.key, indices, started, 0))
            for epoch, metrics in enumerate(trial.curve, 1):
                store.append(EpochDone(trial.number, epoch, metrics, float(epoch)))
            store.append(Ended(trial.number, "complete", trial.epochs, trial.metrics, float(trial.epochs)))
        for note in last:
            store.append(Note(note))
    return Run(store)


def printed(run: Run) -> str:
    out = io.StringIO()
    print_calibration(Console(file=out, width=120, highlight=False), run)
    return out.getvalue()


def advised(text: str) -> tuple[str, dict[str, int]]:
    """Return the scheduler of the printed line as an experiment reads it."""
    line = next(line for line in text.splitlines() if line.startswith("scheduler = "))
    search = nas.Experiment.model_validate({"name": "x", "space": "x", "search": tomllib.loads(line)}).search
    return search.scheduler.name, search.scheduler.params


def test_what_is_printed(tmp_path: Path) -> None:
    text = printed(run_of(tmp_path / "run", constant(24, EPOCHS), [1000] * 24, "finished"))
    assert "24 networks with all 3 epochs, 276 pairs of like cost: within 10% of their MACs\n" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "1.00", "1.00", "to", "1.00", "100%", "yes"] in rows
    assert ["2", "1.00", "1.00", "to", "1.00", "100%", "yes"] in rows
    assert any(row[:4] == ["pareto_asha,", "eta", "2", "1"] for row in rows)
    name, params = advised(text)
    assert name == "pareto_asha"
    scheduler(name, params, EPOCHS)  # it holds


def test_pairs_that_were_taken_wider_are_said_to_flatter(tmp_path: Path) -> None:
    text = printed(
        run_of(tmp_path / "run", constant(24, EPOCHS), [round(1000 * 1.2**i) for i in range(24)], "finished")
    )
    assert "within 50% of their MACs, wider than 10 % for want of pairs, which flatters\n" in text


def test_none_is_advised_where_no_rung_can_be_trusted(tmp_path: Path) -> None:
    curves = [[float(11 * i % 24), float(5 * i % 24), i / 24] for i in range(24)]
    text = printed(run_of(tmp_path / "run", curves, [1000] * 24, "finished"))
    assert advised(text) == ("none", {})
    assert "# no rung can be trusted\n" in text


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", constant(9, EPOCHS), [1000] * 9, "interrupted")
    words = printed(run).split()
    assert words[:5] == ["not", "finished;", "go", "on", "with:"]
    assert " ".join(words[5:]) == f"bsconv-nas resume {run.path} bsconv-nas calibrate {run.path}"


def test_one_epoch_leaves_nothing_to_stop(own_project: Path) -> None:
    asked = nas.Experiment.load(own_project / "experiments/tiny.toml", ["recipe.epochs=1"])
    with pytest.raises(
        ExperimentError, match=r"needs recipe\.epochs of at least 2, but got 1: there is nothing to stop"
    ):
        calibrate(asked, own_project / "new")
    assert not (own_project / "new").exists()


def test_a_calibration_is_a_search_that_stops_nobody(own_project: Path) -> None:
    """Paths of the file still lead where they led."""
    asked = nas.Experiment.load(own_project / "experiments/tiny.toml", ["search.scheduler=asha"])
    plan = planned(asked, 9)
    assert plan.name == "tiny-calibration"
    assert (plan.search.sampler.name, plan.search.scheduler.name) == ("stratified", "none")
    assert (plan.search.trials, plan.search.baselines, plan.search.seed) == (9, 0, asked.search.seed)
    assert plan.search.objectives == asked.search.objectives
    assert plan.to_json(own_project / "runs/x")["data"]["root"] == asked.to_json(own_project / "runs/x")["data"]["root"]
    assert planned(plan, 9).budget == asked.budget


@pytest.mark.parametrize("options", [["--run", "new"], ["--set", "search.seed=1"]])
def test_a_run_is_read_as_it_is(
    own_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.chdir(own_project)
    monkeypatch.setattr(sys, "argv", ["bsconv-nas", "calibrate", "runs/tiny", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = "error: The run 'runs/tiny' is read as it is, but --run or --set was given: leave it out.\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_a_calibration_that_was_interrupted_is_resumed_and_printed(
    own_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presses = iter([True])

    def press(record: Record) -> None:
        if len(record.trials) == 3 and next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(own_project)
    run = calibrate(nas.Experiment.load("experiments/tiny.toml"), "new", networks=12, on_change=press)
    assert run.record.notes[-1].what == "interrupted"
    run = nas.resume(run)
    assert [trial.state for trial in run.record.trials.values()] == ["complete"] * 12
    assert {(trial.started.kind, trial.epochs) for trial in run.record.trials.values()} == {("search", 2)}
    monkeypatch.setattr(sys, "argv", ["bsconv-nas", "calibrate", "new"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "12 networks with all 2 epochs, " in text
    assert advised(text)[0] in ("none", "pareto_asha")
