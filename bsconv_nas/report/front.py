"""What a run measures, such as accuracy, over cost: every trial, the front, the uniform baselines and the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bsconv_nas.errors import BsconvNasError, RecordError, first_line
from bsconv_nas.report import document
from bsconv_nas.report.hover import hover_text
from bsconv_nas.report.measure import Measure
from bsconv_nas.report.networks import uniform
from bsconv_nas.report.quantities import COSTS, cost, octave_ticks
from bsconv_nas.report.retrained import SHORT, retrained_info
from bsconv_nas.report.theme import BUDGET, COLORS, FAILED, INK, MUTED, SWITCH, layout, plain
from bsconv_nas.report.view import TrialRow, View
from bsconv_nas.search.record import Objective, front

__all__ = ["FORMATS", "AxisInfo", "FrontInfo", "front_figure", "front_info", "save_image"]

FORMATS = ("pdf", "png", "svg")  # of pictures


@dataclass(frozen=True, slots=True)
class AxisInfo:
    """One cost axis: ticks, range, the budget's bounds on it, and the front over it.

    `line` has a (cost, measure) a member of that front; it ends at the budget.
    """

    column: str
    ticks: tuple[float, ...]
    low: float
    high: float
    bounds: tuple[float, ...]
    line: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class FrontInfo:
    """What the front figure shows.

    `points` has a row a trial: number, key, group (state of a search trial, or `baseline NAME`), value (of the measure;
    accuracies [%]), `shown` (value, but not beyond the worst end), on_front, hover and the cost columns. `retrained`
    has a row a retrained network with its mean and standard deviation [%]. `floor` and `top` end the measure's axis.
    """

    points: pd.DataFrame
    retrained: pd.DataFrame
    axes: tuple[AxisInfo, ...]
    floor: float
    top: float
    measure: Measure


def front_info(view: View) -> FrontInfo:
    """Return all that the front figure shows; `points` and `axes` are empty before the first trial."""
    points = _points(view)
    retrained = retrained_info(view)
    floor, top = _range(points, retrained, view.measure)
    value = points["value"]
    points["shown"] = (
        value.clip(lower=floor).fillna(floor) if view.measure.sign > 0 else value.clip(upper=top).fillna(top)
    )
    axes = tuple(_axis(view, column) for column in view.costs)
    return FrontInfo(points, retrained, axes, floor, top, view.measure)


def _points(view: View) -> pd.DataFrame:
    frame = view.candidates
    points = frame[["number", "key", *view.costs]].copy()
    points["value"] = view.measure.scale * frame[view.measure.name].astype(float)
    points["group"] = pd.Series([_group(view, row) for row in frame.to_dict("records")], frame.index, dtype=str)
    points["on_front"] = frame["number"].isin(view.front["number"])
    points["hover"] = [hover_text(view, row) for row in frame.to_dict("records")]
    return points


def _group(view: View, row: TrialRow) -> str:
    if row["kind"] == "baseline" and row["state"] == "complete":
        return f"baseline {uniform(view.table, view.indices(row['number']))}"
    return str(row["state"])


def _range(points: pd.DataFrame, retrained: pd.DataFrame, measure: Measure) -> tuple[float, float]:
    """Return the ends of the measure's axis: Tukey's fence behind the complete trials, but all that is compared.

    A trial that stopped early or collapsed would otherwise press the front into the topmost tenth of the figure.
    """
    signed = measure.sign * points["value"]
    complete = signed[~points["group"].isin(["running", "stopped", "failed"])].dropna()
    compared = signed[points["on_front"] | points["group"].str.startswith("baseline")].dropna()
    means = measure.sign * retrained["mean"]
    values = complete if len(complete) else signed.dropna()
    if values.empty:
        return 0.0, measure.scale
    first, third = values.quantile(0.25), values.quantile(0.75)
    low = min([max(values.min(), first - 1.5 * (third - first)), *compared, *(means - retrained["std"].fillna(0))])
    high = max([values.max(), *(means + retrained["std"].fillna(0))])
    margin = max(0.06 * (high - low), 0.5 if measure.is_accuracy else 0.005 * max(abs(high), abs(low), 1e-6))
    ends = measure.sign * float(low - margin), measure.sign * float(high + margin)
    return min(ends), max(ends)


def _axis(view: View, column: str) -> AxisInfo:
    values = view.trials[column].dropna().astype(float)
    bounds = tuple(bound for bound in view.budget.bounds.get(column, ()) if bound > 0)
    low, high = min([*values, *bounds]), max([*values, *bounds])
    margin = max((high / low) ** 0.05, 1.04)
    low, high = low / margin, high * margin
    measure = view.measure
    shown = front(view.trials, [measure.objective, Objective(column, "min")])
    line = list(zip(shown[column].astype(float), measure.scale * shown[measure.name].astype(float), strict=True))
    line += [(max(bounds), line[-1][1])] if line and bounds and line[-1][0] < max(bounds) else []
    ticks = octave_ticks(low, high, anchor=max([*bounds, 0.0]) or 2.0 ** round(math.log2(high)))
    return AxisInfo(column, tuple(ticks), low, high, bounds, tuple(line))


# How a group of trials is drawn, in the order of the legend.
_STATES = {
    "complete": ("complete", {"color": MUTED, "size": 7, "opacity": 0.75}),
    "stopped": ("stopped early", {"color": MUTED, "size": 8, "symbol": "triangle-down-open"}),
    "running": ("running", {"color": MUTED, "size": 7, "symbol": "circle-open-dot"}),
    "failed": ("failed", {"color": FAILED, "size": 8, "symbol": "x-thin-open", "line": {"width": 2}}),
}


def _baseline_style(group: str) -> tuple[str, dict[str, Any]]:
    color = COLORS[group.removeprefix("baseline ")]
    return group, {"color": color, "size": 11, "symbol": "diamond", "line": {"color": "white", "width": 1}}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One Plotly trace and its data under each cost axis."""

    trace: go.Scatter
    xs: tuple[list[Any], ...]
    ys: tuple[list[Any], ...]


