"""Runs of layers that are one place: separable pairs, and the two halves of inverted residuals; without torch.

A run is found on the traced nodes and becomes one node, so that whoever reads the graph sees one place with one plan.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bsconv_nas.space.graph import Node
from bsconv_nas.space.places import Place, Role

__all__ = ["fused"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive nodes that become one place; `form` is the inverted residual that they are a half of."""

    role: Role
    members: tuple[int, ...]
    inner: str = "none"
    activation: str = ""
    form: str = ""


def fused(traced: Sequence[Node], activations: Mapping[str, str], norms: Mapping[str, str]) -> list[Node]:
    """Return the nodes with every run as one node, and without identities.

    Args:
        traced: what was traced, in order.
        activations: the names of `SECOND_MOMENTS` by the class names of the modules that compute them.
        norms: the activation that a batch norm applies itself, by the norm's path; "" where it applies none.
    """
    nodes = _without_identities(traced)
    finder = _Finder(nodes, activations, norms)
    runs: list[_Run] = []
    for index in finder.depthwise():
        taken = {member for run in runs for member in run.members}
        free = (found for found in finder.around(index) if not any(taken & {*run.members} for run in found))
        runs += next(free, [])
    return _merged(nodes, runs, norms)


class _Finder:
    """Looks for runs around the depthwise convolutions of a graph."""

    def __init__(self, nodes: Sequence[Node], activations: Mapping[str, str], norms: Mapping[str, str]) -> None:
        self.nodes, self.activations, self.norms = nodes, activations, norms
        self._readers: dict[int, list[int]] = {}
        for index, node in enumerate(nodes):
            for source in node.inputs:
                self._readers.setdefault(source, []).append(index)
        self._calls = Counter(node.path for node in nodes)

    def depthwise(self) -> Iterator[int]:
        """Yield the depthwise convolutions."""
        for index, node in enumerate(self.nodes):
            if node.place and node.place.role == "depthwise" and self._calls[node.path] == 1:
                yield index

    def around(self, index: int) -> Iterator[list[_Run]]:
        """Yield what a depthwise convolution may be part of, best first: the halves of an inverted residual, a pair."""
        expansion, projection = self._expansion(index), self._projection(index)
        pair = self._run("pair", index, self._behind(index))
        if projection is not None and expansion is not None and self._opens(expansion):
            yield self._halves(expansion, projection)
        if pair is not None:
            yield [pair]
        elif projection is not None and self._branches(index, projection):
            yield self._halves(_Run("depthwise", (index,)), projection)

    def _halves(self, first: _Run, projection: int) -> list[_Run]:
        form = self._common_path((*first.members, projection))
        halves = first, _Run("projection", (projection,))
        return [dataclasses.replace(half, form=form) for half in halves]

    def _branches(self, start: int, end: int) -> bool:
        """Whether the way from `start` to `end` forks, as for a squeeze-and-excitation."""
        while start != end and len(readers := self._readers[start]) == 1:
            (start,) = readers
        return start != end

    def _run(self, role: Role, start: int, members: Sequence[int]) -> _Run | None:
        """Return the run of some layers if nothing but a norm, or a norm and an activation, stands in between."""
        indices = sorted((start, *members))
        if not members or indices != list(range(indices[0], indices[0] + len(indices))):
            return None
        inner, activation = self._inner(indices[1:-1])
        return _Run(role, tuple(indices), inner, activation) if inner else None

    def _inner(self, between: Sequence[int]) -> tuple[str, str]:
        """Return what stands between two convolutions as the options call it, or "" for what none of them means."""
        match [layer for i in between for layer in self._layers(i)]:
            case []:
                return "none", ""
            case ["norm"]:
                return "bn", ""
            case [activation] if activation:
                return "act", activation
            case ["norm", activation] if activation not in ("", "norm"):
                return "bn_act", activation
        return "", ""

    def _layers(self, index: int) -> list[str]:
        """Return what a node between two convolutions does: "norm", an activation's name, or both; "" for all else."""
        node = self.nodes[index]
        if self._is_norm(index):
            return ["norm", *filter(None, [self.norms[node.path]])]
        return [self.activations.get(node.op, "")]

    def _is_norm(self, index: int) -> bool:
        node = self.nodes[index]
        return node.path in self.norms and node.params_per_channel == 2

    def _behind(self, index: int) -> list[int]:
        """Return the layers behind a convolution up to the next pointwise one, or none if there is no straight way."""
        found: list[int] = []
        while len(found) < 3 and len(readers := self._readers.get(index, [])) == 1:
            (index,) = readers
            found.append(index)
            if self._is_pointwise(index):
                return found
            if not self._is_plain(index):
                break
        return []

    def _expansion(self, index: int) -> _Run | None:
        """Return the pointwise convolution before a depthwise one, with all that leads from it to there."""
        found: list[int] = []
        at = index
        while len(found) < 3 and len(self.nodes[at].inputs) == 1:
            (at,) = self.nodes[at].inputs
            found.append(at)
            if len(self._readers[at]) != 1:
                break
            if self._is_pointwise(at):
                return self._run("expansion", index, found)
            if not self._is_plain(at):
                break
        return None

    def _opens(self, run: _Run) -> bool:
        """Whether a pointwise convolution begins an inverted residual: it widens, or no separable pair ends with it."""
        place = self.nodes[run.members[0]].place
        return place is not None and (place.spec.c_out > place.spec.c_in or not self._ends_pair(run.members[0]))

    def _ends_pair(self, index: int) -> bool:
        """Whether a depthwise convolution leads straight to a pointwise one."""
        for _ in range(3):
            inputs = self.nodes[index].inputs
            if len(inputs) != 1:
                return False
            (index,) = inputs
            place = self.nodes[index].place
            if place is not None:
                return place.role == "depthwise"
            if not self._is_plain(index):
                return False
        return False

    def _projection(self, index: int) -> int | None:
        """Return the linear pointwise convolution at which all that a depthwise one leads to comes together again.

        What stands between is the block's own: a norm, an activation, a squeeze-and-excitation.
        """
        group = self.nodes[index].group
        for i in range(index + 1, len(self.nodes)):
            reads = [self.nodes[source].group for source in self.nodes[i].inputs]
            if reads == [group] and self._is_pointwise(i) and self._collects(index, i):
                return i if self._is_linear(i) else None
        return None

    def _is_linear(self, index: int) -> bool:
        """Whether no activation follows a convolution, or its norm."""
        behind = self._readers.get(index, [])
        if len(behind) == 1 and self._is_norm(behind[0]):
            if self.norms[self.nodes[behind[0]].path]:
                return False
            behind = self._readers.get(behind[0], [])
        names = {*self.activations, *self.activations.values()}
        return not any(self.nodes[i].op in names for i in behind)

    def _collects(self, start: int, end: int) -> bool:
        """Whether all that `start` leads to comes together again at `end`."""
        reached = {start}
        for i in range(start + 1, end + 1):
            if reached & set(self.nodes[i].inputs):
                reached.add(i)
        leaving = {r for i in reached - {end} for r in self._readers.get(i, [])}
        return leaving <= reached

    def _is_pointwise(self, index: int) -> bool:
        place = self.nodes[index].place
        if place is None or place.role != "conv" or self._calls[self.nodes[index].path] > 1:
            return False
        spec = place.spec
        return (spec.kernel, spec.stride) == ((1, 1), (1, 1)) and spec.padding in ((0, 0), "valid", "same")

    def _is_plain(self, index: int) -> bool:
        """Whether a node is a module of its own that keeps the channels, which another can stand in for."""
        node = self.nodes[index]
        known = self._is_norm(index) or (
            node.op in self.activations and not node.params and not node.params_per_channel
        )
        kept = node.group == self.nodes[node.inputs[0]].group if node.inputs else False
        return bool(node.path) and self._calls[node.path] == 1 and known and kept

    def _common_path(self, members: Sequence[int]) -> str:
        """Return the path of the module around some layers."""
        parents = [PurePosixPath(*self.nodes[i].path.split(".")[:-1]) for i in members]
        around = next(p for p in (parents[0], *parents[0].parents) if all(o.is_relative_to(p) for o in parents))
        return ".".join(around.parts) or self.nodes[members[0]].path


