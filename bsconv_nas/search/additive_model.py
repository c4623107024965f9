"""An additive Bayesian model of what a network reaches: a weight for each option, and a curve over log2 MACs.

Spelled out: y = c + sum_d w[d, x_d] + ordered trends + a u + b u^2 + noise, u the standardised log2 MACs; all weights
have one Gaussian prior, whose strength is the one of highest evidence (MacKay 1992). Pairwise terms are left out: below
some hundred trainings they cost more than they explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.search.table_sampler import Floats, log_costs
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Population, Table

__all__ = ["Encoding", "Posterior", "fit"]

ORDERED = ("depth", "width", "expand", "kernel")  # kinds whose options are sizes
CURVE = 4.0  # prior scale of the weights over log MACs, in those of an option: what they explain is most of it
STRENGTHS = np.geomspace(1e-1, 1e4, 31)  # noise over prior variance
FENCE = 3.0  # interquartile ranges below the lower quartile at which a value counts as no worse


class Encoding:
    """Features of networks: indicators of options, centred sizes, log2 MACs and their square.

    A dimension that acts on dropped blocks alone has no feature set: absent, not its first option.

    Args:
        feasible: the networks, with their costs.
        rows: canonical networks that the curve over MACs is centred on, shape (n, D).
    """

    def __init__(self, feasible: FeasibleSet, rows: Population) -> None:
        self._feasible, self._layout = feasible, _layout(feasible.model)
        octaves = log_costs(feasible, rows, ("macs",))["macs"]
        self._center, self._scale = float(octaves.mean()), float(octaves.std()) or 1.0

    def __call__(self, rows: Population, octaves: Floats | None = None) -> Floats:
        """Return the features of canonical networks, shape (n, F); `octaves` are their log2 MACs, if known, (n,)."""
        if octaves is None:
            octaves = log_costs(self._feasible, rows, ("macs",))["macs"]
        u = (octaves - self._center) / self._scale
        return np.concatenate([self._layout.features(rows), CURVE * np.stack([u, u * u], axis=1)], axis=1)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the features of a space lie, for its D' dimensions with a choice.

    Attributes:
        open: those dimensions.
        first: column of each one's first option.
        ordered: positions in `open` of those whose options are sizes, and the column of each one's size.
        sizes: centred sizes of their options, of unit spread, padded with zeros.
        lives: by position in `open`, for those that may be absent: depth dimensions, and which options keep it.
        width: columns in all.
    """

    open: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    ordered: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    sizes: Floats
    lives: dict[int, list[tuple[int, npt.NDArray[np.bool_]]]]
    width: int

    def features(self, rows: Population) -> Floats:
        """Return indicators and sizes of canonical networks, shape (n, width)."""
        out = np.zeros((len(rows), self.width))
        chosen, alive = rows[:, self.open], self._alive(rows)
        out[np.arange(len(rows))[:, None], self.first + chosen] = alive
        positions, columns = self.ordered
        out[:, columns] = self.sizes[np.arange(len(positions)), chosen[:, positions]] * alive[:, positions]
        return out

    def _alive(self, rows: Population) -> npt.NDArray[np.bool_]:
        alive = np.ones((len(rows), len(self.open)), dtype=np.bool_)
        for position, lives in self.lives.items():
            alive[:, position] = np.any([kept[rows[:, depth]] for depth, kept in lives], axis=0)
        return alive


@lru_cache(maxsize=4)
def _layout(model: CostModel) -> _Layout:
    table = model.table
    found = np.flatnonzero(table.sizes > 1)
    dimensions = [table.dimensions[d] for d in found]
    ordered = [i for i, d in enumerate(dimensions) if d.kind in ORDERED and len(d.options) > 2]
    widths = table.sizes[found] + np.isin(np.arange(len(found)), ordered)
    first = np.cumsum(widths) - widths
    sizes = np.zeros((len(ordered), int(table.sizes.max(initial=0))))
    for row, i in zip(sizes, ordered, strict=True):
        options = np.array(dimensions[i].options, dtype=np.float64)
        row[: len(options)] = (options - options.mean()) / options.std()
    lives = {i: kept for i, d in enumerate(found.tolist()) if (kept := _lives(table, d)) is not None}
    positions = np.array(ordered, dtype=np.int64)
    return _Layout(found, first, (positions, (first + table.sizes[found])[positions]), sizes, lives, int(widths.sum()))


