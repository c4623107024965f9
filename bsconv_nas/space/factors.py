"""Tables over few options each whose product is what a space and its bounds on memory allow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import BYTES, CostModel
from bsconv_nas.space.elimination import Factor, Floats, Variable

__all__ = ["memory_factors", "peak_tables", "table_factor"]

CELLS = 1 << 16  # of a table of memory: larger ones are left to rejection


def table_factor(
    owner: tuple[str, int],
    scope: tuple[Variable, ...],
    support: npt.NDArray[np.bool_],
    costs: Floats | None = None,
) -> Factor:
    """Return a factor without the variables of one value; it costs nothing unless told."""
    costs = np.zeros((1, *support.shape)) if costs is None else costs
    kept = [i for i, size in enumerate(support.shape) if size > 1]
    shape = [support.shape[i] for i in kept]
    return Factor(owner, tuple(scope[i] for i in kept), support.reshape(shape), costs.reshape(-1, *shape))


def memory_factors(model: CostModel, low: float, high: float) -> Iterator[Factor]:
    """Yield factors that allow what is live at every step, and ask that one step reaches `low`.

    A chain of variables holds whether a step so far has reached it. Steps over too many dimensions are left to
    rejection.
    """
    if low <= 0 and math.isinf(high):
        return
    tables = list(peak_tables(model))
    for k, (dimensions, peaks) in enumerate(tables):
        if peaks is not None:
            yield table_factor(("peak", k), tuple((d, 0) for d in dimensions), peaks <= high)
    known = [(dimensions, peaks >= low) for dimensions, peaks in tables if peaks is not None]
    if len(known) < len(tables) or any(reached.all() for _, reached in known):
        return
    chain = len(model.table.dimensions)
    reaching = [(dimensions, reached) for dimensions, reached in known if reached.any()]
    for k, (dimensions, reached) in enumerate(reaching):
        fresh = np.stack([~reached, reached], axis=-1)
        stays = np.stack([np.zeros_like(reached), np.ones_like(reached)], axis=-1)
        support = np.stack([fresh, stays] if k else [fresh])
        yield table_factor(("reach", 0), ((chain, k), *((d, 0) for d in dimensions), (chain, k + 1)), support)
    at_end = np.array([False, True]) if reaching else np.array([False])
    yield table_factor(("reach", 0), ((chain, len(reaching)),), at_end)


def peak_tables(model: CostModel) -> Iterator[tuple[tuple[int, ...], Floats | None]]:
    """Yield the memory of all steps over some dimensions, (*options) [bytes]; None where that is too large a table."""
    sizes = model.table.sizes
    scopes = [frozenset(d for d in step if sizes[d] > 1) for step in model.peak_dimensions]
    widest = [s for s in dict.fromkeys(scopes) if not any(s < other for other in scopes)]
    host = [next(i for i, wide in enumerate(widest) if scope <= wide) for scope in scopes]
    for i, scope in enumerate(widest):
        dimensions = tuple(sorted(scope))
        shape = tuple(int(sizes[d]) for d in dimensions)
        if math.prod(shape) > CELLS:
            yield dimensions, None
            continue
        rows = np.zeros((math.prod(shape), len(sizes)), dtype=np.int64)
        rows[:, dimensions] = np.indices(shape).reshape(len(shape), -1).T
        steps = [step for step, found in enumerate(host) if found == i]
        yield dimensions, BYTES * model.peaks(rows)[:, steps].max(axis=1).reshape(shape)