def _markers(points: pd.DataFrame, info: FrontInfo, name: str, marker: dict[str, Any], y: str = "shown") -> _Layer:
    hover = points["hover"].tolist()
    trace = go.Scatter(
        name=name, mode="markers", marker=marker, customdata=hover, hovertemplate="%{customdata}<extra></extra>"
    )
    return _Layer(
        trace, tuple(points[axis.column].tolist() for axis in info.axes), (points[y].tolist(),) * len(info.axes)
    )


def _front_line(info: FrontInfo) -> _Layer:
    line = {"color": INK, "width": 2, "shape": "hv"}
    trace = go.Scatter(name="front", mode="lines", line=line, hoverinfo="skip")
    xs, ys = ([[pair[i] for pair in axis.line] for axis in info.axes] for i in (0, 1))
    return _Layer(trace, tuple(xs), tuple(ys))


def _budget_lines(info: FrontInfo) -> _Layer:
    trace = go.Scatter(
        name="budget", mode="lines", line={"color": BUDGET, "width": 1.5, "dash": "dash"}, hoverinfo="skip"
    )
    xs = tuple([x for bound in axis.bounds for x in (bound, bound, None)] or [None] for axis in info.axes)
    ys = tuple([y for _ in axis.bounds for y in (info.floor, info.top, None)] or [None] for axis in info.axes)
    return _Layer(trace, xs, ys)


def _retrained_marks(info: FrontInfo) -> _Layer:
    name = f"retrained ({SHORT[info.retrained['measure'].iloc[0]]}, mean ± std)"
    marker = {"color": "white", "size": 9, "symbol": "square", "line": {"color": INK, "width": 1.5}}
    layer = _markers(info.retrained, info, name, marker, "mean")
    layer.trace.error_y = {"array": info.retrained["std"].tolist(), "color": INK, "thickness": 1.2, "width": 4}
    return layer


