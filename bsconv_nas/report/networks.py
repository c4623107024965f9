"""What a network of the space consists of, in the few words that a hover label or a table cell has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bsconv_nas.report.theme import family
from bsconv_nas.space.table import Dimension, Table

__all__ = ["channels", "depths", "kernels", "operators", "places", "stages", "uniform", "widths"]


def places(table: Table) -> list[int]:
    """Return the dimensions that choose a decomposition, in network order."""
    found = [i for i, dimension in enumerate(table.dimensions) if dimension.kind == "conv"]
    return sorted(found, key=lambda i: min(table.dimensions[i].members))


def _kept(table: Table, indices: Sequence[int], dimension: Dimension) -> list[int]:
    """Return the members of a dimension that stand in no dropped block."""
    index = table.names.index(dimension.name)
    return [member for member in dimension.members if table.is_alive(table.home(index, member), indices)]


def operators(table: Table, indices: Sequence[int]) -> list[str | None]:
    """Return the option at each of `places`; None where all its layers are dropped."""
    chosen = ((table.dimensions[i], indices[i]) for i in places(table))
    return [str(d.options[option]) if _kept(table, indices, d) else None for d, option in chosen]


def uniform(table: Table, indices: Sequence[int]) -> str:
    """Return the decomposition that most places of the network have: of a uniform network, the one it is made of."""
    families = Counter(family(option) for option in operators(table, indices) if option is not None)
    return families.most_common(1)[0][0] if families else "regular"


def stages(table: Table, indices: Sequence[int]) -> dict[str, Counter[str]]:
    """Return how many places of each option a stage has; a stage is the first part of a layer's path.

    An inverted residual counts once, under the form that was chosen for both its halves.
    """
    found: dict[str, Counter[str]] = {}
    for i in places(table):
        dimension = table.dimensions[i]
        for node in table.graph.once(_kept(table, indices, dimension)):
            stage = table.graph.nodes[node].path.partition(".")[0]
            found.setdefault(stage, Counter())[str(dimension.options[indices[i]])] += 1
    return found


def channels(table: Table, indices: Sequence[int], index: int) -> int | None:
    """Return the channels that a width or ratio gives its first kept group; None where all are dropped."""
    kept = _kept(table, indices, table.dimensions[index])
    return table.channels_at(kept[0], indices) if kept else None


def widths(table: Table, indices: Sequence[int]) -> dict[str, int | None]:
    """Return the channels by width and expansion dimension."""
    found = [(i, d.name) for i, d in enumerate(table.dimensions) if d.kind in ("width", "expand")]
    return {name: channels(table, indices, i) for i, name in found}


def kernels(table: Table, indices: Sequence[int]) -> dict[str, int | None]:
    """Return the kernel size [pixels] by kernel dimension; None where all its layers are dropped."""
    found = [(i, d) for i, d in enumerate(table.dimensions) if d.kind == "kernel"]
    return {d.name: int(d.options[indices[i]]) if _kept(table, indices, d) else None for i, d in found}


def depths(table: Table, indices: Sequence[int]) -> dict[str, int]:
    """Return the droppable blocks kept by depth dimension."""
    return {d.name: int(d.options[i]) for d, i in zip(table.dimensions, indices, strict=True) if d.kind == "depth"}
