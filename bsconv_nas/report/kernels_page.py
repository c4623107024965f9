"""The page and the table of a kernel analysis; this file only composes and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bsconv_nas.report import document
from bsconv_nas.report.kernels import correlation_figure, energy_figure, kernels_info, omission, sentences, share

if TYPE_CHECKING:
    from bsconv_nas.network.analysis import LayerKernels, LeftOut

__all__ = ["render", "write"]

LEAST, EACH = 640, 22  # pixels: the width below which a figure scrolls, and that of a layer in it


def render(layers: Sequence[LayerKernels], name: str, weights: str, left_out: Sequence[LeftOut] = ()) -> str:
    """Return the analysis as one HTML document that needs no network.

    Args:
        layers: at least one.
        name: of the network.
        weights: where they come from; empty where the network is as it was made.
        left_out: the convolutions that are not analysed.
    """
    info = kernels_info(layers)
    figures = {"correlation": correlation_figure(info), "energy": energy_figure(info)}
    return document.render(
        "kernels.html.j2",
        name=name,
        weights=weights,
        sentences=sentences(info),
        omission=omission(left_out),
        share=share,
        rows=info.rows.to_dict("records"),
        options=info.compared,
        means=info.rows.mean(numeric_only=True).to_dict(),
        figures={key: document.figure_html(key, figure) for key, figure in figures.items()},
        width=max(LEAST, EACH * len(layers)),
        plotly=Markup(get_plotlyjs()),
    )


def write(
    layers: Sequence[LayerKernels],
    name: str,
    weights: str,
    page: str | Path,
    table: str | Path,
    left_out: Sequence[LeftOut] = (),
) -> tuple[Path, Path]:
    """Write the page and the CSV table, each whole or not at all, and return their paths."""
    text = kernels_info(layers, left_out).table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    html = render(layers, name, weights, left_out)
    return document.write_whole(Path(page), html), document.write_whole(Path(table), text)
