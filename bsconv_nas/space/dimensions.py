"""From a graph and the choices to the table: what varies, what is tied, and what stays fixed and why."""

from __future__ import annotations

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

    >>> scaled_channels(64, 0.3, 8)
    16
    """
    return max(divisor, divisor * int(Fraction(str(width)) * channels / divisor + Fraction(1, 2)))


def make_table(graph: Graph, choices: Choices) -> Table:
    """Return the search space over `graph` that `choices` declare.

    Raises:
        SpaceError: a pattern that matches nothing, or choices that leave nothing to vary.
    """
    stages = _stages(graph)
    _check_patterns(graph, choices, stages)
    places, fixed_places = _places(graph, choices)
    convs = _conv_dimensions(graph, choices, places, stages)
    widths, fixed_widths = _width_dimensions(graph, choices, stages)
    depths, fixed_depths = _depth_dimensions(graph, choices)
    dimensions = [*depths, *widths, *convs]
    varying = tuple(d for d in dimensions if len(d.options) > 1 or d.kind == "conv")
    if not any(len(d.options) > 1 for d in varying):
        raise SpaceError("A search space must leave something to choose, but every dimension has one option: add some.")
    constant = [Fixed(d.name, f"the only option is {d.options[0]}") for d in dimensions if d not in varying]
    fixed = (*fixed_places, *graph.fixed, *fixed_widths, *fixed_depths, *constant)
    return Table(graph, varying, fixed)


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


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _check_patterns(graph: Graph, choices: Choices, stages: Sequence[str]) -> None:
    paths = {node.path for node in graph.nodes if node.path} | {group.name for group in graph.groups}
    paths |= {block.stage for block in graph.blocks} | {block.path for block in graph.blocks} | set(stages)
    for pattern in [*choices.exempt, *(override.pattern for override in choices.overrides)]:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            convs = [node.path for node in graph.nodes if node.spec is not None]
            raise SpaceError(
                f"Pattern {pattern!r} must match a path of the base, but matches none: {_near(pattern, convs)}."
            )


def _near(pattern: str, convs: list[str]) -> str:
    shown = convs if len(convs) <= 12 else [*convs[:11], convs[-1]]
    return suggest(pattern, shown)


def _override(overrides: Sequence[Override], path: str, name: str) -> object:
    """Return what the last matching override says about `name`, or None."""
    found = [getattr(o, name) for o in overrides if fnmatch.fnmatchcase(path, o.pattern)]
    return next((value for value in reversed(found) if value is not None), None)


def _places(graph: Graph, choices: Choices) -> tuple[list[int], list[Fixed]]:
    """Return the conv nodes whose decomposition may be chosen, and the fixed ones with the reason."""
    places, fixed = [], []
    for index, node in enumerate(graph.nodes):
        reason = _why_fixed(graph, node, choices)
        if reason:
            fixed.append(Fixed(f"conv.{node.path}", reason))
        elif node.spec is not None and not node.shared:
            places.append(index)
    return places, fixed


def _why_fixed(graph: Graph, node: Node, choices: Choices) -> str:
    if node.spec is None:
        return "grouped convolution" if node.op == "conv2d" else ""
    if node.shared or sum(n.path == node.path for n in graph.nodes) > 1:
        return "called more than once"
    if _matches(node.path, choices.exempt):
        return "exempt"
    if node.spec.kernel == (1, 1):
        return "1x1 kernel"
    return "stem" if not choices.stem and _is_stem(graph, node) else ""


def _is_stem(graph: Graph, node: Node) -> bool:
    """Whether no other convolution stands between the image and this one."""
    pending = list(node.inputs)
    while pending:
        before = graph.nodes[pending.pop()]
        if before.spec is not None or before.op in ("conv2d", "linear"):
            return False
        pending += before.inputs
    return True


def _conv_dimensions(graph: Graph, choices: Choices, places: list[int], stages: Sequence[str]) -> list[Dimension]:
    tied: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place in places:
        node = graph.nodes[place]
        own = _override(choices.overrides, node.path, "operators")
        operators = own if isinstance(own, tuple) else choices.operators
        scopes = {
            "network": "network",
            "stage": stages[node.group],
            "block": node.path.rpartition(".")[0] or node.path,
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
        if _matches(group.name, choices.exempt):
            fixed.append(Fixed(f"width.{group.name}", "exempt"))
            continue
        own = _override(choices.overrides, group.name, "widths")
        widths = own if isinstance(own, tuple) else choices.widths
        scopes = {"network": "network", "stage": stages[index], "block": group.name.rpartition(".")[0] or group.name}
        tied.setdefault((scopes.get(choices.width_scope, group.name), widths), []).append(index)
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
        if width == 1:
            channels = tuple(graph.groups[g].channels for g in members)
        distinct.setdefault(channels, width)
    options = tuple(distinct.values())
    return Dimension(f"width.{name}", "width", options, tuple(members), tuple(zip(*distinct, strict=True)))


def _depth_dimensions(graph: Graph, choices: Choices) -> tuple[list[Dimension], list[Fixed]]:
    stages: dict[str, list[int]] = {}
    for index, block in enumerate(graph.blocks):
        stages.setdefault(block.stage, []).append(index)
    dimensions, fixed = [], []
    for stage, members in stages.items():
        if _matches(stage, choices.exempt):
            fixed.append(Fixed(f"depth.{stage}", "exempt"))
            continue
        depths = _override(choices.overrides, stage, "depths") or choices.depths
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
