"""The table that a run's latencies are predicted from: found or measured when it begins, kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bsconv_nas.cost.latency import LatencyTable, Setting

if TYPE_CHECKING:
    from bsconv_nas.api import SearchSpace
    from bsconv_nas.search.experiment import Experiment

__all__ = ["keep_latencies", "kept_latencies", "measured_latencies", "read_latencies"]

_FILE = "latency.json"


def read_latencies(experiment: Experiment) -> LatencyTable | None:
    """Return the table that `[latency]` names; None where there is none.

    Raises:
        LatencyError: no such file, a damaged one, or one that was measured otherwise than asked.
    """
    asked = experiment.latency
    if asked.table is None:
        return None
    table = LatencyTable.load(asked.table)
    table.check(asked.asked, asked.table)
    return table


def measured_latencies(experiment: Experiment, space: SearchSpace) -> LatencyTable | None:
    """Return the table that an experiment needs and does not name: measured here, in `latency/` of the current folder.

    None where it needs none. What was measured there before is not measured again.
    """
    if not experiment.asks_latency:
        return None
    from bsconv_nas.latency import measure, plan

    return measure(plan(space, Path(experiment.space).stem, Setting(**experiment.latency.setting)))


def keep_latencies(folder: Path, latencies: LatencyTable | None) -> None:
    """Put the table into a run folder, so that the run can go on without the file that it came from."""
    if latencies is not None:
        latencies.save(folder / _FILE)


def kept_latencies(folder: Path) -> LatencyTable | None:
    """Return the table of a run folder, or None if it has none."""
    return LatencyTable.load(folder / _FILE) if (folder / _FILE).is_file() else None
