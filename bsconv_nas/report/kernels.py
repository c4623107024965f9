"""The kernels of a trained network: how correlated they are, and what each decomposition keeps of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bsconv_nas.report.quantities import MISSING
from bsconv_nas.report.theme import COLORS, INK, layout, plain

if TYPE_CHECKING:
    from bsconv_nas.network.analysis import LayerKernels, LeftOut

__all__ = [
    "KINDS",
    "KernelsInfo",
    "correlation_figure",
    "energy_figure",
    "kernels_info",
    "omission",
    "sentences",
    "share",
]

# The two correlations: whose pair of matrix and observations, what the panel is called, and which option presumes it.
KINDS = {
    "intra": ("within a filter (intra-kernel): what BSConv builds on", "bsconv_u"),
    "cross": ("across filters (cross-kernel): what DSC builds on", "dsc"),
}
# Of the convolutions that are left out: why the correlations are not defined, or say nothing.
REASONS = {
    "1x1": "a 1x1 kernel has no shape that another could share",
    "depthwise": "a depthwise filter has but one slice",
    "grouped": "a grouped filter has slices for some of the input channels alone",
    "transposed": "no option takes the place of a transposed convolution",
    "1-D": "only 2-D kernels are compared",
    "3-D": "only 2-D kernels are compared",
}
PERCENTILES = {"p5": 5, "q1": 25, "median": 50, "q3": 75, "p95": 95}
WRITTEN = 24  # layers up to which the heat map has its numbers in its cells
SCALE = "#56b4e9"  # of a whole share; light enough for numbers on it
NEAR = 0.05  # relative distance from the null level that is none


@dataclass(frozen=True, slots=True)
class KernelsInfo:
    """What page and CSV show: a row a layer in the network's order, and the options that were judged.

    Columns: layer, c_in, c_out, kernel, stride; of `intra` (over filters) and `cross` (over input channels) the mean,
    the null level and the percentiles p5, q1, median, q3, p95; `energy[OPTION]` and `energy_null[OPTION]`. All shares
    are in [0, 1], NaN where there is nothing to share. `left_out` are the convolutions without a row, which `table` has
    below the others: there the column `left_out` has their kind.
    """

    rows: pd.DataFrame
    options: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """The options without `regular`, which keeps everything, unless it is the only one."""
        return tuple(option for option in self.options if option != "regular") or self.options

    @property
    def table(self) -> pd.DataFrame:
        """All convolutions, those that are left out without shares."""
        omitted = pd.DataFrame([{**_layer(layer), "left_out": layer.kind} for layer in self.left_out])
        return pd.concat([self.rows.assign(left_out=""), omitted], ignore_index=True)


def kernels_info(layers: Sequence[LayerKernels], left_out: Sequence[LeftOut] = ()) -> KernelsInfo:
    """Return the numbers of at least one layer, and what has none."""
    return KernelsInfo(pd.DataFrame([_row(layer) for layer in layers]), tuple(layers[0].energy), tuple(left_out))


def omission(left_out: Sequence[LeftOut]) -> str:
    """Return in words what is left out and why; nothing where all convolutions are analysed."""
    counts = {kind: number for kind in REASONS if (number := sum(layer.kind == kind for layer in left_out))}
    if not counts:
        return ""
    *first, last = (f"{number} {kind}" for kind, number in counts.items())
    listed = f"{', '.join(first)} and {last}" if first else last
    reasons = ", and ".join(dict.fromkeys(REASONS[kind] for kind in counts))
    return f"Left out: {listed} convolution{'s' if sum(counts.values()) > 1 else ''}, as {reasons}."


def _layer(layer: LayerKernels | LeftOut) -> dict[str, Any]:
    return {
        "layer": layer.path,
        "c_in": layer.c_in,
        "c_out": layer.c_out,
        "kernel": "x".join(map(str, layer.kernel)),
        "stride": "x".join(map(str, layer.stride)),
    }


def _row(layer: LayerKernels) -> dict[str, Any]:
    return {
        **_layer(layer),
        **_spread("intra", layer.intra, layer.intra_null),
        **_spread("cross", layer.cross, layer.cross_null),
        **{f"energy[{option}]": kept for option, kept in layer.energy.items()},
        **{f"energy_null[{option}]": kept for option, kept in layer.energy_null.items()},
    }


def _spread(kind: str, shares: tuple[float, ...], null: float) -> dict[str, float]:
    """Return mean, null level and percentiles of the shares that are defined."""
    known = np.array([value for value in shares if math.isfinite(value)])
    mean = known.mean() if known.size else math.nan
    percentiles = {name: np.percentile(known, at) if known.size else math.nan for name, at in PERCENTILES.items()}
    return {f"{kind}_{name}": float(value) for name, value in {"mean": mean, "null": null, **percentiles}.items()}


def sentences(info: KernelsInfo) -> tuple[str, ...]:
    """Return in words what the numbers say, averaged over the layers."""
    rows = info.rows
    intra, intra_null, cross, cross_null = (
        rows[f"{kind}_{name}"].mean() for kind in KINDS for name in ("mean", "null")
    )
    said = [
        f"The first template explains {share(intra)} of the variance within a filter, where random kernels reach "
        f"{share(intra_null)}, and {share(cross)} across filters, where they reach {share(cross_null)} (means over the "
        "layers)."
    ]
    if abs(intra - intra_null) <= NEAR * intra_null and abs(cross - cross_null) <= NEAR * cross_null:
        return (*said, "Both stand at the null level: these kernels are as good as random, as before any training.")
    gains = [rows[f"{kind}_mean"] - rows[f"{kind}_null"] for kind in KINDS]
    known = gains[0].notna() & gains[1].notna()
    ahead = int((gains[0] > gains[1])[known].sum())
    said.append(
        f"Above their null levels, the correlation within a filter is the stronger one in {ahead} of {known.sum()} "
        "layers."
    )
    return tuple(said)


def correlation_figure(info: KernelsInfo) -> go.Figure:
    """Draw both correlations as boxes over the layers: quartiles, 5th to 95th percentile, and the null level."""
    titles = [title for title, _ in KINDS.values()]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=titles)
    for row, (kind, (_, option)) in enumerate(KINDS.items(), start=1):
        figure.add_trace(_boxes(info.rows, kind, COLORS[option]), row=row, col=1)
        figure.add_trace(_null(info.rows, kind), row=row, col=1)
    figure.update_layout(layout(height=560 + _below(info), margin={"l": 8, "r": 16, "t": 30, "b": 8}, showlegend=True))
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_xaxes(_layers(info))
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def _boxes(rows: pd.DataFrame, kind: str, color: str) -> go.Box:
    known = rows[rows[f"{kind}_mean"].notna()]
    ends = {"lowerfence": "p5", "q1": "q1", "median": "median", "q3": "q3", "upperfence": "p95", "mean": "mean"}
    return go.Box(
        x=known.index,
        **{argument: known[f"{kind}_{column}"] for argument, column in ends.items()},
        boxmean=False,
        line={"color": color, "width": 1.5},
        name="filters" if kind == "intra" else "input channels",
        hoverinfo="x+y",
    )


def _null(rows: pd.DataFrame, kind: str) -> go.Scatter:
    return go.Scatter(
        name="null level: random kernels of the same shape",
        x=list(range(len(rows))),
        y=rows[f"{kind}_null"],
        mode="lines+markers" if len(rows) == 1 else "lines",
        line={"color": INK, "width": 1.5, "dash": "dot", "shape": "hvh"},
        showlegend=kind == "intra",
        legendrank=2000,  # behind both boxes
        customdata=[plain(layer) for layer in rows["layer"]],
        hovertemplate="%{customdata}: null level %{y:.1%}<extra></extra>",
    )


def energy_figure(info: KernelsInfo) -> go.Figure:
    """Draw the energy that each option keeps of each layer as a heat map."""
    options = info.compared
    shares = [info.rows[f"energy[{option}]"].tolist() for option in options]
    nulls = [info.rows[f"energy_null[{option}]"].tolist() for option in options]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=list(range(len(info.rows))),
            y=[plain(option) for option in options],
            text=[[f"{100 * value:.0f}" for value in row] for row in shares] if len(info.rows) <= WRITTEN else None,
            texttemplate="%{text}" if len(info.rows) <= WRITTEN else None,
            customdata=np.dstack([nulls, [[plain(layer) for layer in info.rows["layer"]]] * len(options)]),
            hovertemplate="%{customdata[1]} as %{y}: %{z:.1%} kept<br>of a random kernel: %{customdata[0]:.1%}"
            "<extra></extra>",
            zmin=0,
            zmax=1,
            colorscale=["#ffffff", SCALE],
            textfont={"color": INK},
            colorbar={"tickformat": ".0%", "thickness": 12, "outlinewidth": 0},
            xgap=1,
            ygap=2,
        )
    )
    figure.update_layout(
        layout(height=108 + 34 * len(options) + _below(info), margin={"l": 8, "r": 8, "t": 40, "b": 8})
    )
    figure.update_xaxes(_layers(info), showline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, showline=False, ticks="", ticksuffix=" ")
    return figure


def share(value: float) -> str:
    """Return a share with one digit and its sign on the same line, a dash where it is undefined."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(value) else MISSING


def _layers(info: KernelsInfo) -> dict[str, Any]:
    """Return the axis that the figures share: a layer a tick."""
    labels = [plain(layer) for layer in info.rows["layer"]]
    return {"tickvals": list(range(len(labels))), "ticktext": labels, "tickangle": -90, "showgrid": False, "ticks": ""}


def _below(info: KernelsInfo) -> int:
    """Return the height [pixels] of the layers' names."""
    return int(16 + 7 * info.rows["layer"].str.len().max())
