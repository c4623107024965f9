"""What the command line prints: tables, a progress line, a verdict; no numbers are made here."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable
from rich.text import Text

from bsconv_nas.cost.budget import format_quantity
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Note, Objective, Record, State, Trial
from bsconv_nas.search.status import Status, status
from bsconv_nas.space.summary import Column, Summary
from bsconv_nas.space.unvaried import why_no_operator

if TYPE_CHECKING:
    from bsconv_nas.report.measure import Measure
    from bsconv_nas.report.tables import Row
    from bsconv_nas.run import Run

__all__ = ["Progress", "duration", "print_front", "print_run", "print_status", "print_summary", "print_verdict"]

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal and trials end
EPOCHS_EVERY = 60.0  # seconds between lines where none ends
PAUSE = 4  # times as long as a look at the record took, which grows with its trials, is none at the next events
ENDED: tuple[State, ...] = ("complete", "stopped", "failed")
WHOLE = ("key", "kind")  # columns that must not be broken: they are copied
BAR = 30  # characters of a histogram's longest bar


def _table(*headers: str) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header in WHOLE)
    return table


def print_summary(console: Console, name: str, input_size: tuple[int, ...], summary: Summary) -> None:
    """Print a search space, and first of all that no operator varies in it, where none does."""
    if said := why_no_operator(summary.fixed, summary.dimensions):
        console.print(said, markup=False, soft_wrap=True)
    size = "x".join(str(n) for n in input_size)
    networks = f"{summary.networks:,}" if summary.networks < 10**12 else f"{summary.networks:.3g}"
    console.print(f"[bold]{escape(name)}[/]: {networks} distinct networks for images of {size}")
    table = _table("dimension", "options", "acts on")
    for dimension, count in zip(summary.dimensions, summary.acts_on, strict=True):
        options = ", ".join(str(option) for option in dimension.options)
        table.add_row(escape(dimension.name), escape(options), _members(dimension.kind, count))
    console.print(table)
    fixed = _table("fixed", "why")
    for entry in summary.fixed:
        fixed.add_row(escape(entry.name), escape(entry.reason))
    console.print(fixed)
    console.print(f"costs of all networks, and of {sum(summary.columns[0].counts):,} drawn at random:")
    for column in summary.columns:
        _print_column(console, column)


def _members(kind: str, count: int) -> str:
    nouns = {"conv": "place", "kernel": "place", "width": "width group", "expand": "width group", "depth": "block"}
    noun = nouns[kind]
    return f"{count} {noun}{'s' if count > 1 else ''}"


def _print_column(console: Console, column: Column) -> None:
    low, high = (f"{v:,} ({format_quantity(v, column.name)})" for v in (column.least, column.most))
    unit = {"macs": "MACs", "params": "parameters", "memory": "bytes of memory", "latency_ns": "ns"}[column.name]
    console.print(f"[bold]{column.name}[/]: from {low} to {high} {unit}")
    longest = max(*column.counts, 1)
    for start, end, count in zip(column.edges, column.edges[1:], column.counts, strict=False):
        edge = f"{format_quantity(start, column.name):>8} to {format_quantity(end, column.name):<8}"
        bar = "#" * (round(BAR * count / longest) or int(count > 0))
        console.print(f"  {edge} {count:>6} {bar}".rstrip(), markup=False)


class Progress:
    """Shows how far a search or a retraining is: a live picture in a terminal, plain lines now and then elsewhere.

    Called with the record after every event; nothing is shown before the first.
    """

    def __init__(self, console: Console, experiment: Experiment, kind: str = "search") -> None:
        self._console, self._experiment, self._look = console, experiment, _LOOKS[kind]
        columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console)
        self._task = self._bar.add_task("starting", total=None)
        self._live = Live(console=console, refresh_per_second=4)
        self._last = self._next = -math.inf
        self._unseen: Record | None = None
        self._shown: tuple[int, str] = (-1, "")
        self._said: Note | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unseen is not None:
            self._show(self._unseen)
        self._live.stop()
        for line in getattr(error, "__notes__", ()):  # of a Ctrl-C: how to go on
            self._console.print(line, markup=False, soft_wrap=True)

    def __call__(self, record: Record) -> None:
        """Show the state that one more event led to; what many at once lead to, with the next or in the end."""
        begin = time.monotonic()
        self._unseen = record if begin < self._next else None
        if self._unseen is None:
            self._show(record)
            self._next = time.monotonic() + PAUSE * (time.monotonic() - begin)

    def _show(self, record: Record) -> None:
        look = self._look(record, self._experiment)
        if record.notes and record.notes[-1].what == "gpus" and record.notes[-1] is not self._said:
            self._said = record.notes[-1]
            self._console.print(self._said.detail["sentence"], markup=False, soft_wrap=True)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=look.ended, total=look.planned, description=look.line)
            self._live.update(Group(self._bar, Text(look.front, overflow="ellipsis", no_wrap=True)))
            self._live.start()
        elif self._due(look.ended, look.planned):
            self._print(look)

    def _due(self, ended: int, planned: int) -> bool:
        """Return whether a plain line is due: for a trial that ended, now and then for epochs, always for the last."""
        pause = time.monotonic() - self._last
        if ended == self._shown[0]:
            return pause >= EPOCHS_EVERY
        return pause >= PLAIN_EVERY or ended == planned

    def _print(self, look: _Look) -> None:
        """Print a plain line, with the front where it has moved."""
        front = f"; {look.front}" if look.front != self._shown[1] else ""
        self._console.print(f"{look.ended}/{look.planned} {look.line}{front}", markup=False, soft_wrap=True)
        self._shown = look.ended, look.front
        self._last = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Look:
    """What a progress line says."""

    ended: int
    planned: int
    line: str
    front: str = ""


def _look_at_search(record: Record, experiment: Experiment) -> _Look:
    found = status(record, experiment)
    ended = sum(found.total(state) for state in ENDED)
    members = [record.trials[number] for number in found.front]
    members.sort(key=lambda trial: trial.started.costs["macs"])
    front = ", ".join(_result(trial, found.measured) for trial in members)
    return _Look(ended, found.planned, _line(found), f"front: {front}" if front else "")


def _look_at_retraining(record: Record, experiment: Experiment) -> _Look:
    from bsconv_nas.search.retrain import outlook

    found = outlook(record, experiment.retrain_recipe.epochs, experiment.resources.workers)
    line = f"retraining, epoch {found.epochs} of {found.all_epochs}{_left(found.eta_seconds)}"
    return _Look(found.ended, found.trainings, line)


_LOOKS = {"search": _look_at_search, "retrain": _look_at_retraining}


def _result(trial: Trial, measured: Objective) -> str:
    value = _value(trial.metrics.get(measured.name, math.nan), measured)
    return f"{value} at {format_quantity(trial.started.costs['macs'], 'macs')} MACs"


def _value(value: float, measured: Objective) -> str:
    """Return what a network reached, with the metric's name unless it is an accuracy."""
    return f"{value:.2%}" if measured.name == "val_accuracy" else f"{measured.name} {value:.4g}"


