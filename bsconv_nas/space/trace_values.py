"""What tracing knows of a tensor: which channel variable its first axis has, and what that is tied to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Rule", "Value", "Variables", "Visit"]


@dataclass(slots=True)
class Variables:
    """Union-find over channel variables; a root knows its channels and why it is fixed.

    Attributes:
        layers: by path, what a layer with weights reads and writes at each of its calls.
        fixed_layers: the paths of layers that are also called where they could not follow.
    """

    parent: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    fixed_layers: set[str] = field(default_factory=set)

    def new(self, channels: int, reason: str = "") -> int:
        """Return a new variable."""
        self.parent.append(len(self.parent))
        self.channels.append(channels)
        self.reason.append(reason)
        return len(self.parent) - 1

    def root(self, variable: int) -> int:
        """Return the representative of all that is tied to a variable."""
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def tie(self, a: int, b: int) -> None:
        """Require two variables to be equal."""
        first, second = sorted((self.root(a), self.root(b)))
        self.parent[second] = first
        self.reason[first] = self.reason[first] or self.reason[second]

    def fix(self, variable: int, reason: str) -> None:
        """Forbid a variable to change; the first reason is kept."""
        root = self.root(variable)
        self.reason[root] = self.reason[root] or reason


@dataclass(slots=True)
class Value:
    """A traced tensor: its channel variable, values per channel of its first axis, and its node's index.

    `shape` is that for one image; without the first axis where that has one index, as the batch has then.
    """

    variable: int
    features: int
    node: int
    shape: tuple[int, ...]


@dataclass(slots=True)
class Visit:
    """What a rule sees of one call and what it answers with.

    `weights` are the parameters that no earlier call has counted; `fields` go to the node; `reason` says why the
    operator of a convolution is fixed.
    """

    variables: Variables
    label: str
    path: str
    target: Any
    module: nn.Module | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    values: list[Value]
    shape: tuple[int, ...]
    macs: int
    weights: int
    fields: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def fresh(self, reason: str = "") -> tuple[int, int]:
        """Answer with new channels."""
        return self.variables.new(self.shape[0] if self.shape else 1, reason), 1

    def same(self) -> tuple[int, int]:
        """Answer with the channels that were read."""
        return self.values[0].variable, self.values[0].features

    def layer(self, reads: int, writes: Callable[[], int]) -> int:
        """Return the output variable of a layer with weights, the same at each of its calls."""
        layers, is_fixed = self.variables.layers, self.path in self.variables.fixed_layers
        if self.path in layers or is_fixed:
            self.fields["shared"] = True
        if self.path not in layers:
            layers[self.path] = reads, writes()
        before, after = layers[self.path]
        self.variables.tie(before, reads)
        if is_fixed:
            self.fix_layer()
        return after

    def fix_layer(self) -> None:
        """Fix what the called layer reads and writes at its other calls: at this one it could not follow."""
        self.variables.fixed_layers.add(self.path)
        for variable in self.variables.layers.get(self.path, ()):
            self.variables.fix(variable, f"enters or leaves {self.label}")


Rule = Callable[[Visit], tuple[int, int]]  # from a call to the variable of its output and its features
