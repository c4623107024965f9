"""One offline page of all figures and tables; this file only composes and writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bsconv_nas.report import document, quantities, summary, theme
from bsconv_nas.report.curves import curves_figure, curves_info
from bsconv_nas.report.front import front_figure, front_info
from bsconv_nas.report.importance import importance_figure, importance_info
from bsconv_nas.report.operators import operators_figure, operators_info
from bsconv_nas.report.progress import gain_info, progress_figure, progress_info
from bsconv_nas.report.retrained import MEASURES, retrained_info
from bsconv_nas.report.tables import baselines_table, front_table
from bsconv_nas.report.view import View

__all__ = ["View", "render", "write"]


def render(view: View) -> str:
    """Return the report as one HTML document that needs no network."""
    return document.render(
        "page.html.j2",
        view=view,
        lead=summary.lead(view),
        sentences=summary.sentences(view),
        best={kind: summary.best(view, kind) for kind in ("search", "baseline")},
        comparison=summary.comparison(view),
        states=summary.states(view),
        facts=summary.facts(view),
        notes=summary.notes(view),
        front=front_table(view),
        baselines=baselines_table(view),
        retrained=retrained_info(view).to_dict("records"),
        measures=MEASURES,
        gain=gain_info(view),
        figures=_figures(view),
        costs={column: quantities.COSTS[column] for column in view.costs},
        colors=theme.COLORS,
        plotly=Markup(get_plotlyjs()),
    )


def write(view: View, path: str | Path) -> Path:
    """Write the report to `path`, whole or not at all, and return the path."""
    place = document.destination(path)
    return document.write_whole(place, render(view))


def _figures(view: View) -> dict[str, Markup]:
    """Return the figures that have something to show, as HTML."""
    drawn: dict[str, tuple[Any, Callable[[Any], go.Figure]]] = {
        "operators": (operators_info(view), operators_figure),
        "progress": (progress_info(view), progress_figure),
        "curves": (curves_info(view) or None, partial(curves_figure, measure=view.measure)),
        "importance": (importance_info(view), importance_figure),
    }
    if view.costs:
        drawn["front"] = (front_info(view), front_figure)
    return {name: document.figure_html(name, draw(info)) for name, (info, draw) in drawn.items() if info is not None}
