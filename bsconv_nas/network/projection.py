"""Projections of a dense kernel onto what each decomposition can express, as weights of the plan's convolutions.

A filter F[n] is an M x K^2 matrix and an input channel F[:, m] an N x K^2 one; by Eckart and Young (1936) the leading
right singular vectors of such a matrix are the best templates, and the product with them gives the best weights.
BSConv-S starts from the best blueprints and takes the best subspace of their weights, as Haase & Amthor (arXiv
2003.13549) lead to. All templates are orthonormal, so a projection keeps the energy of its weights, which is the sum of
the squared singular values that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bsconv_nas.decompositions import Conv, ConvSpec, Option, parse_option, plan
from bsconv_nas.errors import DecompositionError, suggest

__all__ = ["PROJECTIONS", "energy_kept", "project"]

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Projection:
    """How a dense kernel (N, M, Kh, Kw) in float64 becomes the weights of one decomposition.

    `weights` takes the kernel and how many templates to use, and returns weights up to their shape. `spectrum` returns
    the energy that each template adds, strongest first. `rank` counts the templates of a plan by its convolutions.
    """

    weights: Callable[[Tensor, int], Weights]
    spectrum: Callable[[Tensor], Tensor]
    rank: Callable[[Mapping[str, Conv]], int] = lambda convs: 1


def _filters(kernel: Tensor) -> Tensor:
    """Return (N, M, K^2)."""
    return kernel.flatten(2)


def _channels(kernel: Tensor) -> Tensor:
    """Return (M, N, K^2)."""
    return kernel.flatten(2).transpose(0, 1)


def _templates(matrices: Tensor) -> Tensor:
    """Return all right singular vectors of (..., rows, columns), strongest first: orthonormal rows (..., c, c).

    They are a whole basis even where there are fewer rows than columns: what the kernel does not need is orthonormal
    too, so that a training can take it up.
    """
    rows, columns = matrices.shape[-2:]
    if rows > columns:  # the triangular factor has the same ones, at less than half the time
        matrices = torch.linalg.qr(matrices, mode="r")[1]
    basis: Tensor = torch.linalg.svd(matrices, full_matrices=rows < columns)[2]
    return basis


def _energies(matrices: Tensor) -> Tensor:
    """Return the squared singular values of (..., rows, columns), strongest first."""
    values: Tensor = torch.linalg.svdvals(matrices)
    return values.square()


def _regular(kernel: Tensor, rank: int) -> Weights:
    """The kernel itself."""
    return {"conv": kernel}


def _dsc(kernel: Tensor, rank: int) -> Weights:
    """F[:, m] ~ w[:, m] B[m]^T with the best template of each input channel."""
    channels = _channels(kernel)
    depthwise = _templates(channels)[:, :1]  # (M, 1, K^2)
    return {"depthwise": depthwise, "pointwise": (channels @ depthwise.mT)[..., 0].T}


def _bsconv_u(kernel: Tensor, rank: int) -> Weights:
    """F[n] ~ sum_r w_r[n] B_r[n]^T with the best R templates of each filter, a filter's R together."""
    filters = _filters(kernel)
    depthwise = _templates(filters)[:, :rank]  # (N, R, K^2)
    return {"pointwise": (depthwise @ filters.mT).flatten(0, 1), "depthwise": depthwise}


def _bsconv_s(kernel: Tensor, rank: int) -> Weights:
    """As U with one blueprint, whose N x M weights W become (W V^T) V with the best M' orthonormal rows V."""
    start = _bsconv_u(kernel, 1)
    reduce = _templates(start["pointwise"])[:rank]  # (M', M)
    return {**start, "reduce": reduce, "pointwise": start["pointwise"] @ reduce.T}


PROJECTIONS: dict[str, Projection] = {
    "regular": Projection(_regular, lambda kernel: kernel.square().sum().reshape(1)),
    "dsc": Projection(_dsc, lambda kernel: _energies(_channels(kernel)).sum(0)),
    "bsconv_u": Projection(
        _bsconv_u,
        lambda kernel: _energies(_filters(kernel)).sum(0),
        lambda convs: convs["pointwise"].c_out // convs["depthwise"].c_out,
    ),
    "bsconv_s": Projection(
        _bsconv_s,
        lambda kernel: _energies(_bsconv_u(kernel, 1)["pointwise"]),
        lambda convs: convs["reduce"].c_out,
    ),
}


def project(kernel: Tensor, option: Option | str) -> dict[str, Tensor]:
    """Return the weights with which `option` comes close to a dense kernel, by the names of its plan's convolutions.

    Templates have unit norm and, where there are several, are orthogonal; the pointwise weights carry the energy.
    `regular`, `dsc` and `bsconv_u:r=R` are the nearest kernels of their form, exact where the kernel is of that form
    (`r = K^2` is for all). `bsconv_s:p` keeps the best M' dimensions of the nearest `bsconv_u`'s weights; with M' = M
    it is that one. Norms and activations between the convolutions are not looked at.

    Args:
        kernel: (N, M, Kh, Kw), finite; the arithmetic is in float64, the weights have the kernel's type.
        option: a decomposition.

    Raises:
        DecompositionError: no projection onto this decomposition is known.

    >>> {name: tuple(weight.shape) for name, weight in project(torch.randn(8, 6, 3, 3), "bsconv_u:r=2").items()}
    {'pointwise': (16, 6, 1, 1), 'depthwise': (8, 2, 3, 3)}
    """
    projection, convs = _onto(kernel, option)
    weights = projection.weights(kernel.double(), projection.rank(convs))
    return {name: weights[name].reshape(_shape(conv)).to(kernel.dtype) for name, conv in convs.items()}


def _onto(kernel: Tensor, option: Option | str) -> tuple[Projection, dict[str, Conv]]:
    """Return the projection onto an option and the convolutions of its plan for a kernel of this shape."""
    option = parse_option(option) if isinstance(option, str) else option
    if option.name not in PROJECTIONS:
        known = suggest(option.name, PROJECTIONS)
        raise DecompositionError(f"A dense kernel cannot be projected onto '{option.name}': {known}.")
    n, m, height, width = kernel.shape
    primitives = plan(ConvSpec(m, n, (height, width)), option)
    return PROJECTIONS[option.name], {p.name: p for p in primitives if isinstance(p, Conv)}


def _shape(conv: Conv) -> tuple[int, int, int, int]:
    """Return the shape of a convolution's weight."""
    return conv.c_out, conv.c_in // conv.groups, *conv.kernel


def energy_kept(kernel: Tensor, options: Iterable[str]) -> dict[str, float]:
    """Return 1 - ||F - P(F)||^2 / ||F||^2 in [0, 1] for what `project` makes of F under each option; NaN where F = 0.

    Args:
        kernel: (N, M, Kh, Kw), finite.
        options: decompositions.

    Raises:
        DecompositionError: no projection onto one of them is known.
    """
    exact = kernel.double()
    total = exact.square().sum()
    spectrum = cache(lambda projection: projection.spectrum(exact) / total)  # those of a family share theirs
    kept = {}
    for option in options:
        projection, convs = _onto(kernel, option)
        kept[option] = float(spectrum(projection)[: projection.rank(convs)].sum())
    return kept
