"""What the command line prints: tables, a progress line, a verdict; no numbers are made here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable

from bsconv_nas.cost.budget import format_quantity
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Record, Trial
from bsconv_nas.search.status import Status, status
from bsconv_nas.space.summary import Column, Summary

if TYPE_CHECKING:
    from bsconv_nas.doctor import Finding
    from bsconv_nas.run import Run

__all__ = ["Progress", "print_findings", "print_front", "print_run", "print_status", "print_summary", "print_verdict"]

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal
BAR = 30  # characters of a histogram's longest bar


def _table(*headers: str) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def print_summary(console: Console, name: str, input_size: tuple[int, ...], summary: Summary) -> None:
    """Print a search space."""
    size = "x".join(str(n) for n in input_size)
    console.print(f"[bold]{escape(name)}[/]: {summary.networks:.4g} distinct networks for images of {size}")
    table = _table("dimension", "options", "acts on")
    for dimension in summary.dimensions:
        options = ", ".join(str(option) for option in dimension.options)
        table.add_row(escape(dimension.name), escape(options), _members(dimension.kind, len(dimension.members)))
    console.print(table)
    fixed = _table("fixed", "why")
    for entry in summary.fixed:
        fixed.add_row(escape(entry.name), escape(entry.reason))
    console.print(fixed)
    for column in summary.columns:
        _print_column(console, column)


def _members(kind: str, count: int) -> str:
    noun = {"conv": "convolution", "width": "width group", "depth": "block"}[kind]
    return f"{count} {noun}{'s' if count > 1 else ''}"


def _print_column(console: Console, column: Column) -> None:
    low, high = (f"{v:,} ({format_quantity(v, column.name)})" for v in (column.least, column.most))
    unit = {"macs": "MACs", "params": "parameters", "memory": "bytes of memory"}[column.name]
    console.print(f"[bold]{column.name}[/]: from {low} to {high} {unit}")
    longest = max(*column.counts, 1)
    for start, end, count in zip(column.edges, column.edges[1:], column.counts, strict=False):
        edge = f"{format_quantity(start, column.name):>8} to {format_quantity(end, column.name):<8}"
        console.print(f"  {edge} {'#' * round(BAR * count / longest)} {count}", markup=False)


class Progress:
    """Shows how far a search is: a live line in a terminal, plain lines now and then elsewhere.

    Called with the record after every event.
    """

    def __init__(self, console: Console, experiment: Experiment, kind: str = "search") -> None:
        self._console, self._experiment, self._retraining = console, experiment, kind == "retrain"
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting", total=None)
        self._last = 0.0
        self._ended = -1

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, record: Record) -> None:
        """Show the state that one more event led to; plain lines come at most every few seconds."""
        now = time.monotonic()
        trials = [t for t in record.trials.values() if (t.started.kind == "retrain") == self._retraining]
        ended = sum(trial.state != "running" for trial in trials)
        due = ended != self._ended and now - self._last >= PLAIN_EVERY
        if not (self._console.is_terminal or due):
            return
        self._last, self._ended = now, ended
        found = status(record, self._experiment)
        planned = None if self._retraining else found.planned
        line = _retraining_line(trials) if self._retraining else _line(found)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=ended, total=planned, description=line)
        else:
            self._console.print(f"{ended}/{planned or len(trials)} {line}", markup=False, soft_wrap=True)


def _retraining_line(trials: Iterable[Trial]) -> str:
    epochs = sum(trial.epochs for trial in trials)
    return f"retraining, {epochs} epochs trained"


def _line(found: Status) -> str:
    best = "no result yet"
    if found.best is not None:
        macs = format_quantity(found.best.started.costs["macs"], "macs")
        best = f"best {found.best.metrics['val_accuracy']:.2%} at {macs} MACs"
    eta = "" if found.eta_seconds is None else f", ETA {_duration(found.eta_seconds)}"
    failed = f", {found.total('failed')} failed" if found.total("failed") else ""
    return f"{best}, front of {len(found.front)}{failed}{eta}"


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
    seconds = f"{_duration(found.device_seconds)} of training in {_duration(found.wall_seconds)}"
    console.print(f"{_line(found)}; {seconds}", markup=False)
    if not found.finished:
        console.print(f"go on with: bsconv-nas resume {run.path}", markup=False, soft_wrap=True)


def print_front(console: Console, run: Run) -> None:
    """Print the front as a table."""
    table = _table("key", "kind", "accuracy", "MACs", "parameters", "memory", "depths and widths", "operators")
    for row in run.front.to_dict("records"):
        table.add_row(*_front_row(row))
    console.print(table)


def _front_row(row: dict[Any, Any]) -> list[str]:
    chosen = {
        kind: [(str(n), v) for n, v in row.items() if str(n).startswith(f"{kind}.")]
        for kind in ("depth", "width", "conv")
    }
    sizes = ", ".join(
        f"{name.partition('.')[2]} {value}" for kind in ("depth", "width") for name, value in chosen[kind]
    )
    operators = pd.Series([value for _, value in chosen["conv"]], dtype=str).value_counts()
    costs = [format_quantity(row[column], column) for column in ("macs", "params", "memory")]
    mix = ", ".join(f"{count} {name}" for name, count in operators.items())
    return [row["key"], row["kind"], f"{row['val_accuracy']:.2%}", *costs, escape(sizes), escape(mix)]


def print_run(console: Console, run: Run) -> None:
    """Print what a search ended with, and what can be done next."""
    finished = run.record.notes and run.record.notes[-1].what != "interrupted"
    print_front(console, run)
    console.print(f"run folder: {run.path}", markup=False, soft_wrap=True)
    after = "report" if finished else "resume"
    console.print(f"next: bsconv-nas {after} {run.path}", markup=False, soft_wrap=True)


def print_verdict(console: Console, run: Run) -> None:
    """Print what a retraining found."""
    verdicts = [note.detail["sentences"] for note in run.record.notes if note.what == "verdict"]
    for sentence in verdicts[-1] if verdicts else []:
        console.print(sentence, markup=False, soft_wrap=True)
    if not (verdicts and verdicts[-1]):
        console.print("No comparison: the run has no uniform network of like cost that is complete.", markup=False)


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Print the findings of the doctor."""
    for finding in findings:
        console.print(
            f"{'ok ' if finding.well else 'BAD'} {finding.name}: {finding.found}", markup=False, soft_wrap=True
        )
        if not finding.well:
            console.print(f"    {finding.mend}", markup=False, soft_wrap=True)
