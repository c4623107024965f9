"""How correlated the kernels of a trained network are, and how much of them each decomposition keeps.

Definitions after Haase & Amthor, "Rethinking Depthwise Separable Convolutions", CVPR 2020 (arXiv 2003.13549). A share
of variance says little without the share that independent random kernels of the same shape have, so this null level
stands beside each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.projection import energy_kept

__all__ = [
    "LayerKernels",
    "LeftOut",
    "analyze_kernels",
    "cross_correlation",
    "intra_correlation",
    "left_out",
    "null_correlation",
]

NULL_SEED = 0
NULL_PIXELS = 36_864  # of all draws for a null level together: 4096 draws of 3x3 kernels
NEGLIGIBLE = 1e-20  # share of a kernel's energy below which its variance is rounding

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """What the kernels of one convolution say.

    `intra` has a share in (0, 1] a filter, `cross` one an input channel; NaN where there is no variance. `energy` has
    the share in [0, 1] that each option keeps of the kernel, `energy_null` that of a random kernel of the same shape.
    """

    path: str
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    intra: tuple[float, ...]
    intra_null: float
    cross: tuple[float, ...]
    cross_null: float
    energy: Mapping[str, float]
    energy_null: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A convolution for which the scores are not defined: `1x1`, `depthwise`, `grouped`, `transposed`, `1-D`, `3-D`."""

    path: str
    c_in: int
    c_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    kind: str


def intra_correlation(kernel: Tensor) -> Tensor:
    """Return the variance share of the first principal component of each filter: (N, M, Kh, Kw) -> (N,).

    The observations are the filter's M two-dimensional slices: 1 says that all are one blueprint, scaled, up to their
    mean. It is what BSConv presumes.
    """
    return _first_share(kernel.double().flatten(2))


def cross_correlation(kernel: Tensor) -> Tensor:
    """Return the same share over the N filters' slices of each input channel: (N, M, Kh, Kw) -> (M,).

    It is what depthwise separable convolutions presume.
    """
    return _first_share(kernel.double().flatten(2).transpose(0, 1))


def _first_share(observations: Tensor) -> Tensor:
    """Return s_1^2 / sum s_i^2 of centred (..., observations, features) -> (...); NaN without variance."""
    centred = observations - observations.mean(-2, keepdim=True)
    variances = torch.linalg.svdvals(centred).square()
    total, energy = variances.sum(-1), observations.square().sum((-2, -1))
    return torch.where(total > NEGLIGIBLE * energy, variances[..., 0] / total, torch.nan)


@cache
def null_correlation(observations: int, features: int) -> float:
    """Return the expected first share of `observations` independent Gaussian kernels of `features` pixels.

    Centring takes one degree of freedom. The mean is over seeded draws by Bartlett's decomposition: the triangular
    factor of a Gaussian matrix has chi-distributed diagonal entries and Gaussian ones beside them, so that a draw costs
    the same whatever the number of channels. The standard error is about 0.2 % of the value.

    >>> round(null_correlation(64, 9), 2)
    0.19
    """
    long, short = max(observations - 1, features), min(observations - 1, features)
    if short == 0:
        return float("nan")
    draws, diagonal = NULL_PIXELS // features, np.arange(short)
    generator = np.random.default_rng(NULL_SEED)
    factors = np.triu(generator.standard_normal((draws, short, short)), 1)
    factors[:, diagonal, diagonal] = np.sqrt(generator.chisquare(long - diagonal, (draws, short)))
    variances = np.linalg.svd(factors, compute_uv=False) ** 2
    return float(np.mean(variances[:, 0] / variances.sum(1)))


def analyze_kernels(model: nn.Module, options: Iterable[str]) -> tuple[LayerKernels, ...]:
    """Return a row for each ungrouped 2-D convolution with more than one pixel in its kernel, in the model's order.

    Args:
        model: a trained network; its weights are read, nothing is run.
        options: decompositions to judge.

    Raises:
        SpaceError: there is no such convolution, or one has weights that are not finite.
    """
    layers = {path: conv for path, conv in _convolutions(model) if isinstance(conv, nn.Conv2d) and not _kind(conv)}
    if not layers:
        raise SpaceError(
            "A network must have an ungrouped convolution larger than 1x1 for its kernels to be analysed, but "
            f"{type(model).__name__!r} has none: decompose less of it."
        )
    return tuple(_analyze(path, layer, tuple(options)) for path, layer in layers.items())


def left_out(model: nn.Module) -> tuple[LeftOut, ...]:
    """Return a row for each convolution that `analyze_kernels` has none for, in the model's order.

    >>> [layer.kind for layer in left_out(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1)))]
    ['depthwise', '1x1']
    """
    found = ((path, conv, _kind(conv)) for path, conv in _convolutions(model))
    return tuple(
        LeftOut(path, conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, kind)
        for path, conv, kind in found
        if kind
    )


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.modules.conv._ConvNd]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd))


def _kind(conv: nn.modules.conv._ConvNd) -> str:
    """Return what keeps a convolution from having filters with a KxK slice for each input channel; "" if nothing."""
    if conv.transposed:
        return "transposed"
    if not isinstance(conv, nn.Conv2d):
        return f"{len(conv.kernel_size)}-D"
    if math.prod(conv.kernel_size) == 1:
        return "1x1"
    return "" if conv.groups == 1 else "depthwise" if conv.groups == conv.in_channels else "grouped"


def _analyze(path: str, conv: nn.Conv2d, options: tuple[str, ...]) -> LayerKernels:
    kernel = conv.weight.detach().cpu().double()
    if not kernel.isfinite().all():
        raise SpaceError(f"Weights must be finite, but those of {path!r} are not: take an earlier checkpoint.")
    n, m, height, width = kernel.shape
    return LayerKernels(
        path=path,
        c_in=m,
        c_out=n,
        kernel=(height, width),
        stride=(conv.stride[0], conv.stride[1]),
        intra=tuple(intra_correlation(kernel).tolist()),
        intra_null=null_correlation(m, height * width),
        cross=tuple(cross_correlation(kernel).tolist()),
        cross_null=null_correlation(n, height * width),
        energy=energy_kept(kernel, options),
        energy_null=_null_energy((n, m, height, width), options),
    )


@cache
def _null_energy(shape: Shape, options: tuple[str, ...]) -> dict[str, float]:
    """Return what each option keeps of one seeded random kernel: it sums over all filters, so one draw is enough."""
    generator = torch.Generator().manual_seed(NULL_SEED)
    return energy_kept(torch.randn(shape, generator=generator, dtype=torch.float64), options)
