"""Inputs and weights that make the comparison of two networks a real test.

A network with fresh batch normalisation answers nearly the same to any input, and global pooling leaves nothing of
plain noise: both would hide what two networks do differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

__all__ = ["disturb", "images", "spread"]

BATCH = 8
COARSE = 3  # [pixels] of the pattern that global pooling cannot average out

_BatchNorm = nn.modules.batchnorm._BatchNorm


def images(input_size: Sequence[int], generator: Generator) -> Tensor:
    """Return random images (8, C, H, W) that differ in colour and coarse pattern, not in noise alone."""
    channels, *size = input_size
    coarse = torch.randn(BATCH, channels, *(min(COARSE, pixels) for pixels in size), generator=generator)
    noise = torch.randn(BATCH, *input_size, generator=generator)
    pattern: Tensor = nn.Upsample(tuple(size))(coarse)
    return pattern + 0.5 * noise


def disturb(model: nn.Module, x: Tensor, generator: Generator) -> None:
    """Give `model` random weights, and batch normalisations statistics near those of its activations on `x`."""
    for name, parameter in model.named_parameters():
        parameter.data = _weights(name, parameter, generator)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    for norm in norms:
        norm.momentum = None  # the running statistics become those of the one batch
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(x)
    for norm in norms:
        scale = 0.5 + torch.rand(norm.num_features, generator=generator)
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        mean += 0.3 * (scale - 1) * variance.sqrt()
        variance *= scale
    model.eval()


def spread(answer: Tensor) -> float:
    """Return how much outputs (N, ...) differ between images, as a fraction of the largest."""
    return ((answer.amax(0) - answer.amin(0)).max() / answer.abs().max()).item()


def _weights(name: str, parameter: Tensor, generator: Generator) -> Tensor:
    """Return weights that keep the variance of what they read, gains of a norm around 1, or small biases."""
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() > 1:
        return noise * math.sqrt(2 / parameter[0].numel())
    return 1 + 0.3 * noise.clamp(-2, 2) if name.endswith("weight") else 0.1 * noise
