"""Decompositions of a convolution: pure functions `ConvSpec -> Plan`.

A plan is a sequence of primitives; cost, module, drawing and export all read it. Operators after Haase & Amthor,
"Rethinking Depthwise Separable Convolutions", CVPR 2020 (arXiv 2003.13549); `bsconv_u:r=R` bridges BSConv-U and the
regular convolution (exact at R = K^2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from bsconv_nas.errors import DecompositionError, suggest

__all__ = [
    "DECOMPOSITIONS",
    "SECOND_MOMENTS",
    "Activation",
    "Conv",
    "ConvSpec",
    "Norm",
    "Option",
    "Plan",
    "Primitive",
    "parse_option",
    "plan",
    "plan_from_json",
    "plan_macs",
    "plan_parameters",
    "plan_to_json",
    "primitive_shapes",
    "spatial",
]

MIN_MID_CHANNELS = 4

# E[f(z)^2] of z ~ N(0, 1): what an activation leaves of the unit variance that the norm before it made.
SECOND_MOMENTS = {
    "elu": 0.64495,
    "gelu": 0.42522,
    "hardswish": 0.33157,
    "leaky_relu": 0.50005,
    "mish": 0.45234,
    "relu": 0.5,
    "relu6": 0.5,
    "selu": 1.0,
    "sigmoid": 0.29338,
    "silu": 0.35578,
    "tanh": 0.39429,
}


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """The ungrouped 2-D convolution that a decomposition stands in for.

    `padding` is a pair in pixels or torch's `"same"` / `"valid"`; `activation` names what the host network applies
    behind its convolutions and is used by `inner=bn_act` and `inner=act`.
    """

    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = False
    padding_mode: str = "zeros"
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Refuse sizes that no convolution has."""
        sizes = {"c_in": self.c_in, "c_out": self.c_out, "kernel": min(self.kernel), "stride": min(self.stride)}
        sizes["dilation"] = min(self.dilation)
        for name, value in sizes.items():
            if value < 1:
                raise DecompositionError(f"The {name} of a convolution must be at least 1, but got {value}.")
        named = ("same", "valid") if max(self.stride) == 1 else ("valid",)
        if self.padding not in named if isinstance(self.padding, str) else min(self.padding) < 0:
            law = "two numbers of at least 0, 'valid', or at stride 1 'same'"
            raise DecompositionError(f"The padding of a convolution must be {law}, but got {self.padding!r}.")

    def resized(self, c_in: int, c_out: int) -> ConvSpec:
        """Return the same convolution between other channel counts."""
        return dataclasses.replace(self, c_in=c_in, c_out=c_out)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution; `gain` is the variance gain of its initialisation, Var(w) = gain / fan_in."""

    name: str
    c_in: int
    c_out: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    padding_mode: str = "zeros"
    orthonormal: bool = False
    gain: float = 1.0

    @property
    def fan_in(self) -> int:
        """Weights that one output value sums over."""
        return self.c_in // self.groups * math.prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.c_out * (self.fan_in + self.bias)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the output's height and width [pixels] for an input of `size` (torch.nn.Conv2d's formula)."""
        if self.padding == "same":
            return size
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(size, padding, self.dilation, self.kernel, self.stride, strict=True)
        )
        return height, width


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch normalisation with affine parameters."""

    name: str
    channels: int

    @property
    def parameters(self) -> int:
        """One weight and one bias a channel."""
        return 2 * self.channels


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise non-linearity, named as in `torch.nn.functional`."""

    name: str
    kind: str

    @property
    def parameters(self) -> int:
        """None: parametric activations belong to the host network."""
        return 0


