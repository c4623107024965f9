"""Places: the convolutions of a network, alone or as a run of layers that one option decides as a whole.

| role | the layers in the base | its own option | others |
|---|---|---|---|
| `conv` | an ungrouped convolution | `regular` | the decompositions |
| `pair` | depthwise, then pointwise, with a norm or a norm and an activation between | `dsc` | the decompositions |
| `expansion` | the first half of an inverted residual: pointwise, norm, activation, depthwise | `mbconv` | `fused` |
| `projection` | its last pointwise convolution | `mbconv` | `mbconv:ortho=1` |
| `depthwise` | a depthwise convolution that stands in no run | `depthwise` | none |

A place's own option keeps the base's layers and resizes them; others put their plan in their stead (see `Place.keeps`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from bsconv_nas.decompositions import Conv, ConvSpec, Option, Plan, parse_option, plan, spatial

__all__ = ["FORMS", "Place", "Role"]

Role = Literal["conv", "pair", "expansion", "projection", "depthwise"]

# Of an inverted residual (Sandler et al., arXiv 1801.04381): as it stands; with orthonormal rows in its projection,
# which is BSConv-S of arXiv 2003.13549; with a dense first half, as in EfficientNetV2 (arXiv 2104.00298).
FORMS = ("mbconv", "mbconv:ortho=1", "fused")


@dataclass(frozen=True, slots=True)
class Place:
    """A place without its channels: its role, the dense convolution that it stands for, and the base's own layers.

    `inner` is what stands between the two convolutions of a run, `biases` tells which of its convolutions have one.
    """

    role: Role
    spec: ConvSpec
    inner: str = "none"
    biases: tuple[bool, ...] = ()

    @property
    def own(self) -> str:
        """The option that keeps the base's own layers."""
        return _OWN[self.role]

    def keeps(self, option: str) -> bool:
        """Whether an option keeps the base's own layers, at most with another loss on them."""
        return option == self.own or self.role == "projection" or (self.role == "expansion" and option != "fused")

    def plan(self, option: str, c_in: int, c_out: int, kernel: int | None = None) -> Plan:
        """Return the layers at this place.

        Args:
            option: a decomposition or a form.
            c_in: channels that the place reads.
            c_out: channels that it writes.
            kernel: instead of the base's.
        """
        return _plan(self, option, c_in, c_out, kernel)

    def meaning(self, option: str, c_in: int, kernel: int | None = None) -> str:
        """Return what an option is at this place with `c_in` channels: equal texts, equal layers."""
        if self.role in ("expansion", "projection", "depthwise"):
            return "fused" if self._is_fused(option) else "orthonormal" if self._is_orthonormal(option) else self.own
        if self.role == "pair" and option == self.own:
            return self.own  # whatever stands between, with its own settings
        return parse_option(option).resolve(_at(self.spec, c_in, self.spec.c_out, kernel))

    @property
    def takes_kernels(self) -> bool:
        """Whether other odd kernels keep the output's size: this one is square, odd, not 1x1, and padded evenly."""
        height, width = self.spec.kernel
        return (
            height == width
            and height % 2 == 1
            and height > 1
            and self.spec.padding in ("same", _even(self.spec, height))
        )

    def admits(self, kernel: int, size: tuple[int, ...]) -> bool:
        """Whether images of (H, W) can be padded for a kernel: a mirror has a pixel less than they, a copy as many."""
        most = {"reflect": -1, "circular": 0}.get(self.spec.padding_mode)
        pads = zip(_even(self.spec, kernel), size, strict=True)
        return most is None or all(pad <= pixels + most for pad, pixels in pads)

    def _is_fused(self, option: str) -> bool:
        return self.role == "expansion" and option == "fused"

    def _is_orthonormal(self, option: str) -> bool:
        return self.role == "projection" and option == "mbconv:ortho=1"


_OWN = {"conv": "regular", "pair": "dsc", "expansion": "mbconv", "projection": "mbconv", "depthwise": "depthwise"}


def _at(spec: ConvSpec, c_in: int, c_out: int, kernel: int | None) -> ConvSpec:
    """Return the convolution between other channels, with another kernel where one is given."""
    if kernel is None or spec.kernel == (kernel, kernel):
        return spec.resized(c_in, c_out)
    padding = spec.padding if isinstance(spec.padding, str) else _even(spec, kernel)
    return dataclasses.replace(spec, c_in=c_in, c_out=c_out, kernel=(kernel, kernel), padding=padding)


def _even(spec: ConvSpec, kernel: int) -> tuple[int, int]:
    """Return the padding with which an odd kernel's middle starts at the first pixel."""
    return spec.dilation[0] * (kernel // 2), spec.dilation[1] * (kernel // 2)


@cache
def _plan(place: Place, option: str, c_in: int, c_out: int, kernel: int | None) -> Plan:
    return _PLANS[place.role](place, option, _at(place.spec, c_in, c_out, kernel))


def _conv(place: Place, option: str, spec: ConvSpec) -> Plan:
    return plan(spec, option)


def _pair(place: Place, option: str, spec: ConvSpec) -> Plan:
    return _with_biases(plan(spec, f"dsc:inner={place.inner}"), place) if option == place.own else plan(spec, option)


def _expansion(place: Place, option: str, spec: ConvSpec) -> Plan:
    """Pointwise, then depthwise: BSConv-U's order, but with an activation between, which is no BSConv any more."""
    if option == "fused":
        return plan(spec, "regular")
    return _with_biases(plan(spec, Option("bsconv_u", (("inner", place.inner), ("r", 1)))), place)


def _projection(place: Place, option: str, spec: ConvSpec) -> Plan:
    (conv,) = plan(spec, "regular")
    assert isinstance(conv, Conv)
    return (dataclasses.replace(conv, orthonormal=option == "mbconv:ortho=1"),)


def _depthwise(place: Place, option: str, spec: ConvSpec) -> Plan:
    return (dataclasses.replace(spatial("depthwise", spec, spec.c_in, spec.c_out, spec.c_out), gain=2.0),)


_PLANS: dict[Role, Callable[[Place, str, ConvSpec], Plan]] = {
    "conv": _conv,
    "pair": _pair,
    "expansion": _expansion,
    "projection": _projection,
    "depthwise": _depthwise,
}


def _with_biases(primitives: Plan, place: Place) -> Plan:
    """Return the plan of a run with the base's own biases, which a decomposition keeps in its spatial layer alone."""
    biases = iter(place.biases)
    return tuple(dataclasses.replace(p, bias=next(biases)) if isinstance(p, Conv) else p for p in primitives)
