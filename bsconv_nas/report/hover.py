"""The hover label of a trial: how it went, what it costs, and the architecture in a few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bsconv_nas.report.networks import depths, kernels, stages, widths
from bsconv_nas.report.quantities import COSTS, MISSING, cost
from bsconv_nas.report.theme import plain
from bsconv_nas.report.view import TrialRow, View

__all__ = ["architecture_lines", "hover_text"]

MAX_STAGES = 8


def architecture_lines(view: View, number: int) -> list[str]:
    """Return a line a stage with its operators, then the widths, kernels and depths of trial `number`'s network."""
    indices = view.indices(number)
    found = stages(view.table, indices)
    lines = [f"{stage}: {_counted(options)}" for stage, options in list(found.items())[:MAX_STAGES]]
    if hidden := len(found) - MAX_STAGES:
        lines += [f"and {hidden} stages more"] if hidden > 0 else []
    shown = {
        "channels": [MISSING if c is None else str(c) for c in widths(view.table, indices).values()],
        "kernels": [MISSING if k is None else str(k) for k in kernels(view.table, indices).values()],
        "blocks kept": [str(d) for d in depths(view.table, indices).values()],
    }
    return lines + [f"{name}: {' · '.join(values[:16])}" for name, values in shown.items() if values]


def _counted(options: Mapping[str, int]) -> str:
    return " + ".join(f"{n} {option}" for option, n in options.items())


def hover_text(view: View, row: TrialRow) -> str:
    """Return the label of one row of the trials as Plotly's HTML; every text from outside is escaped."""
    cause = view.record.trials[row["number"]].cause
    costs = [f"{COSTS[c]} {cost(row[c], c)}" for c in view.costs if math.isfinite(row[c])]
    lines = [
        f"trial {row['number']} ({row['kind']}, {row['state']}), seed {row['seed']}",
        f"{view.measure.label} {view.measure.text(row[view.measure.name])}",
        " · ".join(costs),
        *architecture_lines(view, row["number"]),
        *([cause] if cause else []),
    ]
    return "<br>".join([f"<b>{plain(row['key'])}</b>", *map(plain, lines)])