def _lives(table: Table, index: int) -> list[tuple[int, npt.NDArray[np.bool_]]] | None:
    """Return the depth dimensions, with the options of each, that keep a block with a member; None if one never goes.

    The first k blocks of a stage stay, so only the foremost block of each stage counts.
    """
    dimension = table.dimensions[index]
    if dimension.kind == "depth":
        return None
    foremost: dict[int, int] = {}
    for member in dimension.members:
        block = table.home(index, member)
        depth = None if block is None else table.depth_dimension.get(block)
        if block is None or depth is None:
            return None
        place = table.graph.blocks[block].position
        foremost[depth] = min(place, foremost.get(depth, place))
    if not foremost:
        return None
    options = {depth: np.array(table.dimensions[depth].options, dtype=np.int64) for depth in foremost}
    return [(depth, options[depth] > place) for depth, place in foremost.items()]


@dataclass(frozen=True, slots=True)
class Posterior:
    """What the weights are likely to be, in the eigenbasis of the features' Gram matrix.

    Attributes:
        basis: shape (F, F).
        mean: of the weights in that basis, shape (F,).
        deviation: their standard deviations, shape (F,).
        center: the features' means, shape (F,).
        offset: what a network of mean features reaches.
    """

    basis: Floats
    mean: Floats
    deviation: Floats
    center: Floats
    offset: float

    def draw(self, rng: np.random.Generator, temperature: float = 1.0) -> Linear:
        """Return one likely model; the likeliest at temperature 0."""
        weights = self.mean + temperature * self.deviation * rng.standard_normal(len(self.mean))
        return Linear(self.basis @ weights, self.center, self.offset)


@dataclass(frozen=True, slots=True)
class Linear:
    """A model with its weights known."""

    weights: Floats
    center: Floats
    offset: float

    def __call__(self, features: Floats) -> Floats:
        """Return what networks reach, shape (n,); `features` has shape (n, F)."""
        return np.asarray((features - self.center) @ self.weights + self.offset)


def fit(features: Floats, targets: Floats) -> list[Posterior]:
    """Return a posterior for each objective.

    Args:
        features: of the finished networks, shape (n, F).
        targets: what they reached, more is better, shape (n, m).
    """
    center = features.mean(axis=0)
    centred = features - center
    squares, basis = np.linalg.eigh(centred.T @ centred)
    return [_fit(np.maximum(squares, 0), basis, centred, center, values) for values in targets.T]


def _fit(squares: Floats, basis: Floats, centred: Floats, center: Floats, values: Floats) -> Posterior:
    low, high = np.quantile(values, (0.25, 0.75))
    values = np.maximum(values, low - FENCE * (high - low))  # a training gone wrong must not bend the model
    offset = float(values.mean())
    scale = float(values.std()) or 1.0
    y = (values - offset) / scale
    moments = basis.T @ (centred.T @ y)
    # y ~ N(0, noise (1 + X X' / strength)); the noise is at its likeliest, with one observation's worth of prior.
    rest = y @ y - (moments**2 / (squares + STRENGTHS[:, None])).sum(axis=1)
    noise = (rest + 0.1) / (len(y) + 1)
    evidence = -0.5 * (len(y) + 1) * np.log(noise) - 0.5 * np.log1p(squares / STRENGTHS[:, None]).sum(axis=1)
    best = int(evidence.argmax())
    shrunk = squares + STRENGTHS[best]
    deviation = np.sqrt(noise[best] / shrunk)
    return Posterior(basis, scale * moments / shrunk, scale * deviation, center, offset)
