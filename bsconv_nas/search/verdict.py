"""What mixing gains: retrained members of a front against uniform networks of like cost, with an interval.

A front is selected by noisy values, so it is judged by retrained means (winner's curse), and rivals are chosen without
a look at the test split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from bsconv_nas.cost.budget import format_quantity
from bsconv_nas.search.record import Record
from bsconv_nas.search.retrain import LIKE_COST, Pair
from bsconv_nas.space.table import Table

__all__ = ["Comparison", "Unrivalled", "comparisons", "uniform_operator", "verdict"]

CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]


def uniform_operator(table: Table, indices: Sequence[int]) -> str | None:
    """Return the operator that, put at all places that have it, gives this very network; None if it mixes."""
    places = [(d, dimension) for d, dimension in enumerate(table.dimensions) if dimension.kind == "conv"]
    key = table.architecture(indices).key
    for operator in dict.fromkeys(option for _, dimension in places for option in dimension.options):
        row = list(indices)
        for d, dimension in places:
            row[d] = dimension.index_of(operator)
        if table.architecture(row).key == key:
            return str(operator)
    return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A retrained member against the best uniform network of like cost.

    `gain` is the difference of mean test accuracies [points], `margin` half its 95 % interval (Welch's t), NaN with
    fewer than two seeds; `operator` is the rival's, `mixed` whether the member mixes operators at all.
    """

    key: str
    macs: int
    rival: str
    rival_macs: int
    operator: str
    seeds: tuple[int, int]
    mixed: bool
    gain: float
    margin: float


@dataclass(frozen=True, slots=True)
class Unrivalled:
    """A retrained member for which the search completed no uniform network of like or less cost.

    `accuracy` [%] is its mean on the test split.
    """

    key: str
    macs: int
    seeds: int
    accuracy: float


def comparisons(
    record: Record, trials: pd.DataFrame, pairs: Sequence[Pair], table: Table
) -> list[Comparison | Unrivalled]:
    """Return each member's comparison; rivals are chosen by their report accuracy, never by the test split."""
    done = trials[(trials["kind"] == "retrain") & (trials["state"] == "complete")]
    if "test_accuracy" not in done:
        return []
    return [found for pair in pairs if (found := _compare(record, done, pair, table)) is not None]


def _compare(record: Record, done: pd.DataFrame, pair: Pair, table: Table) -> Comparison | Unrivalled | None:
    member = record.trials[pair.member].started
    own = done[done["key"] == member.key]
    if not pair.rivals and not own.empty:
        return Unrivalled(member.key, member.costs["macs"], len(own), 100 * float(own["test_accuracy"].mean()))
    rivals = [record.trials[n].started for n in pair.rivals]
    rated = [(done.loc[done["key"] == r.key, "report_accuracy"].mean(), r) for r in rivals]
    rated = [(value, rival) for value, rival in rated if math.isfinite(value)]
    if own.empty or not rated:
        return None
    rival = max(rated, key=lambda pair: pair[0])[1]
    ours, theirs = (
        100 * done.loc[done["key"] == key, "test_accuracy"].to_numpy(float) for key in (member.key, rival.key)
    )
    return Comparison(
        member.key,
        member.costs["macs"],
        rival.key,
        rival.costs["macs"],
        uniform_operator(table, rival.indices) or "uniform",
        (len(ours), len(theirs)),
        uniform_operator(table, member.indices) is None,
        float(ours.mean() - theirs.mean()),
        _margin(ours, theirs),
    )


def _margin(ours: Floats, theirs: Floats) -> float:
    if min(len(ours), len(theirs)) < 2:
        return math.nan
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return 0.0
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.high - interval.low) / 2


def verdict(found: Sequence[Comparison | Unrivalled]) -> tuple[str, ...]:
    """Return one sentence for each member, costliest first: a gain, a loss or a tie, with its 95 % interval.

    A member without a rival is compared to nothing, and the sentence says why.

    >>> c = Comparison("a1", 40_000_000, "b2", 39_000_000, "bsconv_u", (5, 5), True, 0.4, 0.2)
    >>> print(*verdict([c]))
    At 40 M MACs mixing gains 0.4 +- 0.2 points over the best uniform network of like cost (bsconv_u, 39 M MACs; test \
accuracy, 5 against 5 seeds, 95 % interval).
    """
    return tuple(_sentence(c) if isinstance(c, Comparison) else _lone(c) for c in sorted(found, key=lambda c: -c.macs))


def _lone(member: Unrivalled) -> str:
    at = f"At {format_quantity(member.macs, 'macs')} MACs no comparison"
    reached = f"{member.accuracy:.1f} % test accuracy, {member.seeds} seed{'s' if member.seeds > 1 else ''}"
    return f"{at}: the search completed no uniform network of like or less cost to set against this one ({reached})."


def _sentence(c: Comparison) -> str:
    what = "mixing" if c.mixed else "this uniform network"
    at = f"At {format_quantity(c.macs, 'macs')} MACs"
    cost = "of like cost" if c.rival_macs >= LIKE_COST[0] * c.macs else "that costs less"
    against = f"the best uniform network {cost} ({c.operator}, {format_quantity(c.rival_macs, 'macs')} MACs"
    measured = f"test accuracy, {c.seeds[0]} against {c.seeds[1]} seeds"
    if math.isnan(c.margin):
        return f"{at} {what} differs by {c.gain:+.1f} points from {against}; {measured}: too few for an interval)."
    interval = f"{abs(c.gain):.1f} +- {c.margin:.1f} points"
    basis = f"{against}; {measured}, 95 % interval)."
    if abs(c.gain) <= c.margin:
        return f"{at} a tie: {what} differs by {c.gain:+.1f} +- {c.margin:.1f} points from {basis}"
    return f"{at} {what} {'gains' if c.gain > 0 else 'loses'} {interval} {'over' if c.gain > 0 else 'against'} {basis}"
