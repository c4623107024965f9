"""How far the search came: hypervolume over time, and the gain over the front of uniform baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from bsconv_nas.report.quantities import COSTS, cost, percent
from bsconv_nas.report.theme import BUDGET, COLORS, SWITCH, layout
from bsconv_nas.report.view import View

__all__ = ["Gain", "ProgressInfo", "gain_info", "progress_figure", "progress_info"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProgressInfo:
    """Hypervolume [points x octaves] after each ended trial, in the order of their ends.

    `trials` counts ended trials, `seconds` [s] adds up their device time. The reference point is chance accuracy
    (a fraction) at the cost `reference`, `origin` says whose cost that is. `baselines` is what the uniform baselines
    alone dominate.
    """

    column: str
    chance: float
    reference: float
    origin: str
    trials: tuple[int, ...]
    seconds: tuple[float, ...]
    hypervolume: tuple[float, ...]
    baselines: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean accuracy points of the searched networks above the uniform baselines over the costs [low, high]."""

    column: str
    points: float
    low: float
    high: float

    @property
    def octaves(self) -> float:
        """Length of the interval."""
        return math.log2(self.high / self.low)


def _reference(view: View, column: str) -> tuple[float, str]:
    """Return the cost at which the hypervolume ends, and whose it is."""
    if column in view.budget.bounds:
        return float(view.budget.bounds[column][1]), "the budget"
    return float(view.largest[column]), "the largest network of the space"


def _hypervolume(accuracies: Floats, costs: Floats, chance: float, reference: float) -> float:
    """Return the area [points x octaves] between the front of some trials and the reference point; arrays (n,)."""
    inside = (accuracies > chance) & (costs < reference)
    if not inside.any():
        return 0.0
    values = np.column_stack([100 * accuracies[inside], np.log2(costs[inside])])
    return float(moocore.hypervolume(values, ref=[100 * chance, math.log2(reference)], maximise=[True, False]))


def progress_info(view: View) -> ProgressInfo | None:
    """Return the hypervolume over trials and device time; None before the first complete trial.

    None, too, where no accuracy is measured: the reference point is chance.
    """
    if view.finished.empty or not view.costs or not view.measure.is_accuracy:
        return None
    column = view.costs[0]
    reference, origin = _reference(view, column)
    ended = _in_order(view)
    # A trial that did not complete dominates nothing: NaN is not above chance.
    accuracies = ended["val_accuracy"].where(ended["state"] == "complete").to_numpy(dtype=np.float64)
    costs = ended[column].to_numpy(dtype=np.float64)
    uniform = (ended["kind"] == "baseline").to_numpy()
    return ProgressInfo(
        column=column,
        chance=view.chance,
        reference=reference,
        origin=origin,
        trials=tuple(range(1, len(ended) + 1)),
        seconds=tuple(float(s) for s in ended["seconds"].cumsum()),
        hypervolume=tuple(
            _hypervolume(accuracies[:n], costs[:n], view.chance, reference) for n in range(1, len(ended) + 1)
        ),
        baselines=_hypervolume(accuracies[uniform], costs[uniform], view.chance, reference),
    )


def _in_order(view: View) -> pd.DataFrame:
    """Return the candidates that ended, in the order of their ends."""
    ended = view.candidates[view.candidates["state"] != "running"]
    order = sorted(ended.index, key=lambda i: (view.record.trials[ended["number"][i]].ended, ended["number"][i]))
    return ended.loc[order]


def progress_figure(info: ProgressInfo) -> go.Figure:
    """Draw the hypervolume over device-seconds, with a switch to trials."""
    line = {"color": COLORS["regular"], "width": 2, "shape": "hv"}
    dashed = {"color": BUDGET, "width": 1.5, "dash": "dash"}
    ends: dict[str, tuple[list[float], str]] = {
        "Device-seconds": ([0, *info.seconds], "device time of all trials [s]"),
        "Trials": ([0, *info.trials], "trials ended"),
    }
    seconds, title = ends["Device-seconds"]
    figure = go.Figure(go.Scatter(name="all trials", x=seconds, y=[0, *info.hypervolume], mode="lines", line=line))
    figure.add_scatter(
        name="uniform baselines alone", x=[0, seconds[-1]], y=[info.baselines] * 2, mode="lines", line=dashed
    )
    buttons = [
        {"label": label, "method": "update", "args": [{"x": [xs, [0, xs[-1]]]}, {"xaxis.title.text": text}]}
        for label, (xs, text) in ends.items()
    ]
    figure.update_layout(
        layout(
            height=400,
            xaxis={"title": {"text": title}, "rangemode": "tozero"},
            yaxis={"title": {"text": "hypervolume [points \N{MULTIPLICATION SIGN} octaves]"}, "rangemode": "tozero"},
            updatemenus=[{**SWITCH, "type": "buttons", "direction": "right", "buttons": buttons}],
            annotations=[_reference_note(info)],
        )
    )
    return figure


def _reference_note(info: ProgressInfo) -> dict[str, object]:
    place = f"{cost(info.reference, info.column)} {COSTS[info.column]} ({info.origin})"
    text = f"reference: {percent(info.chance)} (chance) at {place}"
    anchor = {"xref": "paper", "yref": "paper", "x": 1, "y": 0.03, "xanchor": "right", "yanchor": "bottom"}
    return {**anchor, "text": text, "showarrow": False, "font": {"size": 11, "color": BUDGET}, "bgcolor": "white"}


def _best_within(trials: pd.DataFrame, column: str, costs: Floats) -> Floats:
    """Return the highest accuracy [%] of a trial that costs at most each of `costs`, same shape."""
    ordered = trials.sort_values(column)
    best = 100 * np.maximum.accumulate(ordered["val_accuracy"].to_numpy(dtype=np.float64))
    index = np.searchsorted(ordered[column].to_numpy(dtype=np.float64), costs, side="right") - 1
    return np.asarray(best[index])


def gain_info(view: View) -> Gain | None:
    """Return the mean of (searched front - baselines' front) over log2 cost; None where they share no interval.

    The interval starts where both have a network and ends at the budget (else at the costliest of both). Searched
    trials stand for themselves: baselines do not count among them, so the gain is signed. It is of accuracies alone.
    """
    finished = view.finished
    searched, baselines = finished[finished["kind"] == "search"], finished[finished["kind"] == "baseline"]
    if searched.empty or baselines.empty or not view.costs or not view.measure.is_accuracy:
        return None
    column = view.costs[0]
    low = float(max(searched[column].min(), baselines[column].min()))
    high = float(view.budget.bounds[column][1] if column in view.budget.bounds else finished[column].max())
    if high <= low:
        return None
    steps = finished[column].to_numpy(dtype=np.float64)
    edges = np.unique(np.concatenate([[low, high], steps[(steps > low) & (steps < high)]]))
    gap = _best_within(searched, column, edges[:-1]) - _best_within(baselines, column, edges[:-1])
    mean = float(np.average(gap, weights=np.diff(np.log2(edges))))
    return Gain(column, mean, low, high)
