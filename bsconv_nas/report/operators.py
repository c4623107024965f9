"""Which decomposition stands where on the front: a heat map, with widths and depths beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bsconv_nas.report.networks import depths, kernels, operators, places, widths
from bsconv_nas.report.quantities import cost
from bsconv_nas.report.theme import family, layout, plain, shade
from bsconv_nas.report.view import View
from bsconv_nas.space.table import Dimension, Table

__all__ = ["OperatorsInfo", "Panel", "operators_figure", "operators_info"]

Sizes = Callable[[Table, Sequence[int]], Mapping[str, int | None]]
SIZES: dict[str, Sizes] = {"channels": widths, "kernel": kernels, "blocks kept": depths}


@dataclass(frozen=True, slots=True)
class Panel:
    """A matrix of numbers beside the operators: columns, values by row, and each value's share of the most [0, 1]."""

    title: str
    columns: tuple[str, ...]
    values: tuple[tuple[int | None, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class OperatorsInfo:
    """The front, cheapest first: a row a network, a column a place in network order.

    `choices` are indices into `options`, None where the layer is dropped.
    """

    keys: tuple[str, ...]
    rows: tuple[str, ...]
    places: tuple[str, ...]
    options: tuple[str, ...]
    choices: tuple[tuple[int | None, ...], ...]
    panels: tuple[Panel, ...]


def operators_info(view: View) -> OperatorsInfo | None:
    """Return the decompositions, widths and depths of the front's members; None without a front."""
    members = view.front if not view.costs else view.front.sort_values([view.costs[0], "number"], kind="stable")
    if members.empty or not view.costs:
        return None
    table, column = view.table, view.costs[0]
    networks = [view.indices(number) for number in members["number"]]
    options = _options(view)
    rows = (
        f"{cost(spent, column)} · {view.measure.text(value)}"
        for spent, value in zip(members[column], members[view.measure.name], strict=True)
    )
    chosen = [[None if o is None else options.index(o) for o in operators(table, indices)] for indices in networks]
    panels = (_panel(view, title, [of(table, indices) for indices in networks]) for title, of in SIZES.items())
    return OperatorsInfo(
        keys=tuple(members["key"]),
        rows=tuple(rows),
        places=tuple(table.dimensions[i].name.partition(".")[2] for i in places(table)),
        options=options,
        choices=tuple(map(tuple, chosen)),
        panels=tuple(panel for panel in panels if panel.columns),
    )


def _options(view: View) -> tuple[str, ...]:
    """Return all options of the space's places, each decomposition's together, in the order of the table."""
    found = dict.fromkeys(str(o) for i in places(view.table) for o in view.table.dimensions[i].options)
    families = list(dict.fromkeys(map(family, found)))
    return tuple(sorted(found, key=lambda option: families.index(family(option))))


def _panel(view: View, title: str, rows: Sequence[Mapping[str, int | None]]) -> Panel:
    """Return the numbers of a kind by network, each with its share of the largest in the space."""
    most = {dimension.name: _most(dimension) for dimension in view.table.dimensions}
    values = tuple(tuple(row.values()) for row in rows)
    shares = tuple(tuple(None if v is None else v / most[name] for name, v in row.items()) for row in rows)
    return Panel(title, tuple(name.partition(".")[2] for name in rows[0]), values, shares)


def _most(dimension: Dimension) -> float:
    """Return the largest number that a dimension can show, at least 1."""
    if dimension.kind == "conv":
        return 1
    return max(1, *(float(value) for row in dimension.channels or (dimension.options,) for value in row))


def _scale(options: tuple[str, ...]) -> list[tuple[float, str]]:
    """Return a colour scale with one flat band an option."""
    totals = Counter(map(family, options))
    seen: Counter[str] = Counter()
    bands = []
    for i, option in enumerate(options):
        color = shade(option, seen[family(option)], totals[family(option)])
        bands += [(i / len(options), color), ((i + 1) / len(options), color)]
        seen[family(option)] += 1
    return bands


def _heatmap(info: OperatorsInfo) -> go.Heatmap:
    text = [
        [
            f"<b>{key}</b>  {row}<br>{plain(place)}: {'dropped' if c is None else plain(info.options[c])}"
            for place, c in zip(info.places, choices, strict=True)
        ]
        for key, row, choices in zip(info.keys, info.rows, info.choices, strict=True)
    ]
    return go.Heatmap(
        z=info.choices,
        x=list(range(len(info.places))),
        y=list(range(len(info.rows))),
        zmin=-0.5,
        zmax=len(info.options) - 0.5,
        colorscale=_scale(info.options),
        customdata=text,
        hovertemplate="%{customdata}<extra></extra>",
        showscale=False,
        xgap=1,
        ygap=2,
    )


def _panel_heatmap(info: OperatorsInfo, panel: Panel) -> go.Heatmap:
    return go.Heatmap(
        z=panel.shares,
        x=list(range(len(panel.columns))),
        y=list(range(len(info.rows))),
        text=[["" if v is None else str(v) for v in row] for row in panel.values],
        texttemplate="%{text}",
        hoverinfo="skip",
        zmin=0,
        zmax=1.6,
        colorscale=["#ffffff", "#52606d"],
        showscale=False,
        xgap=1,
        ygap=2,
    )


def _legend(info: OperatorsInfo) -> list[go.Scatter]:
    colors = [color for _, color in _scale(info.options)[::2]]
    used = {c for row in info.choices for c in row}
    return [
        go.Scatter(
            name=plain(option),
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": color, "size": 12, "symbol": "square"},
        )
        for i, (option, color) in enumerate(zip(info.options, colors, strict=True))
        if i in used
    ]


def operators_figure(info: OperatorsInfo) -> go.Figure:
    """Draw the operators, and the widths and depths beside them."""
    parts = [("decomposition", info.places, len(info.places), _heatmap(info))] if info.places else []
    parts += [(p.title, p.columns, 2 * len(p.columns), _panel_heatmap(info, p)) for p in info.panels]
    figure = make_subplots(
        rows=1,
        cols=len(parts),
        shared_yaxes=True,
        column_widths=[width for _, _, width, _ in parts],
        horizontal_spacing=0.02,
        subplot_titles=[title for title, *_ in parts],
    )
    for i, (_, columns, _, trace) in enumerate(parts, start=1):
        figure.add_trace(trace, row=1, col=i)
        figure.update_xaxes(_ticks(columns, tickangle=-90), row=1, col=i)
    figure.add_traces(_legend(info), rows=1, cols=1)
    below = 16 + 7 * max(len(name) for _, columns, *_ in parts for name in columns)
    figure.update_layout(layout(height=110 + below + 26 * len(info.rows)))
    figure.update_yaxes(showgrid=False, ticks="", showline=False)
    figure.update_yaxes(_ticks(info.rows, autorange="reversed"), row=1, col=1)
    return figure


def _ticks(labels: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    shown = {"tickvals": list(range(len(labels))), "ticktext": [plain(label) for label in labels]}
    return {**shown, "showgrid": False, "showline": False, "ticks": "", **changes}
