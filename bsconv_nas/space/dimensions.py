"""From a graph and the choices to the table: what varies, what is tied, and what stays fixed and why."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Any

from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.space.files import Choices, Override, Scope
from bsconv_nas.space.graph import Fixed, Graph, Node
from bsconv_nas.space.places import Place
from bsconv_nas.space.table import Dimension, Kind, Table, Value
from bsconv_nas.space.unpaired import why_unpaired
from bsconv_nas.space.unvaried import check_asked, why_nothing

__all__ = ["make_table", "scaled_channels"]

Options = tuple[Value, ...]
HALVES = ("expansion", "projection")  # of inverted residuals


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
    made = _Maker(graph, choices, _stages(graph))
    _check_patterns(graph, choices, made.searched)
    _check_multipliers(graph, choices)
    kinds = (made.depths, made.widths, made.expansions, made.kernels, made.operators, made.forms)
    dimensions = tuple(chain.from_iterable(make() for make in kinds))  # also those of one option: more change no key
    fixed = (*graph.fixed, *made.fixed)
    if not any(len(d.options) > 1 for d in dimensions):
        raise SpaceError(f"A search space must leave something to choose, but {why_nothing(fixed, dimensions)}.")
    check_asked(choices, dimensions)
    return Table(graph, dimensions, fixed)


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
        resolution: top if shared[top] == 1 else _home(graph, by_resolution[resolution][0])
        for resolution, top in tops.items()
    }
    return [names[bool(group.reason), *group.resolution] for group in graph.groups]


def _home(graph: Graph, group: int) -> str:
    """Return the element of the sequential in which a group is first written, or its own name where there is none."""
    name = graph.groups[group].name
    return next((node.element for node in graph.nodes if name in (node.path, *node.parts) and node.element), name)


def _matches(paths: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns for path in paths)


def _goes_by(node: Node) -> list[str]:
    """Return the paths by which a place goes: its layers, and the inverted residual that it is a half of."""
    return [*dict.fromkeys(filter(None, (node.path, *node.parts, node.form)))]


def _written_by(graph: Graph, group: int) -> list[str]:
    """Return the paths by which a width group goes: its name, and the layers that write it."""
    writers = (n for n in graph.nodes if n.group == group and n.is_layer)
    return [graph.groups[group].name, *filter(None, chain.from_iterable(n.parts or (n.path,) for n in writers))]


def _stage_paths(graph: Graph, stage: str) -> list[str]:
    """Return the paths by which a stage's depth goes: its name and its blocks."""
    return [stage, *(block.path for block in graph.blocks if block.stage == stage)]


def _check_patterns(graph: Graph, choices: Choices, searched: Sequence[int]) -> None:
    """Refuse a pattern that matches nothing of the kind that it speaks of."""
    places = [(node, node.place) for node in (graph.nodes[i] for i in searched) if node.place is not None]
    paths = {
        "operators": [path for node, place in places if place.role in ("conv", "pair") for path in _goes_by(node)],
        "blocks": [path for node, place in places if place.role in HALVES for path in _goes_by(node)],
        "kernels": [path for node, place in places if place.takes_kernels for path in _goes_by(node)],
        "expansions": [path for node, place in places if place.role == "expansion" for path in _goes_by(node)],
        "widths": [p for g, group in enumerate(graph.groups) if not group.reason for p in _written_by(graph, g)],
        "depths": [path for stage in {b.stage for b in graph.blocks} for path in _stage_paths(graph, stage)],
    }
    paths["exempt"] = [path for node in graph.nodes if node.place and not node.shared for path in _goes_by(node)]
    asked = [(pattern, ["exempt", "widths", "depths"]) for pattern in choices.exempt]
    for override in choices.overrides:
        asked += [(override.pattern, [kind]) for kind in paths if getattr(override, kind, None) is not None]
    for pattern, kinds in asked:
        known = [path for kind in kinds for path in paths[kind]]
        if not _matches(known, [pattern]):
            near = difflib.get_close_matches(pattern, dict.fromkeys(known), n=5, cutoff=0.0)
            what = f"whose {kinds[0]} can vary" if len(kinds) == 1 else "where something can vary"
            raise SpaceError(
                f"Pattern {pattern!r} must match a path of the base {what}, but matches none: "
                f"{suggest(pattern, near) if near else 'there is none'}."
            )


