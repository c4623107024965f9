"""Tables and progress, as a terminal and as a file see them."""

import dataclasses
import itertools
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import bsconv_nas as nas
from bsconv_nas import show
from bsconv_nas.search.record import Ended, EpochDone, Event, Note, Record, Started
from bsconv_nas.space.summary import Column, Summary

EPOCHS = 2


def experiment(**changes: Any) -> nas.Experiment:
    goals = [{"name": "val_accuracy", "direction": "max"}, {"name": "macs", "direction": "min"}]
    search = {"trials": 4, "objectives": goals}
    return nas.Experiment.model_validate({"name": "x", "space": "x.toml", "search": search, **changes})


def plain() -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, width=120, highlight=False), file


def trial(number: int, accuracy: float, macs: int, state: str = "complete", kind: str = "search") -> list[Event]:
    """Return the events of a trial of two epochs, 10 s each."""
    costs = {"macs": macs, "params": 1, "memory": 1}
    metrics = {"val_accuracy": accuracy}
    at = 100.0 + 20 * number
    return [
        Started(number, kind, f"key{number}", (), costs, number, time=at),
        EpochDone(number, 1, {"val_accuracy": accuracy / 2}, 10.0, time=at + 10),
        EpochDone(number, 2, metrics, 20.0, time=at + 20),
        Ended(number, state, 2, metrics if state == "complete" else {}, 20.0, "NaN" * (state == "failed"), at + 20),
    ]


SEARCH: list[Event] = [
    Note("planned", {"baselines": 1, "trials": 3}, time=100.0),
    *trial(0, 0.5, 2_000_000, kind="baseline"),
    *trial(1, 0.25, 1_000_000),
    *trial(2, 0.9, 4_000_000),
    *trial(3, 0.1, 100, "failed"),
]