Primitive = Conv | Norm | Activation
Plan = tuple[Primitive, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A decomposition with all its parameters; `str(option)` is canonical and leaves the defaults out."""

    name: str
    params: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, key: str) -> Any:
        return dict(self.params)[key]

    def __str__(self) -> str:
        defaults = DECOMPOSITIONS[self.name].defaults
        given = [f"{key}={value}" for key, value in self.params if value != defaults[key]]
        return self.name + (":" + ",".join(given) if given else "")

    def resolve(self, spec: ConvSpec) -> str:
        """Return what the option means at `spec`: M' and R instead of p and r, every parameter written out.

        Two options with the same answer are the same layer; the canonical key of an architecture is made of these.
        """
        resolved = DECOMPOSITIONS[self.name].resolve(self, spec)
        shown = [f"{key}={value}" for key, value in sorted(resolved.items())]
        return self.name + (":" + ",".join(shown) if shown else "")


@dataclass(frozen=True, slots=True)
class Decomposition:
    """One row of `DECOMPOSITIONS`: the rule, its parameters' defaults, and how they resolve at a place."""

    rule: Callable[[ConvSpec, Option], Plan]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inner: tuple[str, ...] = ("none", "bn")  # no activation inside BSConv: it would undo the blueprint
    resolve: Callable[[Option, ConvSpec], dict[str, Any]] = lambda option, spec: dict(option.params)


def mid_channels(spec: ConvSpec, p: Fraction) -> int:
    """Return M' = min(M, max(4, ceil(p M))), the channels between BSConv-S's two pointwise layers.

    >>> mid_channels(ConvSpec(100, 8, (3, 3)), Fraction("0.07"))
    7
    """
    return min(spec.c_in, max(MIN_MID_CHANNELS, math.ceil(p * spec.c_in)))


def blueprints(spec: ConvSpec, r: int) -> int:
    """Return R = min(r, K^2): more blueprints than kernel pixels express nothing new."""
    return min(r, math.prod(spec.kernel))


def spatial(name: str, spec: ConvSpec, c_in: int, c_out: int, groups: int) -> Conv:
    """Return the layer that carries the kernel, stride, padding, dilation and bias of `spec`."""
    return Conv(
        name, c_in, c_out, spec.kernel, spec.stride, spec.padding, spec.dilation, groups, spec.bias, spec.padding_mode
    )


def _inner(option: Option, spec: ConvSpec, channels: int, suffix: str = "") -> Plan:
    """Return what `inner` puts between two convolutions."""
    inner = str(option["inner"])
    activates = inner.endswith("act")
    if activates and spec.activation not in SECOND_MOMENTS:
        known = suggest(spec.activation, SECOND_MOMENTS)
        raise DecompositionError(f"Unknown activation {spec.activation!r} for '{option}' (inner={inner}): {known}.")
    norm: Plan = (Norm(f"norm{suffix}", channels),) if inner.startswith("bn") else ()
    return (*norm, Activation(f"activation{suffix}", spec.activation)) if activates else norm


def regular(spec: ConvSpec, option: Option) -> Plan:
    """The dense convolution itself."""
    return (spatial("conv", spec, spec.c_in, spec.c_out, 1),)


def dsc(spec: ConvSpec, option: Option) -> Plan:
    """Depthwise separable: DW KxK, then PW; F[n, m] = w[n, m] B[m]."""
    return (
        spatial("depthwise", spec, spec.c_in, spec.c_in, spec.c_in),
        *_inner(option, spec, spec.c_in),
        Conv("pointwise", spec.c_in, spec.c_out),
    )


def bsconv_u(spec: ConvSpec, option: Option) -> Plan:
    """BSConv-U: PW to R N channels, then N groups of R channels KxK; F[n, m] = sum_r w_r[n, m] B_r[n]."""
    channels = blueprints(spec, option["r"]) * spec.c_out
    return (
        Conv("pointwise", spec.c_in, channels),
        *_inner(option, spec, channels),
        spatial("depthwise", spec, channels, spec.c_out, spec.c_out),
    )


def bsconv_s(spec: ConvSpec, option: Option) -> Plan:
    """Subspace blueprints: PW M -> M' with orthonormal rows, PW M' -> N, DW KxK; as U with W = Wa Wb."""
    mid = mid_channels(spec, option["p"])
    return (
        Conv("reduce", spec.c_in, mid, orthonormal=bool(option["ortho"])),
        *_inner(option, spec, mid, "_reduce"),
        Conv("pointwise", mid, spec.c_out),
        *_inner(option, spec, spec.c_out),
        spatial("depthwise", spec, spec.c_out, spec.c_out, spec.c_out),
    )


DECOMPOSITIONS: dict[str, Decomposition] = {
    "regular": Decomposition(regular),
    "dsc": Decomposition(dsc, {"inner": "bn_act"}, ("none", "bn", "act", "bn_act")),
    "bsconv_u": Decomposition(
        bsconv_u,
        {"inner": "none", "r": 1},
        resolve=lambda option, spec: {"inner": option["inner"], "r": blueprints(spec, option["r"])},
    ),
    "bsconv_s": Decomposition(
        bsconv_s,
        {"inner": "bn", "ortho": 1, "p": Fraction(1, 4)},
        resolve=lambda option, spec: {
            **{key: option[key] for key in ("inner", "ortho")},
            "mid": mid_channels(spec, option["p"]),
        },
    ),
}


# The law of each parameter as the error states it, its reader and its test; that of `inner` is the row's own.
_Law = tuple[str, Callable[[str], Any], Callable[[Any], bool]]
_LAWS: dict[str, _Law] = {
    "p": ("a fraction in (0, 1], such as 1/4", Fraction, lambda p: 0 < p <= 1),
    "r": ("a whole number of at least 1", int, lambda r: r >= 1),
    "ortho": ("0 or 1", int, lambda ortho: ortho in (0, 1)),
}


@cache
def parse_option(text: str) -> Option:
    """Return the option that `name` or `name:key=value,key=value` names, defaults filled in.

    Raises:
        DecompositionError: an unknown name or key, or a value outside its law.

    >>> str(parse_option("bsconv_s:p=0.25,inner=none"))
    'bsconv_s:inner=none'
    """
    name, _, tail = text.partition(":")
    if name not in DECOMPOSITIONS:
        raise DecompositionError(f"Unknown decomposition {name!r} in {text!r}: {suggest(name, DECOMPOSITIONS)}.")
    row = DECOMPOSITIONS[name]
    laws: dict[str, _Law] = {**_LAWS, "inner": (f"one of {row.inner}", str, row.inner.__contains__)}
    given: dict[str, Any] = {}
    for item in filter(None, tail.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in row.defaults:
            known = suggest(key, row.defaults) if row.defaults else "it takes none"
            raise DecompositionError(f"Unknown parameter {key!r} of {name!r} in {text!r}: {known}.")
        if key in given:
            raise DecompositionError(f"Parameter {key!r} must be given once, but {text!r} repeats it: keep one.")
        law, read, legal = laws[key]
        try:
            given[key] = read(value)
            if not legal(given[key]):
                raise ValueError
        except (ValueError, ZeroDivisionError):
            raise DecompositionError(f"Parameter {key!r} of {text!r} must be {law}, but got {value!r}.") from None
    return Option(name, tuple(sorted({**row.defaults, **given}.items())))


def _with_gains(primitives: Plan) -> Plan:
    """Return the plan with the variance gain of each conv set.

    The composed kernel gets the variance 2 / (M K^2) of the dense layer that it replaces (He et al., arXiv 1502.01852):
    the last convolution carries the 2, the others keep the variance of what they read. An inner activation lowers the
    second moment, which the convolution behind it makes good.
    """
    last = max(i for i, primitive in enumerate(primitives) if isinstance(primitive, Conv))
    out: list[Primitive] = []
    for i, primitive in enumerate(primitives):
        if isinstance(primitive, Conv):
            before = out[-1] if out else None
            moment = SECOND_MOMENTS[before.kind] if isinstance(before, Activation) else 1.0
            primitive = dataclasses.replace(primitive, gain=(2.0 if i == last else 1.0) / moment)
        out.append(primitive)
    return tuple(out)


@cache
def plan(spec: ConvSpec, option: Option | str = "regular") -> Plan:
    """Return the sequence of primitives that stands for `spec` under `option`.

    >>> [type(p).__name__ for p in plan(ConvSpec(16, 32, (3, 3), padding=(1, 1)), "bsconv_u")]
    ['Conv', 'Conv']
    """
    parsed = parse_option(option) if isinstance(option, str) else option
    return _with_gains(DECOMPOSITIONS[parsed.name].rule(spec, parsed))


def primitive_shapes(primitives: Plan, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return the output shape (C, H, W) of each primitive for an input of `size` (H, W)."""
    shapes: list[tuple[int, int, int]] = []
    for primitive in primitives:
        if isinstance(primitive, Conv):
            size = primitive.output_size(size)
            shapes.append((primitive.c_out, *size))
        else:
            shapes.append((shapes[-1][0], *size))
    return shapes


def plan_macs(primitives: Plan, size: tuple[int, int]) -> int:
    """Return the multiply-adds of the plan's convolutions at an input of `size` (H, W), batch 1."""
    shapes = primitive_shapes(primitives, size)
    return sum(
        primitive.fan_in * math.prod(shape)
        for primitive, shape in zip(primitives, shapes, strict=True)
        if isinstance(primitive, Conv)
    )


def plan_parameters(primitives: Plan) -> int:
    """Return the number of trained parameters of the plan."""
    return sum(primitive.parameters for primitive in primitives)


_PRIMITIVES: dict[str, type[Primitive]] = {"conv": Conv, "norm": Norm, "activation": Activation}


def plan_to_json(primitives: Plan) -> list[dict[str, Any]]:
    """Return the plan as plain JSON values, one object a primitive."""
    return [{"type": type(p).__name__.lower(), **dataclasses.asdict(p)} for p in primitives]


def plan_from_json(rows: list[dict[str, Any]]) -> Plan:
    """Return the plan that `plan_to_json` wrote, also after a trip through a JSON file."""
    out: list[Primitive] = []
    for row in rows:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        out.append(_PRIMITIVES[fields.pop("type")](**fields))
    return tuple(out)
