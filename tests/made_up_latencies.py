"""Spaces with made-up tables of latencies."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from asked import asked_of
from small_spaces import small_resnet, traced

from bsconv_nas.cost.latency import Correction, LatencyTable, Setting, Unit
from bsconv_nas.cost.latency_units import kind_of, reachable
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace import trace

OPERATORS = ("regular", "dsc", "bsconv_u", "bsconv_u:r=2", "bsconv_s")


@cache
def spaced(factory: Callable[[], Any] = small_resnet, size: int = 8, scope: str = "layer") -> Table:
    widths = (0.5, 1.0, 2.0) if scope == "layer" else (0.5, 1.0)
    graph = trace(factory(), (3, size, size))
    asked = asked_of(graph, {"operators": OPERATORS, "widths": widths, "scope": scope})
    return traced(factory, size, **asked)


def made_up(table: Table, seed: int = 0) -> LatencyTable:
    """A table in which wider layers may be faster."""
    rng = np.random.default_rng(seed)
    units = {key: Unit(float(rng.uniform(1, 50)), 60.0, 0.01, 2) for key in sorted(reachable(table))}
    kinds = {kind: (1.1, 0.5) for kind in sorted({kind_of(key) for key in units})}
    return LatencyTable("made up", {"device": "none"}, Setting(), units, Correction(kinds, 12.5, 9, 0.01))


def rows_of(table: Table, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, table.sizes, size=(n, len(table.sizes)))