def _layers(info: FrontInfo) -> list[_Layer]:
    """Return the traces from the lowest to the uppermost."""
    groups = dict(list(info.points.groupby("group", sort=False)))
    baselines = sorted(str(g) for g in groups if str(g).startswith("baseline "))
    layers = [_markers(groups[state], info, *style) for state, style in _STATES.items() if state in groups]
    layers += [_markers(groups[group], info, *_baseline_style(group)) for group in baselines]
    members = info.points[info.points["on_front"]]
    if len(members):
        ring = {"color": "rgba(0,0,0,0)", "size": 13, "line": {"color": INK, "width": 2}}
        layers += [_front_line(info), _markers(members, info, "on the front", ring)]
    if any(axis.bounds for axis in info.axes):
        layers.append(_budget_lines(info))
    return [*layers, _retrained_marks(info)] if len(info.retrained) else layers


def _switch(info: FrontInfo, layers: list[_Layer]) -> dict[str, Any]:
    """Return the drop-down that puts another cost on the axis."""
    buttons = [
        {
            "label": COSTS[axis.column],
            "method": "update",
            "args": [
                {"x": [layer.xs[i] for layer in layers], "y": [layer.ys[i] for layer in layers]},
                {f"xaxis.{key}": value for key, value in _x_axis(axis).items()},
            ],
        }
        for i, axis in enumerate(info.axes)
    ]
    return {**SWITCH, "buttons": buttons, "showactive": True}


def _x_axis(axis: AxisInfo) -> dict[str, Any]:
    return {
        "title.text": f"{COSTS[axis.column]} (logarithmic)",
        "tickvals": list(axis.ticks),
        "ticktext": [cost(tick, axis.column) for tick in axis.ticks],
        "range": [math.log10(axis.low), math.log10(axis.high)],
    }


def _y_axis(info: FrontInfo) -> dict[str, Any]:
    measure, room = info.measure, 0.03 * (info.top - info.floor)  # for what stands at the worst end
    ends = [info.floor - room, info.top] if measure.sign > 0 else [info.top + room, info.floor]
    title = f"{'accuracy' if measure.is_accuracy else measure.name}{measure.unit}"
    return {"title": {"text": plain(title)}, "range": ends}


def front_figure(info: FrontInfo) -> go.Figure:
    """Draw the measure over cost; needs at least one trial."""
    layers = _layers(info)
    figure = go.Figure([layer.trace.update(x=layer.xs[0], y=layer.ys[0]) for layer in layers])
    figure.update_layout(
        layout(
            height=560,
            xaxis={"type": "log"},
            yaxis=_y_axis(info),
            updatemenus=[_switch(info, layers)] if len(info.axes) > 1 else [],
        )
    )
    figure.update_xaxes({key.replace(".", "_"): value for key, value in _x_axis(info.axes[0]).items()})
    return figure


def save_image(view: View, path: str | Path, width: int = 1000, height: int = 560) -> Path:
    """Write the front as a picture in the format of its ending, whole or not at all, and return the path.

    Args:
        view: the run.
        path: a file in `FORMATS`, in a folder that exists.
        width: [CSS pixels]; drawn twofold.
        height: [CSS pixels].

    Raises:
        RecordError: another ending, no such folder, or no trial yet.
        BsconvNasError: no kaleido or Chrome on this machine.
    """
    place, info = document.destination(path), front_info(view)
    form = place.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise RecordError(f"A picture must end in one of {endings}, but got {place.name!r}.")
    if not info.axes:
        raise RecordError(f"A picture of the front needs a trial, but run {view.name!r} has none yet.")
    figure = front_figure(info).update_layout(margin_t=16)
    figure.layout.updatemenus = ()
    try:
        image = figure.to_image(form, width=width, height=height, scale=2)
    except (ImportError, ValueError, RuntimeError) as error:
        raise BsconvNasError(
            "A picture of the front needs kaleido and a Chrome or Chromium: pip install 'bsconv_nas[images]', "
            f"then plotly_get_chrome or your system's package (they say: {first_line(error).partition('. ')[0]})."
        ) from error
    return document.write_whole(place, image)
