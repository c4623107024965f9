"""How operations tie, pass and fix the channels of what they read: a rule for each kind of module and function.

Every channel axis has a variable; operations that need equal channels unify theirs (tied). What no rule knows fixes the
variables that it touches and is named.
"""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from bsconv_nas.decompositions import SECOND_MOMENTS, ConvSpec
from bsconv_nas.space.places import Place
from bsconv_nas.space.trace_values import Rule, Visit

__all__ = [
    "ACTIVATIONS",
    "ADDITIONS",
    "FUNCTION_RULES",
    "MODULE_RULES",
    "NORMS",
    "PER_CHANNEL_MODULES",
    "bare_parameter",
    "fixed_parameter",
    "opaque",
    "same",
]

# Over the last two axes, of which the channels are one where a tensor has no more than (N, C, W).
PLANAR_MODULES: tuple[Any, ...] = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ConstantPad2d,
    nn.CircularPad2d,
)
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
    nn.Softsign,
    nn.LogSigmoid,
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout2d,
    *PLANAR_MODULES,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.Upsample,
)
PLANAR: tuple[Any, ...] = (
    *PLANAR_MODULES,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
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
        F.hardtanh,
        F.interpolate,
        F.logsigmoid,
        F.mish,
        F.selu,
        F.softplus,
        operator.neg,
        torch.abs,
        torch.clamp,
        torch.exp,
        torch.relu,
        torch.sigmoid,
        torch.sqrt,
        torch.square,
        torch.tanh,
        "abs",
        "clamp",
        "clone",
        "contiguous",
        "detach",
        "exp",
        "float",
        "relu",
        "relu_",
        "sigmoid",
        "sqrt",
        "tanh",
        "to",
    }
)
JOINING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        operator.add,
        operator.iadd,
        operator.sub,
        operator.mul,
        operator.imul,
        operator.isub,
        operator.itruediv,
        operator.truediv,
        torch.add,
        torch.div,
        torch.maximum,
        torch.minimum,
        torch.mul,
        torch.sub,
        "add",
        "add_",
        "div",
        "div_",
        "expand_as",
        "mul",
        "mul_",
        "sub",
        "sub_",
    }
)
# They keep the channels, and reduce or drop the axes in their second argument.
REDUCTIONS: frozenset[Any] = frozenset(
    {torch.mean, "mean", torch.sum, "sum", torch.amax, "amax", torch.squeeze, "squeeze"}
)
ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
# What a host network applies behind its convolutions, by the names of `SECOND_MOMENTS`.
ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    "relu": "relu",
    torch.relu: "relu",
    "tanh": "tanh",
    torch.tanh: "tanh",
    **{getattr(F, name): name for name in SECOND_MOMENTS},
}


def opaque(visit: Visit, reason: str = "") -> tuple[int, int]:
    """Fix whatever enters and leaves an operation that no rule knows; `reason` says why a convolution is one."""
    for value in visit.values:
        visit.variables.fix(value.variable, f"enters {visit.label}")
    visit.fields |= {"params": visit.weights, "macs": visit.macs}
    if visit.module is not None:
        visit.fix_layer()
    if isinstance(visit.module, nn.Conv2d):
        visit.reason = reason or "its class has a forward of its own"
    return visit.fresh(f"leaves {visit.label}")


def fixed_parameter(visit: Visit) -> tuple[int, int]:
    """Fix whatever a bare parameter is joined to."""
    visit.fields["params"] = visit.weights
    return visit.fresh(f"the bare parameter {visit.path}")


def bare_parameter(visit: Visit) -> tuple[int, int]:
    """A bare parameter with one value a channel varies with what it is joined to; any other is fixed."""
    if not visit.shape or math.prod(visit.shape) != visit.shape[0] or visit.shape[0] == 1:
        return fixed_parameter(visit)
    visit.fields["params_per_channel"] = 1
    return visit.variables.new(visit.shape[0]), 1


def same(visit: Visit) -> tuple[int, int]:
    """Keep the channels that enter; several tensors meet channel by channel."""
    if len(visit.values) > 1:
        return join(visit)
    return visit.same() if visit.values else visit.fresh("no tensor enters")


def _planar(visit: Visit) -> tuple[int, int]:
    """Keep the channels of (N, C, H, W); of a tensor with fewer axes they would be pooled or padded."""
    return visit.same() if len(visit.shape) == 3 else opaque(visit)


def _conv(visit: Visit) -> tuple[int, int]:
    conv = cast(nn.Conv2d, visit.module)
    if len(visit.shape) != 3:  # the first is neither the batch nor the channels
        return opaque(visit, "it reads several maps at once")
    reads = visit.values[0].variable
    if conv.groups == 1:
        visit.fields["place"] = Place("conv", _spec(conv))
        return visit.layer(reads, lambda: visit.variables.new(conv.out_channels)), 1
    if conv.groups == conv.in_channels == conv.out_channels:
        visit.fields["place"] = Place("depthwise", _spec(conv))
        return visit.layer(reads, lambda: reads), 1
    visit.reason = "grouped convolution"
    visit.variables.fix(reads, f"enters the grouped convolution {visit.path}")
    visit.fields |= {"macs": visit.macs, "params": visit.weights}
    reason = f"leaves the grouped convolution {visit.path}"
    return visit.layer(reads, lambda: visit.variables.new(conv.out_channels, reason)), 1


