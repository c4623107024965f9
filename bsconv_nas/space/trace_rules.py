"""How operations tie, pass and fix the channels of what they read: a rule for each kind of module and function.

Every channel axis has a variable; operations that need equal channels unify theirs (tied). What no rule knows fixes the
variables that it touches and is named.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from bsconv_nas.decompositions import ConvSpec

__all__ = [
    "ACTIVATIONS",
    "ADDITIONS",
    "FUNCTION_ACTIVATIONS",
    "FUNCTION_RULES",
    "MODULE_RULES",
    "NORMS",
    "Rule",
    "Value",
    "Variables",
    "Visit",
    "opaque",
]

# Each output channel depends on the same input channel alone, whatever the number of channels.
PER_CHANNEL_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.Upsample,
)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.InstanceNorm2d)
PER_CHANNEL_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.relu,
        F.relu6,
        F.leaky_relu,
        F.elu,
        F.gelu,
        F.silu,
        F.hardswish,
        F.hardsigmoid,
        F.sigmoid,
        F.tanh,
        F.dropout,
        F.dropout2d,
        F.max_pool2d,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
        F.interpolate,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
        "relu",
        "sigmoid",
        "tanh",
        "contiguous",
        "clone",
    }
)
JOINING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        operator.add,
        operator.iadd,
        operator.sub,
        operator.mul,
        operator.imul,
        operator.truediv,
        torch.add,
        torch.sub,
        torch.mul,
        "add",
        "add_",
        "mul",
        "mul_",
    }
)
ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.Mish: "mish",
    nn.SELU: "selu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
FUNCTION_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
}


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
    """A traced tensor: its channel variable, values per channel of its first axis, and its node's index."""

    variable: int
    features: int
    node: int
    shape: tuple[int, ...]


@dataclass(slots=True)
class Visit:
    """What a rule sees of one call and what it answers with."""

    variables: Variables
    layers: dict[str, tuple[int, int]]
    name: str
    path: str
    target: Any
    module: nn.Module | None
    arguments: tuple[Any, ...]
    values: list[Value]
    shape: tuple[int, ...]
    macs: int
    fields: dict[str, Any] = field(default_factory=dict)

    def fresh(self, reason: str = "") -> tuple[int, int]:
        """Answer with new channels."""
        return self.variables.new(self.shape[0] if self.shape else 1, reason), 1

    def same(self) -> tuple[int, int]:
        """Answer with the channels that were read."""
        return self.values[0].variable, self.values[0].features

    def layer(self, reads: int, writes: Callable[[], int]) -> int:
        """Return the output variable of a layer with weights, the same at each of its calls."""
        if self.path in self.layers:
            before, after = self.layers[self.path]
            self.variables.tie(before, reads)
            self.fields["shared"] = True
            return after
        self.layers[self.path] = reads, (after := writes())
        return after


Rule = Callable[[Visit], tuple[int, int]]


def opaque(visit: Visit) -> tuple[int, int]:
    """Fix whatever enters and leaves an operation that no rule knows."""
    label = visit.path or getattr(visit.target, "__name__", str(visit.target))
    for value in visit.values:
        visit.variables.fix(value.variable, f"enters {label}")
    if visit.module is not None:
        visit.fields["params"] = sum(p.numel() for p in visit.module.parameters())
    visit.fields["macs"] = visit.macs
    return visit.fresh(f"leaves {label}")


def _same(visit: Visit) -> tuple[int, int]:
    return visit.same() if visit.values else visit.fresh("no tensor enters")


def _conv(visit: Visit) -> tuple[int, int]:
    conv = cast(nn.Conv2d, visit.module)
    reads = visit.values[0].variable
    if conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels:
        taps = math.prod(conv.kernel_size)
        visit.fields |= {
            "macs_per_channel": taps * math.prod(visit.shape[1:]),
            "params_per_channel": taps + (conv.bias is not None),
        }
        return visit.layer(reads, lambda: reads), 1
    if conv.groups > 1:
        visit.variables.fix(reads, f"enters the grouped convolution {visit.path}")
        visit.fields |= {
            "macs": visit.macs,
            "params": sum(p.numel() for p in conv.parameters()),
        }
        reason = f"leaves the grouped convolution {visit.path}"
        return visit.layer(reads, lambda: visit.variables.new(conv.out_channels, reason)), 1
    visit.fields["spec"] = _spec(conv)
    return visit.layer(reads, lambda: visit.variables.new(conv.out_channels)), 1


def _spec(conv: nn.Conv2d) -> ConvSpec:
    padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
    sizes = _pair(conv.kernel_size), _pair(conv.stride), padding, _pair(conv.dilation)
    return ConvSpec(conv.in_channels, conv.out_channels, *sizes, conv.bias is not None, conv.padding_mode)


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _linear(visit: Visit) -> tuple[int, int]:
    linear = cast(nn.Linear, visit.module)
    if len(visit.shape) != 1:
        return opaque(visit)
    visit.fields["bias"] = linear.bias is not None
    return visit.layer(visit.values[0].variable, lambda: visit.variables.new(linear.out_features)), 1


def _norm(visit: Visit) -> tuple[int, int]:
    module = cast(nn.BatchNorm2d, visit.module)
    reads = visit.values[0]
    visit.fields["params_per_channel"] = sum(p is not None for p in (module.weight, module.bias)) * reads.features
    return visit.layer(reads.variable, lambda: reads.variable), reads.features


def _prelu(visit: Visit) -> tuple[int, int]:
    slopes = cast(nn.PReLU, visit.module).num_parameters
    visit.fields["params" if slopes == 1 else "params_per_channel"] = 1
    return visit.layer(visit.values[0].variable, lambda: visit.values[0].variable), visit.values[0].features


def _flatten(visit: Visit) -> tuple[int, int]:
    reads = visit.values[0]
    if len(visit.shape) != 1:
        return opaque(visit)
    return reads.variable, reads.features * math.prod(reads.shape[1:])


def _flatten_call(visit: Visit) -> tuple[int, int]:
    """A view or reshape that keeps the batch and infers the rest is a flatten; any other fixes what it reads."""
    inferred = visit.arguments[-1] == -1 and len(visit.arguments) == 3
    is_flatten = str(visit.target) == "flatten" or visit.target is torch.flatten or inferred
    return _flatten(visit) if is_flatten else opaque(visit)


def _mean(visit: Visit) -> tuple[int, int]:
    reads = visit.values[0]
    keeps = len(reads.shape) == 3 and visit.shape in ((reads.shape[0],), (reads.shape[0], 1, 1))
    return visit.same() if keeps else opaque(visit)


def join(visit: Visit) -> tuple[int, int]:
    first, *others = visit.values
    for value in others:
        if value.shape[:1] != first.shape[:1] or value.features != first.features:
            return opaque(visit)
        visit.variables.tie(first.variable, value.variable)
    return visit.same()


MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.PReLU: _prelu,
    nn.Flatten: _flatten,
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(PER_CHANNEL_MODULES, _same),
}
FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(PER_CHANNEL_FUNCTIONS, _same),
    **dict.fromkeys(JOINING_FUNCTIONS, join),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape"), _flatten_call),
    **dict.fromkeys((torch.mean, "mean"), _mean),
}
