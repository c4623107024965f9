"""What tracing knows of a tensor: which channel variable its first axis has, and what that is tied to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Rule", "Value", "Variables", "Visit"]


@dataclass(slots=True)
class Variables:
    """Union-find over channel variables; a root knows its channels and why it is fixed."""

    parent: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)

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

    `shape` is that of one image; weights and what is computed from them alone have no axis of the batch to leave out.
    """

    variable: int
    features: int
    node: int
    shape: tuple[int, ...]
    has_batch: bool


@dataclass(slots=True)
class Visit:
    """What a rule sees of one call and what it answers with.

    `weights` are the parameters that no earlier call has counted; `fields` go to the node; `reason` says why the
    operator of a convolution is fixed.
    """

    variables: Variables
    layers: dict[str, tuple[int, ...]]
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
        known = self.layers.get(self.path)
        if known is None:
            self.layers[self.path] = reads, (after := writes())
            return after
        self.fields["shared"] = True
        if not known:
            self.variables.fix(reads, f"enters {self.label}")
            self.variables.fix(after := writes(), f"leaves {self.label}")
            return after
        before, after = known
        self.variables.tie(before, reads)
        return after

    def keep_layer(self) -> None:
        """Fix what the called layer reads and writes elsewhere too: here it would not follow."""
        for variable in self.layers.get(self.path, ()):
            self.variables.fix(variable, f"enters {self.label}")
        self.layers[self.path] = ()


Rule = Callable[[Visit], tuple[int, int]]  # from a call to the variable of its output and its features
