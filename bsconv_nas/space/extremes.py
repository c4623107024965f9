"""The cheapest and the costliest networks of a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import LATENCY, CostModel
from bsconv_nas.space.drawing import Drawing
from bsconv_nas.space.table import KINDS, Dimension, Population

__all__ = ["extremes"]

Pick = Callable[[npt.NDArray[np.int64]], np.intp]


def extremes(model: CostModel) -> tuple[Population, Population]:
    """Return the cheapest and the costliest network of each column, two populations with a row a column.

    Costs grow with every width, ratio, kernel and depth whatever the operators, and each operator dimension acts on its
    own, so the ends of one dimension after the other are the ends of the space. Latencies do not: a wider layer may be
    faster. Their ends follow from the tables that they are sums of.
    """
    return _ends(model, np.argmin), _ends(model, np.argmax)


def _ends(model: CostModel, pick: Pick) -> Population:
    rows = []
    for column in model.columns:
        if column == LATENCY:
            rows.append(Drawing(model).end(column, is_most=pick is np.argmax))
            continue
        row = np.zeros((1, len(model.table.sizes)), dtype=np.int64)
        for kind in KINDS:
            for index, dimension in enumerate(model.table.dimensions):
                if dimension.kind == kind:
                    trial = np.repeat(row, len(dimension.options), axis=0)
                    trial[:, index] = np.arange(len(dimension.options))
                    row[0, index] = pick(_sizes(model, trial, dimension, column))
        rows.append(row[0])
    return np.array(rows)


def _sizes(model: CostModel, trial: Population, dimension: Dimension, column: str) -> npt.NDArray[Any]:
    """Return what orders the options of a dimension, each in a row of `trial`, by what they contribute to a column."""
    sizes: npt.NDArray[Any]
    if dimension.kind == "width":
        sizes = np.array(dimension.channels).sum(axis=0)
    elif dimension.kind != "conv":
        sizes = np.array(dimension.options, dtype=np.float64)
    elif column != "memory":
        sizes = model.costs(trial, (column,))[column]
    else:  # memory itself would hide the options behind the peak of another place
        peaks = model.peaks(trial)
        sizes = peaks[:, (peaks != peaks[0]).any(axis=0)].max(axis=1, initial=0)
    return sizes
