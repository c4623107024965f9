"""MobileNetV3-small and -large (Howard et al., arXiv 1905.02244, tables 1 and 2).

As in the BSConv reference networks, the input passes a batch normalisation first, the classifier reads the last
convolution without another wide layer between them, and the form for small images halves the resolution three times
instead of five.
"""

from __future__ import annotations

from torch import nn

from bsconv_nas.network.models.blocks import StagedNetwork
from bsconv_nas.network.models.inverted_residual import Layout, SqueezeExcitation, Stage, inverted_network

__all__ = ["mobilenet_v3_large", "mobilenet_v3_small"]


def _gate(c_in: int, channels: int) -> SqueezeExcitation:
    return SqueezeExcitation(channels, channels // 4, nn.ReLU, nn.Hardsigmoid)


SMALL = Layout(
    name="mobilenet_v3_small",
    stem=16,
    stages=(
        Stage(16, (16,), 3, 2, nn.ReLU, _gate),
        Stage(24, (72, 88), 3, 2, nn.ReLU),
        Stage(40, (96, 240, 240), 5, 2, nn.Hardswish, _gate),
        Stage(48, (120, 144), 5, 1, nn.Hardswish, _gate),
        Stage(96, (288, 576, 576), 5, 2, nn.Hardswish, _gate),
    ),
    head=576,
    activation=nn.Hardswish,
    head_gate=_gate,
)
LARGE = Layout(
    name="mobilenet_v3_large",
    stem=16,
    stages=(
        Stage(16, (16,), 3, 1, nn.ReLU),
        Stage(24, (64, 72), 3, 2, nn.ReLU),
        Stage(40, (72, 120, 120), 5, 2, nn.ReLU, _gate),
        Stage(80, (240, 200, 184, 184), 3, 2, nn.Hardswish),
        Stage(112, (480, 672), 3, 1, nn.Hardswish, _gate),
        Stage(160, (672, 960, 960), 5, 2, nn.Hardswish, _gate),
    ),
    head=960,
    activation=nn.Hardswish,
)


def mobilenet_v3_small(
    width: float | str = "w1", *, form: str = "cifar", in_channels: int = 3, num_classes: int = 10
) -> StagedNetwork:
    """Return MobileNetV3-small at a width: "w1", "w3d4", "w1d2", "w7d20" or any number; see `inverted_network`.

    >>> sum(p.numel() for p in mobilenet_v3_small("w1").parameters())
    1094062
    """
    return inverted_network(SMALL, width, form, in_channels, num_classes)


def mobilenet_v3_large(
    width: float | str = "w1", *, form: str = "cifar", in_channels: int = 3, num_classes: int = 10
) -> StagedNetwork:
    """Return MobileNetV3-large at a width: "w1", "w3d4", "w1d2", "w7d20" or any number; see `inverted_network`.

    >>> sum(p.numel() for p in mobilenet_v3_large("w1").parameters())
    2980022
    """
    return inverted_network(LARGE, width, form, in_channels, num_classes)