class Clock:
    """Stands for the monotonic clock; it is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(show, "time", clock)
    return clock


def follow(console: Console, events: list[Event], clock: Clock, seconds: float, kind: str = "search") -> None:
    """Show the state after each event, `seconds` apart."""
    record = Record()
    with show.Progress(console, experiment(), kind) as progress:
        for event in events:
            record.add(event)
            progress(record)
            clock.now += seconds


def test_a_piped_search_is_one_line_a_trial(clock: Clock) -> None:
    console, file = plain()
    follow(console, SEARCH, clock, seconds=10.0)
    assert file.getvalue().splitlines() == [
        "0/4 no result yet, front of 0",
        "1/4 best 50.00% at 2 M MACs, front of 1, ETA 1 min 00 s; front: 50.00% at 2 M MACs",
        "2/4 best 50.00% at 2 M MACs, front of 2, ETA 40 s; front: 25.00% at 1 M MACs, 50.00% at 2 M MACs",
        "3/4 best 90.00% at 4 M MACs, front of 3, ETA 20 s; front: 25.00% at 1 M MACs, 50.00% at 2 M MACs, 90.00% "
        "at 4 M MACs",
        "4/4 best 90.00% at 4 M MACs, front of 3, 1 failed",
    ]


def test_plain_lines_are_rare_but_the_last_is_sure(clock: Clock) -> None:
    console, file = plain()
    follow(console, SEARCH, clock, seconds=0.5)
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["0/4", "2/4", "4/4"]


def test_looking_at_a_long_record_takes_a_fifth_of_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def slow(record: Record, experiment: nas.Experiment) -> show._Look:
        looks.append(clock.now)
        clock.now += 1.0
        return show._look_at_search(record, experiment)

    monkeypatch.setitem(show._LOOKS, "search", slow)
    console, file = plain()
    events = [event for number in range(30) for event in trial(number, 0.5, 9)]
    follow(console, [Note("planned", {"baselines": 0, "trials": 30}), *events], clock, seconds=0.1)
    assert min(b - a for a, b in itertools.pairwise(looks[:-1])) >= 5.0
    assert file.getvalue().splitlines()[-1].startswith("30/30 ")


def test_a_long_trial_is_heard_of(clock: Clock) -> None:
    console, file = plain()
    follow(console, SEARCH[:4], clock, seconds=61.0)
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["0/4"] * 4


def test_a_terminal_shows_one_live_picture(clock: Clock) -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=30)
    follow(console, SEARCH, clock, seconds=0.1)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    last = shown.rstrip().splitlines()[-2:]
    assert re.search(r"4/4 \d:\d\d:\d\d best 90.00% at 4 M MACs, front of 3, 1 failed", last[0])
    assert last[1].strip() == "front: 25.00% at 1 M MACs, 50.00% at 2 M MACs, 90.00% at 4 M MACs"
    assert "\x1b[?25l" in file.getvalue()  # the cursor is hidden while it lives ...
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")  # ... and shown in the end


@pytest.mark.parametrize("terminal", [False, True])
def test_a_refusal_before_the_first_event_shows_nothing(terminal: bool) -> None:
    file = StringIO()
    with show.Progress(Console(file=file, force_terminal=terminal), experiment()):
        pass
    assert file.getvalue() == ""


def test_a_piped_retraining_counts_epochs(clock: Clock) -> None:
    console, file = plain()
    retraining = [*SEARCH, Note("retraining", {"trainings": 2}, time=300.0), *trial(20, 0.8, 9, kind="retrain")]
    record = Record(SEARCH)
    with show.Progress(console, experiment(recipe={"epochs": EPOCHS}), "retrain") as progress:
        for event in retraining[len(SEARCH) :]:
            record.add(event)
            progress(record)
            clock.now += 61.0
    assert file.getvalue().splitlines() == [
        "0/2 retraining, epoch 0 of 4",
        "0/2 retraining, epoch 0 of 4",
        "0/2 retraining, epoch 1 of 4, ETA 30 s",
        "0/2 retraining, epoch 2 of 4, ETA 20 s",
        "1/2 retraining, epoch 2 of 4, ETA 20 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7265, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_a_summary_has_bars_for_what_is_there() -> None:
    columns = tuple(
        Column(name, 1_000, 5_000, (1e3, 2e3, 3e3, 4e3, 5e3), (300, 1, 0, 30)) for name in ("macs", "params", "memory")
    )
    console, file = plain()
    show.print_summary(console, "x[1].toml", (3, 32, 32), Summary((), (), (), 10**13, columns))
    lines = file.getvalue().splitlines()
    assert lines[0] == "No operator varies in this space: the base has no convolution."
    assert lines[1] == "x[1].toml: 1e+13 distinct networks for images of 3x32x32"
    assert "costs of all networks, and of 331 drawn at random:" in lines
    start = lines.index("macs: from 1,000 (1 K) to 5,000 (5 K) MACs") + 1
    assert lines[start : start + 4] == [
        "       1 K to 2 K         300 ##############################",
        "       2 K to 3 K           1 #",
        "       3 K to 4 K           0",
        "       4 K to 5 K          30 ###",
    ]


def test_a_front_names_the_lead_over_uniform_networks(project: Path) -> None:
    run = nas.load_run(project / "runs/tiny")
    console, file = plain()
    show.print_front(console, run)
    baselines = run.trials[run.trials["kind"] == "baseline"]
    for row in run.front.itertuples():
        (line,) = (line for line in file.getvalue().splitlines() if row.key in line)
        cheaper = baselines.loc[baselines["macs"] <= row.macs, "val_accuracy"]
        lead = f"{100 * (row.val_accuracy - cheaper.max()):+.2f}"
        assert (lead in line) == (row.kind == "search" and len(cheaper) > 0)


def test_an_empty_front_says_so(own_project: Path) -> None:
    (own_project / "runs/tiny/trials.jsonl").write_text("")
    console, file = plain()
    run = nas.load_run(own_project / "runs/tiny")
    show.print_run(console, run)
    assert file.getvalue().splitlines() == [
        "No trial is complete yet.",
        f"run folder: {run.path}",
        f"next: bsconv-nas resume {run.path}",
    ]


@pytest.mark.parametrize(
    ("notes", "lines"),
    [
        ([Note("retrained"), Note("verdict", {"sentences": ["At 4 M.", "At 2 M."]})], ["At 4 M.", "At 2 M."]),
        ([Note("verdict", {"sentences": []})], ["No comparison: no uniform network of like cost was retrained."]),
        (
            [Note("verdict", {"sentences": ["Old."]}), Note("interrupted")],
            ["interrupted; go on with: bsconv-nas retrain RUN"],
        ),
    ],
)
def test_a_verdict_or_how_to_get_one(own_project: Path, notes: list[Note], lines: list[str]) -> None:
    run = nas.load_run(own_project / "runs/tiny")
    with run.store.lock():
        for note in notes:
            run.store.append(note)
    console, file = plain()
    show.print_verdict(console, nas.load_run(run.path))
    assert file.getvalue().splitlines() == [line.replace("RUN", str(run.path)) for line in lines]


def test_a_status_says_of_what_trials_failed(own_project: Path) -> None:
    run = nas.load_run(own_project / "runs/tiny")
    started = run.record.trials[0].started
    with run.store.lock():
        for number, cause in enumerate(("KeyError: 'a'", "WorkerDied: [red]", "KeyError: 'a'"), 6):
            run.store.append(dataclasses.replace(started, number=number))
            run.store.append(Ended(number, "failed", 0, {}, 0.0, cause))
    console, file = plain()
    show.print_status(console, nas.load_run(run.path))
    assert [line for line in file.getvalue().splitlines() if " failed: " in line] == [
        "2 failed: KeyError: 'a'",
        "1 failed: WorkerDied: [red]",
    ]


def test_a_name_is_no_markup(own_project: Path) -> None:
    place = own_project / "runs/[red]tiny"
    (own_project / "runs/tiny").rename(place)
    console, file = plain()
    show.print_status(console, nas.load_run(place))
    assert file.getvalue().startswith("[red]tiny: finished")
    assert json.loads((place / "space.json").read_text())
