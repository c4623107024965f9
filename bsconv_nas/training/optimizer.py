"""The optimiser of a recipe: SGD that spares from decay what decay would harm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bsconv_nas.training.recipe import Recipe

__all__ = ["optimizer", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return SGD's two groups: dense kernels and linear weights decay; depthwise weights, norms and biases do not.

    A convolution counts as depthwise if each group has one input or one output channel: decay would fight the scale
    that its blueprints share with the pointwise layer.
    """
    spared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d) and _is_depthwise(m)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim > 1 and id(parameter) not in spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups in (conv.in_channels, conv.out_channels)


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD whose momentum buffers exist from the start: a checkpoint has the same tensors at any epoch."""
    sgd = torch.optim.SGD(
        parameter_groups(model, recipe.weight_decay),
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,  # one kernel for all tensors: 0.3 instead of 2.5 ms a step for 60 convolutions on one CPU thread
    )
    if recipe.momentum:
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd
