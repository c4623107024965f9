"""What the command line prints of latencies: how far the measuring is, and what it found."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bsconv_nas.cost.latency import LatencyTable
from bsconv_nas.cost.latency_units import kind_of
from bsconv_nas.latency import Plan
from bsconv_nas.show import duration

__all__ = ["Timing", "print_latencies"]

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Timing:
    """Says before how long it will take, and then how far it is; called by `measure` after each network."""

    def __init__(self, console: Console, plan: Plan, minutes: float | None) -> None:
        self._console, self._plan, self._minutes = console, plan, minutes
        columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting", total=None)
        self._last = 0.0

    def __enter__(self) -> Timing:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Show how many networks are done, and the time that is left [s]."""
        if done == 0:
            self._announce(total)
            return
        left = f"{duration(seconds)} left"
        self._bar.update(self._task, completed=done, total=total, description=left)
        if not self._console.is_terminal and (done == total or time.monotonic() - self._last >= PLAIN_EVERY):
            self._last = time.monotonic()
            self._console.print(f"{done}/{total} networks, {left}", markup=False)

    def _announce(self, total: int) -> None:
        about = self._plan.seconds(total)
        cut = f", of which {self._minutes:g} min are taken" if self._minutes and 60 * self._minutes < about else ""
        networks = f"{len(self._plan.units)} units in {total} networks that are left to time"
        self._console.print(f"{networks}: about {duration(about)}{cut}", markup=False)


def print_latencies(console: Console, found: LatencyTable, path: Path) -> None:
    """Print how many units of each kind were measured, how well their sum agrees with whole networks, and the file."""
    table = Table("kind", "units", "interpolated", "median [us]", "factor", "constant [us]", box=None, pad_edge=False)
    kinds = Counter(map(kind_of, found.units))
    for kind, count in kinds.most_common():
        times = sorted(unit.p50_us for key, unit in found.units.items() if kind_of(key) == kind)
        guessed = sum(unit.networks == 0 for key, unit in found.units.items() if kind_of(key) == kind)
        factor, constant = found.correction.kinds[kind]
        numbers = f"{times[len(times) // 2]:.1f}", f"{factor:.3f}", f"{constant:+.2f}"
        table.add_row(kind, str(count), str(guessed), *numbers)
    console.print(table)
    correction = found.correction
    console.print(
        f"corrected by {correction.networks} whole networks, whose repeats spread by {correction.spread:.1%}; "
        f"{correction.constant_us:+.1f} us a network",
        markup=False,
    )
    console.print(f"table: {path}", markup=False, soft_wrap=True)
