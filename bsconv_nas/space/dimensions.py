"""From a graph and the choices to the table: what varies, what is tied, and what stays fixed and why."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.space.files import Choices, Override
from bsconv_nas.space.table import Dimension, Fixed, Graph, Node, Table

__all__ = ["make_table", "scaled_channels"]


def scaled_channels(channels: int, width: float, divisor: int) -> int:
    """Return max(d, d floor(w C / d + 1/2)): `channels` times `width`, rounded to a multiple of `divisor`.

    A multiplier of 1 keeps the base's channels, whether the divisor divides them or not.

    >>> scaled_channels(64, 0.3, 8), scaled_channels(10, 1, 8)
    (16, 10)
    """
    if width == 1:
        return channels
    return max(divisor, divisor * int(Fraction(str(width)) * channels / divisor + Fraction(1, 2)))


def make_table(graph: Graph, choices: Choices) -> Table:
    """Return the search space over `graph` that `choices` declare.

    Raises:
        SpaceError: a pattern that matches nothing, or choices that leave nothing to vary.
    """
    stages = _stages(graph)
    _check_patterns(graph, choices)
    places, fixed_places = _places(graph, choices)
    convs = _conv_dimensions(graph, choices, places, stages)
    widths, fixed_widths = _width_dimensions(graph, choices, stages)
    depths, fixed_depths = _depth_dimensions(graph, choices)
    dimensions = (*depths, *widths, *convs)  # also those of one option: adding another changes no key
    if not any(len(d.options) > 1 for d in dimensions):
        raise SpaceError("A search space must leave something to choose, but every dimension has one option: add some.")
    return Table(graph, dimensions, (*fixed_places, *graph.fixed, *fixed_widths, *fixed_depths))


def _stages(graph: Graph) -> list[str]:
    """Return the stage of each width group: those that end at one resolution, named by what most paths share.

    Fixed groups keep to themselves, so that the image lends no stage its name.
    """
    by_resolution: dict[tuple[int, ...], list[int]] = {}
    for index, group in enumerate(graph.groups):
        by_resolution.setdefault((bool(group.reason), *group.resolution), []).append(index)
    tops = {
        resolution: Counter(graph.groups[g].name.split(".")[0] for g in members).most_common(1)[0][0]
        for resolution, members in by_resolution.items()
    }
    shared = Counter(tops.values())
    names = {
        resolution: top if shared[top] == 1 else graph.groups[by_resolution[resolution][0]].name
        for resolution, top in tops.items()
    }
    return [names[bool(group.reason), *group.resolution] for group in graph.groups]


def _matches(paths: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns for path in paths)


def _written_by(graph: Graph, group: int) -> list[str]:
    """Return the paths by which a width group goes: its name, and the layers that write it."""
    return [graph.groups[group].name, *(n.path for n in graph.nodes if n.group == group and n.is_layer)]


def _stage_paths(graph: Graph, stage: str) -> list[str]:
    """Return the paths by which a stage's depth goes: its name and its blocks."""
    return [stage, *(block.path for block in graph.blocks if block.stage == stage)]


def _check_patterns(graph: Graph, choices: Choices) -> None:
    """Refuse a pattern that matches nothing of the kind that it speaks of."""
    free = [g for g, group in enumerate(graph.groups) if not group.reason]
    paths = {
        "operators": [node.path for node in graph.nodes if node.spec is not None],
        "widths": [path for group in free for path in _written_by(graph, group)],
        "depths": [path for stage in {b.stage for b in graph.blocks} for path in _stage_paths(graph, stage)],
    }
    asked = [(pattern, list(paths)) for pattern in choices.exempt]
    for override in choices.overrides:
        asked += [(override.pattern, [kind]) for kind in paths if getattr(override, kind) is not None]
    for pattern, kinds in asked:
        known = [path for kind in kinds for path in paths[kind]]
        if not _matches(known, [pattern]):
            near = difflib.get_close_matches(pattern, dict.fromkeys(known), n=5, cutoff=0.0)
            what = " or ".join(kinds)
            raise SpaceError(
                f"Pattern {pattern!r} must match a path of the base whose {what} can vary, but matches none: "
                f"{suggest(pattern, near) if near else 'there is none'}."
            )


def _override(overrides: Sequence[Override], paths: Iterable[str], name: str) -> object:
    """Return what the last matching override says about `name`, or None."""
    found = [getattr(o, name) for o in overrides if _matches(paths, [o.pattern])]
    return next((value for value in reversed(found) if value is not None), None)


def _places(graph: Graph, choices: Choices) -> tuple[list[int], list[Fixed]]:
    """Return the conv nodes whose decomposition may be chosen, and the fixed ones with the reason."""
    calls = Counter(node.path for node in graph.nodes)
    places, fixed = [], []
    for index, node in enumerate(graph.nodes):
        if node.spec is None or node.shared:
            continue
        reason = "called more than once" if calls[node.path] > 1 else _why_fixed(graph, node, choices)
        if reason:
            fixed.append(Fixed(f"conv.{node.path}", reason))
        else:
            places.append(index)
    return places, fixed


