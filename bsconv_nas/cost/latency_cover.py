"""Which networks to time so that every unit of a space runs, and in more than one neighbourhood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from bsconv_nas.cost.latency_units import Cell, network_units
from bsconv_nas.space.table import Table

__all__ = ["Visit", "visits"]

TRIED = 16  # places at which a unit is tried before it waits for another network
RANDOM = 3  # every so manyth network is a random one

Visit = tuple[tuple[int, ...], bool]  # a network's indices, and whether it is to be timed as a whole too


def visits(
    table: Table, units: Mapping[str, list[Cell]], missing: Counter[str], whole: int, rng: np.random.Generator
) -> Iterator[Visit]:
    """Yield networks until each unit ran in as many as it was missing in; those that hold most of that come first.

    Every third network is drawn uniformly until `whole` of them are, so that those timed as wholes are no others than a
    search would meet, however early the measuring is stopped.

    Args:
        table: the space.
        units: as `reachable` returns them.
        missing: networks that each unit is still to run in.
        whole: random networks to be timed as wholes.
        rng: the source of randomness.
    """
    missing = +missing
    drawn = count = 0
    while missing or drawn < whole:
        row = rng.integers(0, table.sizes)
        is_random = drawn < whole and (count % RANDOM == 0 or not missing)
        if not is_random:
            for dimension, option in _packed(missing, units, rng).items():
                row[dimension] = option
        indices = tuple(table.canonical(row[None])[0].tolist())
        missing -= Counter(dict.fromkeys(network_units(table, indices), 1))
        drawn, count = drawn + is_random, count + 1
        yield indices, is_random


def _packed(missing: Counter[str], units: Mapping[str, list[Cell]], rng: np.random.Generator) -> dict[int, int]:
    """Return options that bring about many missing units at once: one after the other, as far as they agree."""
    chosen: dict[int, int] = {}
    for key in rng.permutation(sorted(missing)):
        cells = units[str(key)]
        for i in rng.permutation(len(cells))[:TRIED]:
            asked = dict(zip(*cells[i], strict=True))
            if all(chosen.get(d, option) == option for d, option in asked.items()):
                chosen |= asked
                break
    return chosen
