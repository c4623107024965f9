"""Which network of a run is meant: the best, the knee of the front, or a key by its first digits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bsconv_nas.errors import RecordError, suggest
from bsconv_nas.search.record import Objective

__all__ = ["knee", "pick"]

Floats = npt.NDArray[np.float64]


ACCURACY = Objective("val_accuracy", "max")


def pick(
    trials: pd.DataFrame, front: pd.DataFrame, how: str, cost: str = "macs", measured: Objective = ACCURACY
) -> int:
    """Return the number of the chosen baseline or search trial.

    Args:
        trials: all trials of a run.
        front: its non-dominated ones.
        how: `best` (the front's best by what is measured; of equal ones the cheapest), `knee`, or the first digits of
            a key.
        cost: the cost column of the front.
        measured: what networks are ranked by.

    Raises:
        RecordError: no complete trial, or a prefix that fits no key or several.
    """
    complete = trials[(trials["state"] == "complete") & (trials["kind"] != "retrain")]
    if complete.empty or front.empty:
        raise RecordError("A network can be picked once a trial is complete, but this run has none: search on.")
    gain = front[measured.name] if measured.direction == "max" else -front[measured.name]
    if how == "best":
        return int(front.loc[gain.nlargest(1).index[0], "number"])
    if how == "knee":
        return int(front.iloc[knee(front[cost].to_numpy(float), gain.to_numpy(float))]["number"])
    return _by_prefix(complete, front, how)


def _by_prefix(complete: pd.DataFrame, front: pd.DataFrame, prefix: str) -> int:
    found = complete[complete["key"].str.startswith(prefix)]
    if found["key"].nunique() == 1:
        return int(found.iloc[0]["number"])
    keys = sorted(found["key"]) or sorted(front["key"])
    many = f"fits {len(keys)}: {', '.join(keys[:5])}" if len(found) else f"fits none; {suggest(prefix, keys[:8])}"
    raise RecordError(f"A pick must be 'best', 'knee' or the first digits of one key, but {prefix!r} {many}.")


def knee(cost: Floats, accuracy: Floats) -> int:
    """Return the index of the point farthest from the chord of the front, both axes scaled to [0, 1].

    >>> knee(np.array([1.0, 2.0, 10.0]), np.array([0.5, 0.9, 0.92]))
    1
    """
    first, last = int(np.argmin(cost)), int(np.argmax(cost))
    spans = np.ptp(cost), np.ptp(accuracy)
    if min(spans) == 0:
        return int(np.argmax(accuracy))
    x, y = (cost - cost[first]) / spans[0], (accuracy - accuracy[first]) / spans[1]
    return int(np.argmax(y * (x[last] - x[first]) - x * (y[last] - y[first])))