def _check_multipliers(graph: Graph, choices: Choices) -> None:
    """Refuse a multiplier that rounds to zero every width that it speaks of; a ratio may speak of any."""
    free = {g: group.channels for g, group in enumerate(graph.groups) if not group.reason}
    tables: list[Choices | Override] = [choices, *choices.overrides]
    for table in tables:
        patterns = [table.pattern if isinstance(table, Override) else "*"]
        named = [channels for g, channels in free.items() if _matches(_written_by(graph, g), patterns)]
        asked = [(width, named) for width in table.widths or ()]
        asked += [(ratio, [*free.values()]) for ratio in table.expansions or ()]
        for width, found in asked:
            widest = max(found, default=0)
            if widest and width * widest / choices.divisor < 0.5:
                raise SpaceError(
                    f"A multiplier must leave some width above zero, but {width} of its widest, {widest} channels, "
                    f"rounds to zero multiples of {choices.divisor}: take a larger one, or a smaller divisor."
                )


@dataclass(frozen=True, slots=True)
class _Entry:
    """Something that may vary: its name, its options, what they act on, and what each scope calls it."""

    path: str
    options: Options
    members: tuple[int, ...]
    scopes: dict[Scope, str]


class _Maker:
    """Makes the dimensions of each kind, and names what stays fixed."""

    def __init__(self, graph: Graph, choices: Choices, stages: Sequence[str]) -> None:
        self.graph, self.choices, self.stages = graph, choices, stages
        self.fixed: list[Fixed] = []
        self._calls = Counter(node.path for node in graph.nodes)
        self.searched = list(self._varying_places())

    def operators(self) -> Iterator[Dimension]:
        """Yield what chooses the decompositions of convolutions and separable pairs."""
        roles = ("conv", "pair")
        entries = [self._entry("operators", i) for i in self.searched if self._place(i).role in roles]
        return self._tied("conv", "conv", self.choices.scope, entries)

    def forms(self) -> Iterator[Dimension]:
        """Yield what chooses the forms of inverted residuals."""
        entries = []
        for form, halves in self._halves().items():
            whole = self._entry("blocks", halves[0])
            entries.append(_Entry(form, whole.options, tuple(halves), {**whole.scopes, "layer": form}))
        return self._tied("block", "conv", self.choices.scope, entries)

    def kernels(self) -> Iterator[Dimension]:
        """Yield what chooses kernel sizes; places whose kernels nobody asked for have none."""
        entries = (self._kernel_entry(i) for i in self.searched if self._place(i).takes_kernels)
        return self._tied("kernel", "kernel", self.choices.scope, [entry for entry in entries if entry.options])

    def _kernel_entry(self, index: int) -> _Entry:
        """Return the entry of a place without the kernels that its images are too small for, which are named."""
        entry, place = self._entry("kernels", index), self._place(index)
        size = self.graph.nodes[self.graph.nodes[index].inputs[0]].shape[1:]
        kept = tuple(kernel for kernel in entry.options if place.admits(int(kernel), size))
        shown, mode = "x".join(map(str, size)), place.spec.padding_mode
        for kernel in (kernel for kernel in entry.options if kernel not in kept):
            reason = f"its padding_mode {mode!r} needs larger images than {shown}"
            self.fixed.append(Fixed(f"kernel.{entry.path}={kernel}", reason))
        return dataclasses.replace(entry, options=kept)

    def expansions(self) -> Iterator[Dimension]:
        """Yield what chooses the expansion ratios of inverted residuals, where any were asked for."""
        entries = [self._group_entry("expansions", group) for group in self._hidden]
        return self._tied("expand", "expand", self.choices.width_scope, entries)

    def widths(self) -> Sequence[Dimension]:
        """Return what chooses the multipliers of width groups."""
        return self._widths

    @cached_property
    def _widths(self) -> list[Dimension]:
        entries = []
        for index, group in enumerate(self.graph.groups):
            if not group.reason and index not in self._hidden:
                if _matches(_written_by(self.graph, index), self.choices.exempt):
                    self.fixed.append(Fixed(f"width.{group.name}", "exempt"))
                else:
                    entries.append(self._group_entry("widths", index))
        return list(self._tied("width", "width", self.choices.width_scope, entries))

    def depths(self) -> Iterator[Dimension]:
        """Yield what chooses how many droppable blocks of a stage stay."""
        stages: dict[str, list[int]] = {}
        for index, block in enumerate(self.graph.blocks):
            stages.setdefault(block.stage, []).append(index)
        if not stages and isinstance(self.choices.depths, tuple):
            raise SpaceError(
                f"depths = {list(self.choices.depths)} needs droppable blocks, but this base has none: "
                "leave depths out."
            )
        for stage, members in stages.items():
            paths = _stage_paths(self.graph, stage)
            if _matches(paths, self.choices.exempt):
                self.fixed.append(Fixed(f"depth.{stage}", "exempt"))
                continue
            depths = self._asked("depths", paths)
            kept = {"all": tuple(range(len(members) + 1)), "fixed": (len(members),)}
            options = kept[depths] if isinstance(depths, str) else _within(stage, depths, len(members))
            yield Dimension(f"depth.{stage}", "depth", options, tuple(members), base=_nearest(options, len(members)))

    def _asked(self, key: str, paths: Iterable[str]) -> Any:
        """Return what the last matching override says about `key`, or what holds everywhere."""
        found = (getattr(o, key) for o in reversed(self.choices.overrides) if _matches(paths, [o.pattern]))
        return next((value for value in found if value is not None), getattr(self.choices, key))

    def _place(self, node: int) -> Place:
        place = self.graph.nodes[node].place
        assert place is not None
        return place

    def _varying_places(self) -> Iterator[int]:
        """Yield the nodes that are places of which something may vary, and name the others with the reason."""
        for index, node in enumerate(self.graph.nodes):
            if node.place is None or node.shared:
                continue
            if reason := self._why_fixed(node, node.place):
                self.fixed.append(Fixed(f"conv.{node.path}", reason))
            else:
                yield index
                if node.place.role == "depthwise" and not node.form:
                    self.fixed.append(Fixed(f"conv.{node.path}", why_unpaired(self.graph, index)))

    def _why_fixed(self, node: Node, place: Place) -> str:
        if any(self._calls[path] > 1 for path in _goes_by(node)):
            return "called more than once"
        if _matches(_goes_by(node), self.choices.exempt):
            return "exempt"
        if place.role == "conv" and place.spec.kernel == (1, 1):
            return "1x1 kernel"
        return "stem" if not self.choices.stem and place.role == "conv" and self._is_stem(node) else ""

    def _is_stem(self, node: Node) -> bool:
        """Whether no other layer stands between the image and this one."""
        pending = list(node.inputs)
        while pending:
            before = self.graph.nodes[pending.pop()]
            if before.is_layer or before.macs or before.place:
                return False
            pending += before.inputs
        return True

    def _halves(self) -> dict[str, list[int]]:
        """Return the searched places of each inverted residual; what has no expansion has its projection alone."""
        found: dict[str, list[int]] = {}
        for index in self.searched:
            if self._place(index).role in HALVES:
                found.setdefault(self.graph.nodes[index].form, []).append(index)
        return found

    @cached_property
    def _hidden(self) -> dict[int, int]:
        """The width groups that an expansion ratio decides, each with the group whose channels it multiplies."""
        expansions = [i for i in self.searched if self._place(i).role == "expansion"]
        written = Counter(self.graph.nodes[i].group for i in expansions)
        found = {}
        for node in (self.graph.nodes[i] for i in expansions):
            parent = self.graph.nodes[node.inputs[0]].group
            free = not self.graph.groups[node.group].reason and written[node.group] == 1 and parent not in written
            if free and self._asked("expansions", _goes_by(node)):
                found[node.group] = parent
        return found

    def _entry(self, key: str, index: int) -> _Entry:
        node = self.graph.nodes[index]
        options = self._asked(key, _goes_by(node)) or ()
        scopes = self._scopes(node.path, node.group, node)
        return _Entry(node.path, options, (index,), scopes)

    def _group_entry(self, key: str, group: int) -> _Entry:
        name = self.graph.groups[group].name
        writer = next(node for node in self.graph.nodes if name in (node.path, *node.parts))
        options = self._asked(key, [*_written_by(self.graph, group), *filter(None, [writer.form])])
        return _Entry(name, options, (group,), self._scopes(name, group, writer))

    def _scopes(self, path: str, group: int, node: Node) -> dict[Scope, str]:
        block = node.form or node.element or node.path.rpartition(".")[0] or node.path
        return {"network": "network", "stage": self.stages[group], "block": block, "layer": path}

    def _tied(self, prefix: str, kind: Kind, scope: Scope, entries: Sequence[_Entry]) -> Iterator[Dimension]:
        """Yield a dimension for all entries that a scope ties and that have the same options."""
        tied: dict[tuple[str, Options], list[_Entry]] = {}
        for entry in entries:
            tied.setdefault((entry.scopes[scope], entry.options), []).append(entry)
        shared = Counter(name for name, _ in tied)
        for (name, options), members in tied.items():
            acted_on = tuple(chain.from_iterable(entry.members for entry in members))
            full = f"{prefix}.{name if shared[name] == 1 else members[0].path}"
            yield _MAKERS[kind](self, full, options, acted_on)

    def _operator_dimension(self, name: str, options: Options, members: tuple[int, ...]) -> Dimension:
        own = self._place(members[0]).own
        if {self._place(member).role for member in members} == {"projection"}:  # nothing there expands
            options = tuple(option for option in options if option != "fused") or (own,)
        return Dimension(name, "conv", options, members, base=options.index(own) if own in options else 0)

    def _kernel_dimension(self, name: str, options: Options, members: tuple[int, ...]) -> Dimension:
        base = _nearest(options, self._place(members[0]).spec.kernel[0])
        return Dimension(name, "kernel", options, members, base=base)

    def _width_dimension(self, name: str, options: Options, members: tuple[int, ...]) -> Dimension:
        """Return one width dimension; a multiplier that gives the channels of an earlier one is left out."""
        distinct: dict[tuple[int, ...], Value] = {}
        for width in options:
            channels = tuple(self._scaled(self.graph.groups[g].channels, width) for g in members)
            distinct[channels] = width if width == 1 else distinct.get(channels, width)
        kept = tuple(distinct.values())
        return Dimension(name, "width", kept, members, tuple(zip(*distinct, strict=True)), base=_nearest(kept, 1))

    def _scaled(self, channels: int, width: Value) -> int:
        return scaled_channels(channels, float(width), self.choices.divisor)

    def _expand_dimension(self, name: str, options: Options, members: tuple[int, ...]) -> Dimension:
        """Return one dimension of ratios, which multiply the channels that the parents have at their widths."""
        parents = tuple(self._hidden[group] for group in members)
        widths = {g: d.channels[i] for d in self._widths for i, g in enumerate(d.members)}
        read = [widths.get(parent, (self.graph.groups[parent].channels,)) for parent in parents]
        channels = tuple(tuple(self._scaled(c, ratio) for ratio in options for c in row) for row in read)
        ratio = self.graph.groups[members[0]].channels / self.graph.groups[parents[0]].channels
        return Dimension(name, "expand", options, members, channels, parents, _nearest(options, ratio))


_MAKERS: dict[Kind, Callable[[_Maker, str, Options, tuple[int, ...]], Dimension]] = {
    "conv": _Maker._operator_dimension,
    "kernel": _Maker._kernel_dimension,
    "width": _Maker._width_dimension,
    "expand": _Maker._expand_dimension,
}


def _nearest(options: Options, value: float) -> int:
    return min(range(len(options)), key=lambda i: abs(float(options[i]) - value))


def _within(stage: str, depths: object, most: int) -> tuple[int, ...]:
    assert isinstance(depths, tuple)
    options = tuple(depth for depth in dict.fromkeys(depths) if depth <= most)
    if not options:
        raise SpaceError(
            f"Stage {stage!r} can keep at most {most} droppable blocks, but depths = {list(depths)} has none so small."
        )
    return options
