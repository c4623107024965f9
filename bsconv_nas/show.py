"""What the command line prints: tables, a progress line, a verdict; no numbers are made here."""

from __future__ import annotations

import math
import time
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
from bsconv_nas.search.record import Record, State, Trial
from bsconv_nas.search.status import Status, status
from bsconv_nas.space.summary import Column, Summary

if TYPE_CHECKING:
    from bsconv_nas.report.tables import Row
    from bsconv_nas.run import Run

__all__ = ["Progress", "print_front", "print_run", "print_status", "print_summary", "print_verdict"]

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal and trials end
EPOCHS_EVERY = 60.0  # seconds between lines where none ends
ENDED: tuple[State, ...] = ("complete", "stopped", "failed")
WHOLE = ("key", "kind")  # columns that must not be broken: they are copied
BAR = 30  # characters of a histogram's longest bar


def _table(*headers: str) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header in WHOLE)
    return table


def print_summary(console: Console, name: str, input_size: tuple[int, ...], summary: Summary) -> None:
    """Print a search space."""
    size = "x".join(str(n) for n in input_size)
    count = f"{summary.networks:,}" if summary.networks < 10**12 else f"{summary.networks:.3g}"
    console.print(f"[bold]{escape(name)}[/]: {count} distinct networks for images of {size}")
    table = _table("dimension", "options", "acts on")
    for dimension in summary.dimensions:
        options = ", ".join(str(option) for option in dimension.options)
        table.add_row(escape(dimension.name), escape(options), _members(dimension.kind, len(dimension.members)))
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
    unit = {"macs": "MACs", "params": "parameters", "memory": "bytes of memory"}[column.name]
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
        self._last = -math.inf
        self._shown: tuple[int, str] = (-1, "")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, record: Record) -> None:
        """Show the state that one more event led to."""
        look = self._look(record, self._experiment)
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
    front = ", ".join(_result(trial) for trial in members)
    return _Look(ended, found.planned, _line(found), f"front: {front}" if front else "")


def _look_at_retraining(record: Record, experiment: Experiment) -> _Look:
    from bsconv_nas.search.retrain import outlook

    found = outlook(record, experiment.retrain_recipe.epochs, experiment.resources.workers)
    line = f"retraining, epoch {found.epochs} of {found.all_epochs}{_left(found.eta_seconds)}"
    return _Look(found.ended, found.trainings, line)


_LOOKS = {"search": _look_at_search, "retrain": _look_at_retraining}


def _result(trial: Trial) -> str:
    return f"{trial.metrics['val_accuracy']:.2%} at {format_quantity(trial.started.costs['macs'], 'macs')} MACs"


def _line(found: Status) -> str:
    best = "no result yet" if found.best is None else f"best {_result(found.best)}"
    failed = f", {found.total('failed')} failed" if found.total("failed") else ""
    return f"{best}, front of {len(found.front)}{failed}{_left(found.eta_seconds)}"


def _left(seconds: float | None) -> str:
    return f", ETA {_duration(seconds)}" if seconds else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_status(console: Console, run: Run) -> None:
    """Print how far a run is."""
    found = status(run.record, run.experiment)
    state = "finished" if found.finished else "not finished"
    console.print(f"[bold]{escape(run.store.name)}[/]: {state}, {found.planned} trials planned, {run.budget}")
    table = _table("kind", "state", "trials")
    for (kind, trial_state), count in sorted(found.counts.items()):
        table.add_row(kind, trial_state, str(count))
    console.print(table)
    seconds = f"{_duration(found.device_seconds)} of training in {_duration(found.wall_seconds)} of searching"
    console.print(f"{_line(found)}; {seconds}", markup=False)
    if not found.finished:
        console.print(f"if nothing is at work on it: bsconv-nas resume {run.path}", markup=False, soft_wrap=True)


def print_front(console: Console, run: Run) -> None:
    """Print the front as a table, with each member's lead over the best uniform network that costs no more."""
    from bsconv_nas.report.quantities import COSTS
    from bsconv_nas.report.tables import front_table

    rows = front_table(run.view())
    if not rows:
        console.print("No trial is complete yet.")
        return
    costs = [COSTS[column] for column in rows[0].costs]  # the front's own first
    table = _table("key", "kind", "accuracy", "over uniform", *costs, "blocks", "channels", "operators")
    for row in rows:
        table.add_row(*_front_row(row))
    console.print(table)


def _front_row(row: Row) -> list[str]:
    lead = "" if row.gap is None or row.kind == "baseline" else f"{100 * row.gap:+.2f}"
    costs = [format_quantity(value, column) for column, value in row.costs.items()]
    sizes = [" ".join(row.depths), " ".join(row.widths)]
    mix = ", ".join(f"{count} {option}" for option, count in row.layers.items())
    return [row.key, row.kind, f"{row.accuracy:.2%}", lead, *costs, *sizes, escape(mix)]


def print_run(console: Console, run: Run) -> None:
    """Print what a search ended with, and what can be done next."""
    print_front(console, run)
    after = "report" if status(run.record, run.experiment).finished else "resume"
    console.print(f"run folder: {run.path}", markup=False, soft_wrap=True)
    console.print(f"next: bsconv-nas {after} {run.path}", markup=False, soft_wrap=True)


def print_verdict(console: Console, run: Run) -> None:
    """Print what a retraining found, or how to go on with one that was interrupted."""
    ends = [note for note in run.record.notes if note.what in ("verdict", "interrupted")]
    if ends[-1].what == "interrupted":
        lines = [f"interrupted; go on with: bsconv-nas retrain {run.path}"]
    else:
        lines = ends[-1].detail["sentences"] or ["No comparison: no uniform network of like cost was retrained."]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