def _line(found: Status) -> str:
    best = "no result yet" if found.best is None else f"best {_result(found.best, found.measured)}"
    failed = f", {found.total('failed')} failed" if found.total("failed") else ""
    return f"{best}, front of {len(found.front)}{failed}{_left(found.eta_seconds)}"


def _left(seconds: float | None) -> str:
    return f", ETA {duration(seconds)}" if seconds else ""


def duration(seconds: float) -> str:
    """Return a time [s] as a progress line says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_status(console: Console, run: Run) -> None:
    """Print how far a run is, and of what its trials failed."""
    found = status(run.record, run.experiment)
    state = "finished" if found.finished else "not finished"
    console.print(f"[bold]{escape(run.store.name)}[/]: {state}, {found.planned} trials planned, {run.budget}")
    table = _table("kind", "state", "trials")
    for (kind, trial_state), count in sorted(found.counts.items()):
        table.add_row(kind, trial_state, str(count))
    console.print(table)
    causes = Counter(trial.cause for trial in run.record.trials.values() if trial.state == "failed")
    for cause, count in causes.most_common():
        console.print(f"{count} failed: {cause}", markup=False, soft_wrap=True)
    seconds = f"{duration(found.device_seconds)} of training in {duration(found.wall_seconds)} of searching"
    console.print(f"{_line(found)}; {seconds}", markup=False)
    if not found.finished:
        console.print(f"if nothing is at work on it: bsconv-nas resume {run.path}", markup=False, soft_wrap=True)


def print_front(console: Console, run: Run) -> None:
    """Print the front as a table, with each member's lead over the best uniform network that costs no more."""
    from bsconv_nas.report.quantities import COSTS
    from bsconv_nas.report.tables import front_table

    view = run.view()
    rows, measure = front_table(view), view.measure
    if not rows:
        console.print("No trial is complete yet.")
        return
    costs = [COSTS[column] for column in rows[0].costs]  # the front's own first
    shown = "accuracy" if measure.is_accuracy else escape(measure.name)
    table = _table("key", "kind", shown, "over uniform", *costs, "blocks", "channels", "operators")
    for row in rows:
        table.add_row(*_front_row(row, measure))
    console.print(table)


def _front_row(row: Row, measure: Measure) -> list[str]:
    value, gap = (f"{row.value:.2%}", "+.2f") if measure.is_accuracy else (measure.text(row.value), "+.4g")
    lead = "" if row.gap is None or row.kind == "baseline" else f"{measure.scale * row.gap:{gap}}"
    costs = [format_quantity(value, column) for column, value in row.costs.items()]
    sizes = [" ".join(row.depths), " ".join(row.widths)]
    mix = ", ".join(f"{count} {option}" for option, count in row.layers.items())
    return [row.key, row.kind, value, lead, *costs, *sizes, escape(mix)]


def print_run(console: Console, run: Run) -> None:
    """Print what a search ended with, and what can be done next."""
    print_front(console, run)
    after = "report" if status(run.record, run.experiment).finished else "resume"
    console.print(f"run folder: {run.path}", markup=False, soft_wrap=True)
    console.print(f"next: bsconv-nas {after} {run.path}", markup=False, soft_wrap=True)


def print_verdict(console: Console, run: Run) -> None:
    """Print what a retraining found, or how to go on with one that was interrupted."""
    end = run.record.last("verdict", "interrupted")
    if end is None or end.what == "interrupted":
        lines = [f"interrupted; go on with: bsconv-nas retrain {run.path}"]
    else:
        lines = end.detail["sentences"] or ["No comparison: no uniform network of like cost was retrained."]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