def _without_identities(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes without the modules that hand over what they get."""
    idle = {i for i, node in enumerate(nodes) if node.op == "Identity" and len(node.inputs) == 1}
    at: dict[int, int] = {}
    out: list[Node] = []
    for index, node in enumerate(nodes):
        out += [] if index in idle else [node]
        at[index] = at[node.inputs[0]] if index in idle else len(out) - 1
    return _moved(out, at)


def _moved(nodes: Sequence[Node], at: Mapping[int, int]) -> list[Node]:
    """Return the nodes with the new index of everything that they refer to by its old one."""
    return [
        dataclasses.replace(
            node, inputs=tuple(at[i] for i in node.inputs), alias=None if node.alias is None else at[node.alias]
        )
        for node in nodes
    ]


def _merged(nodes: Sequence[Node], runs: Sequence[_Run], norms: Mapping[str, str]) -> list[Node]:
    starts = {run.members[0]: run for run in runs}
    inside = {member for run in runs for member in run.members[1:]}
    at: dict[int, int] = {}  # new index by old one
    out: list[Node] = []
    for index, node in enumerate(nodes):
        if index not in inside:
            out.append(_whole(nodes, starts[index], norms) if index in starts else node)
        at[index] = len(out) - 1
    return _moved(out, at)


def _whole(nodes: Sequence[Node], run: _Run, norms: Mapping[str, str]) -> Node:
    """Return the node of a run: what its first layer reads and its last one writes."""
    members = [nodes[i] for i in run.members]
    specs = [node.place.spec for node in members if node.place is not None]
    kernel = next((spec for spec in specs if spec.kernel != (1, 1)), specs[-1])
    spec = dataclasses.replace(
        kernel,
        c_in=specs[0].c_in,
        c_out=specs[-1].c_out,
        bias=any(spec.bias for spec in specs),
        activation=run.activation or specs[-1].activation,
    )
    return dataclasses.replace(
        members[-1],
        name=members[0].name,
        path=members[0].path,
        inputs=members[0].inputs,
        place=Place(run.role, spec, run.inner, tuple(s.bias for s in specs)),
        parts=tuple(path for node in members for path in (node.path, *([""] if norms.get(node.path) else []))),
        form=run.form,
        macs=sum(node.macs for node in members),
        params=sum(node.params for node in members),
    )
