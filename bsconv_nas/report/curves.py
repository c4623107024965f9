"""Learning curves of all trials, the front's highlighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from bsconv_nas.report.measure import ACCURACY, Measure
from bsconv_nas.report.networks import uniform
from bsconv_nas.report.theme import COLORS, INK, MUTED, SWITCH, layout, plain
from bsconv_nas.report.view import View

__all__ = ["Curve", "curves_figure", "curves_info"]


@dataclass(frozen=True, slots=True)
class Curve:
    """The measure (accuracies [%]) of one trial after each epoch and so many seconds [s] of device time."""

    number: int
    key: str
    group: str
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    values: tuple[float, ...]


def curves_info(view: View) -> tuple[Curve, ...]:
    """Return a curve a candidate that finished an epoch; its group is `front`, `baseline NAME` or `search`."""
    members, name, scale = set(view.front["number"]), view.measure.name, view.measure.scale
    found = []
    for number in view.candidates["number"]:
        trial = view.record.trials[number]
        if any(name in metrics for metrics in trial.curve):
            group = "front" if number in members else "search"
            if trial.started.kind == "baseline":
                group = f"baseline {uniform(view.table, trial.started.indices)}"
            values = tuple(scale * metrics.get(name, float("nan")) for metrics in trial.curve)
            epochs = tuple(range(1, trial.epochs + 1))
            found.append(Curve(number, trial.started.key, group, epochs, tuple(trial.curve_seconds), values))
    return tuple(found)


def _style(group: str) -> dict[str, Any]:
    if group == "search":
        return {"color": MUTED, "width": 0.8}
    if group == "front":
        return {"color": INK, "width": 1.5}
    return {"color": COLORS[group.removeprefix("baseline ")], "width": 1.5, "dash": "dot"}


def _joined(curves: list[Curve], axis: Literal["epochs", "seconds"]) -> list[float | None]:
    """Return the x values of all curves in one list, a gap behind each: one Plotly trace instead of hundreds."""
    return [x for curve in curves for x in (*getattr(curve, axis), None)]


def _trace(group: str, curves: list[Curve]) -> go.Scatter:
    return go.Scatter(
        name={"front": "on the front", "search": "other search trials"}.get(group, group),
        x=_joined(curves, "epochs"),
        y=[y for curve in curves for y in (*curve.values, None)],
        mode="lines+markers" if all(len(curve.epochs) == 1 for curve in curves) else "lines",
        line=_style(group),
        opacity=0.6 if group == "search" else 1,
        customdata=[text for c in curves for text in [f"<b>{plain(c.key)}</b> trial {c.number}"] * (len(c.epochs) + 1)],
        hovertemplate="%{customdata}<br>%{y:.4g}<extra></extra>",
    )


def curves_figure(curves: tuple[Curve, ...], measure: Measure = ACCURACY) -> go.Figure:
    """Draw the measure over epochs, with a switch to device-seconds; needs at least one curve."""
    names = {curve.group for curve in curves}
    order = [g for g in ("search", *sorted(names - {"search", "front"}), "front") if g in names]
    groups = {group: [curve for curve in curves if curve.group == group] for group in order}
    axes: dict[Literal["epochs", "seconds"], tuple[str, str]] = {
        "epochs": ("Epochs", "epochs"),
        "seconds": ("Device-seconds", "device time of the trial [s]"),
    }
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [{"x": [_joined(found, axis) for found in groups.values()]}, {"xaxis.title.text": title}],
        }
        for axis, (label, title) in axes.items()
    ]
    figure = go.Figure([_trace(group, found) for group, found in groups.items()])
    figure.update_layout(
        layout(
            height=440,
            xaxis={"title": {"text": "epochs"}, "rangemode": "nonnegative"},
            yaxis={"title": {"text": plain(measure.label) + measure.unit}},
            updatemenus=[{**SWITCH, "type": "buttons", "direction": "right", "buttons": buttons}],
        )
    )
    return figure
