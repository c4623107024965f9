"""What a search space spans, in numbers: what `bsconv-nas space show` prints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.graph import Fixed
from bsconv_nas.space.table import Dimension

__all__ = ["Column", "Summary", "summarise"]

SAMPLES = 20_000
BINS = 10


@dataclass(frozen=True, slots=True)
class Column:
    """The range of one cost and its histogram over random networks: `counts` between consecutive `edges`."""

    name: str
    least: int
    most: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """Dimensions, on how much each acts, what is fixed and why, the number of distinct networks, and their costs.

    `acts_on` counts places, width groups or blocks; an inverted residual is one place.
    """

    dimensions: tuple[Dimension, ...]
    acts_on: tuple[int, ...]
    fixed: tuple[Fixed, ...]
    networks: int
    columns: tuple[Column, ...]


def summarise(model: CostModel, seed: int = 0) -> Summary:
    """Return the summary of a space; the histograms are of 20,000 networks with uniformly drawn options."""
    table = model.table
    sizes = table.sizes
    population = np.random.default_rng(seed).integers(0, sizes, size=(SAMPLES, len(sizes)))
    drawn = model.costs(population)
    least, most = extremes(model)
    columns = []
    for i, name in enumerate(model.columns):
        low = int(model.costs(least[i : i + 1])[name][0])
        high = int(model.costs(most[i : i + 1])[name][0])
        counts, edges = np.histogram(drawn[name], bins=BINS, range=(low, max(high, low + 1)))
        columns.append(Column(name, low, high, tuple(edges.tolist()), tuple(counts.tolist())))
    acts_on = tuple(len(d.members if d.kind != "conv" else table.graph.once(d.members)) for d in table.dimensions)
    return Summary(table.dimensions, acts_on, table.fixed, count_networks(table), tuple(columns))