def _spec(conv: nn.Conv2d) -> ConvSpec:
    padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
    sizes = _pair(conv.kernel_size), _pair(conv.stride), padding, _pair(conv.dilation)
    return ConvSpec(conv.in_channels, conv.out_channels, *sizes, conv.bias is not None, conv.padding_mode)


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _linear(visit: Visit) -> tuple[int, int]:
    linear = cast(nn.Linear, visit.module)
    if not len(visit.shape) == len(visit.values[0].shape) == 1:  # of a bare parameter, the first axis is no batch
        return opaque(visit)
    visit.fields["bias"] = linear.bias is not None
    return visit.layer(visit.values[0].variable, lambda: visit.variables.new(linear.out_features)), 1


def _norm(visit: Visit) -> tuple[int, int]:
    module = cast(nn.BatchNorm2d, visit.module)
    reads = visit.values[0]
    if visit.shape != reads.shape or visit.shape[0] != module.num_features:
        return opaque(visit)
    visit.fields["params_per_channel"] = sum(p is not None for p in (module.weight, module.bias)) * reads.features
    return visit.layer(reads.variable, lambda: reads.variable), reads.features


def _prelu(visit: Visit) -> tuple[int, int]:
    reads = visit.values[0]
    slopes = cast(nn.PReLU, visit.module).num_parameters
    if slopes == 1:
        visit.fields["params"] = visit.weights
        return visit.same()
    if slopes != visit.shape[0]:
        return opaque(visit)
    visit.fields["params_per_channel"] = reads.features
    return visit.layer(reads.variable, lambda: reads.variable), reads.features


def _flatten(visit: Visit) -> tuple[int, int]:
    """A call that makes one axis of all but the batch is a flatten, whatever its name; any other fixes its input."""
    reads = visit.values[0]
    if visit.shape != (math.prod(reads.shape),):
        return opaque(visit)
    return reads.variable, reads.features * math.prod(reads.shape[1:])


def _flatten_call(visit: Visit) -> tuple[int, int]:
    """As `_flatten`, if the number of channels is inferred and not written down."""
    inferred = visit.arguments[-1] == -1 and len(visit.arguments) == 3
    is_flatten = str(visit.target) == "flatten" or visit.target is torch.flatten or inferred
    return _flatten(visit) if is_flatten else opaque(visit)


def _pad(visit: Visit) -> tuple[int, int]:
    """Padding behind the channels keeps them."""
    sides = visit.keywords.get("pad", visit.arguments[1] if len(visit.arguments) > 1 else ())
    return visit.same() if len(sides) <= 2 * (len(visit.shape) - 1) else opaque(visit)


def _index(visit: Visit) -> tuple[int, int]:
    """Slices behind the channels keep them."""
    index = visit.arguments[1] if isinstance(visit.arguments[1], tuple) else ()
    whole = index[:2] == (slice(None), slice(None)) and all(isinstance(axis, slice) for axis in index)
    return visit.same() if whole and len(visit.values) == 1 else opaque(visit)


def _reduce(visit: Visit) -> tuple[int, int]:
    """A reduction over axes behind the channels keeps them."""
    rank = len(visit.values[0].shape) + 1
    asked = visit.keywords.get("dim", visit.arguments[1] if len(visit.arguments) > 1 else 0)
    axes = asked if isinstance(asked, list | tuple) else (asked,)
    return visit.same() if all(isinstance(a, int) and a % rank >= 2 for a in axes) else opaque(visit)


def join(visit: Visit) -> tuple[int, int]:
    """Tie what meets channel by channel; what has one channel, as a spatial mask, is broadcast and stays so."""
    joined = [value for value in visit.values if value.shape[:1] == visit.shape[:1]]
    if not joined:
        return opaque(visit)
    broadcast = [value for value in visit.values if value not in joined]
    aligned = all(len(v.shape) == len(visit.shape) and v.features == joined[0].features for v in joined)
    if not aligned or any(math.prod(value.shape[:1]) != 1 for value in broadcast):
        return opaque(visit)
    for value in joined:
        visit.variables.tie(joined[0].variable, value.variable)
    for value in broadcast:
        visit.variables.fix(value.variable, f"is broadcast by {visit.label}")
    return joined[0].variable, joined[0].features


MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.PReLU: _prelu,
    nn.Flatten: _flatten,
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(PER_CHANNEL_MODULES, same),
    **dict.fromkeys((kind for kind in PLANAR if isinstance(kind, type)), _planar),
}
FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(PER_CHANNEL_FUNCTIONS, same),
    **dict.fromkeys(PLANAR, _planar),
    **dict.fromkeys(JOINING_FUNCTIONS, join),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape"), _flatten_call),
    **dict.fromkeys(REDUCTIONS, _reduce),
    F.pad: _pad,
    operator.getitem: _index,
}
