"""Colours, fonts and the one Plotly template; a decomposition has the same colour in every figure."""

from __future__ import annotations

import html
import itertools
from typing import Any

import plotly.graph_objects as go

from bsconv_nas.decompositions import DECOMPOSITIONS
from bsconv_nas.space.places import FORMS

__all__ = [
    "BUDGET",
    "COLORS",
    "CONFIG",
    "FAILED",
    "INK",
    "MUTED",
    "SWITCH",
    "family",
    "layout",
    "plain",
    "shade",
]

# Okabe & Ito (2008): told apart under every common colour blindness; their vermilion is for failures alone.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
FAMILIES = (*DECOMPOSITIONS, *dict.fromkeys(form.partition(":")[0] for form in FORMS))
COLORS = dict(zip(FAMILIES, itertools.cycle(PALETTE), strict=False))
INK = "#1f2933"
MUTED = "#9aa5b1"
GRID = "#e8ecf0"
FAILED = "#D55E00"
BUDGET = "#6b7785"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
CONFIG: dict[str, Any] = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
# Where and how a figure's switch (drop-down or buttons) stands: above the plot, at its left edge.
SWITCH: dict[str, Any] = {
    "x": 0,
    "xanchor": "left",
    "y": 1.02,
    "yanchor": "bottom",
    "bgcolor": "white",
    "bordercolor": "#cbd2d9",
    "borderwidth": 1,
    "pad": {"t": 0, "b": 4},
}

_AXIS = {"gridcolor": GRID, "linecolor": "#cbd2d9", "zeroline": False, "ticks": "outside", "tickcolor": "#cbd2d9"}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {**_AXIS, "automargin": True},
        "yaxis": {**_AXIS, "automargin": True},
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#cbd2d9", "align": "left", "font": {"family": FONT}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "margin": {"l": 8, "r": 16, "t": 48, "b": 8},
    }
)


def layout(**changes: Any) -> dict[str, Any]:
    """Return the layout that every figure starts from, with its own `changes`."""
    return {"template": _TEMPLATE, "hovermode": "closest", **changes}


def plain(text: object) -> str:
    """Return `text` so that Plotly, which reads a little HTML in labels, shows it letter by letter."""
    return html.escape(str(text), quote=False)


def family(option: str) -> str:
    """Return the decomposition, or the form of an inverted residual, that an option belongs to.

    >>> family("bsconv_s:p=1/8")
    'bsconv_s'
    """
    return option.partition(":")[0]


def shade(option: str, rank: int, total: int) -> str:
    """Return the colour of an option: its decomposition's, lighter with its `rank` among `total` options of it."""
    color = COLORS[family(option)]
    white = 0.6 * rank / max(total, 1)
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * white):02x}" for c in channels)