def _why_fixed(graph: Graph, node: Node, choices: Choices) -> str:
    if _matches([node.path], choices.exempt):
        return "exempt"
    if node.spec is not None and node.spec.kernel == (1, 1):
        return "1x1 kernel"
    return "stem" if not choices.stem and _is_stem(graph, node) else ""


def _is_stem(graph: Graph, node: Node) -> bool:
    """Whether no other layer stands between the image and this one."""
    pending = list(node.inputs)
    while pending:
        before = graph.nodes[pending.pop()]
        if before.is_layer or before.macs or before.macs_per_channel:
            return False
        pending += before.inputs
    return True


def _block(node: Node) -> str:
    return node.element or node.path.rpartition(".")[0] or node.path


def _conv_dimensions(graph: Graph, choices: Choices, places: list[int], stages: Sequence[str]) -> list[Dimension]:
    tied: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place in places:
        node = graph.nodes[place]
        own = _override(choices.overrides, [node.path], "operators")
        operators = own if isinstance(own, tuple) else choices.operators
        scopes = {
            "network": "network",
            "stage": stages[node.group],
            "block": _block(node),
            "layer": node.path,
        }
        tied.setdefault((scopes[choices.scope], operators), []).append(place)
    named = Counter(scope for scope, _ in tied)
    return [
        Dimension(
            f"conv.{scope if named[scope] == 1 else graph.nodes[members[0]].path}", "conv", operators, tuple(members)
        )
        for (scope, operators), members in tied.items()
    ]


def _width_dimensions(graph: Graph, choices: Choices, stages: Sequence[str]) -> tuple[list[Dimension], list[Fixed]]:
    tied: dict[tuple[str, tuple[float, ...]], list[int]] = {}
    fixed = []
    for index, group in enumerate(graph.groups):
        if group.reason:
            continue
        paths = _written_by(graph, index)
        if _matches(paths, choices.exempt):
            fixed.append(Fixed(f"width.{group.name}", "exempt"))
            continue
        own = _override(choices.overrides, paths, "widths")
        widths = own if isinstance(own, tuple) else choices.widths
        writer = next(node for node in graph.nodes if node.path == group.name)
        scopes = {"network": "network", "stage": stages[index], "block": _block(writer), "layer": group.name}
        tied.setdefault((scopes[choices.width_scope], widths), []).append(index)
    named = Counter(scope for scope, _ in tied)
    return [
        _width_dimension(
            graph, scope if named[scope] == 1 else graph.groups[members[0]].name, widths, members, choices.divisor
        )
        for (scope, widths), members in tied.items()
    ], fixed


def _width_dimension(
    graph: Graph, name: str, widths: Sequence[float], members: Sequence[int], divisor: int
) -> Dimension:
    """Return one width dimension; a multiplier that gives the channels of an earlier one is left out."""
    distinct: dict[tuple[int, ...], float] = {}
    for width in widths:
        channels = tuple(scaled_channels(graph.groups[g].channels, width, divisor) for g in members)
        distinct.setdefault(channels, width)
    options = tuple(distinct.values())
    return Dimension(f"width.{name}", "width", options, tuple(members), tuple(zip(*distinct, strict=True)))


def _depth_dimensions(graph: Graph, choices: Choices) -> tuple[list[Dimension], list[Fixed]]:
    stages: dict[str, list[int]] = {}
    for index, block in enumerate(graph.blocks):
        stages.setdefault(block.stage, []).append(index)
    if not stages and isinstance(choices.depths, tuple):
        raise SpaceError(
            f"depths = {list(choices.depths)} needs droppable blocks, but this base has none: leave depths out."
        )
    dimensions, fixed = [], []
    for stage, members in stages.items():
        paths = _stage_paths(graph, stage)
        if _matches(paths, choices.exempt):
            fixed.append(Fixed(f"depth.{stage}", "exempt"))
            continue
        depths = _override(choices.overrides, paths, "depths") or choices.depths
        kept = {"all": tuple(range(len(members) + 1)), "fixed": (len(members),)}
        options = kept[depths] if isinstance(depths, str) else _within(stage, depths, len(members))
        dimensions.append(Dimension(f"depth.{stage}", "depth", options, tuple(members)))
    return dimensions, fixed


def _within(stage: str, depths: object, most: int) -> tuple[int, ...]:
    assert isinstance(depths, tuple)
    options = tuple(depth for depth in dict.fromkeys(depths) if depth <= most)
    if not options:
        raise SpaceError(
            f"Stage {stage!r} can keep at most {most} droppable blocks, but depths = {list(depths)} has none so small."
        )
    return options
