"""EfficientNet-B0 (Tan & Le, arXiv 1905.11946, table 1).

Dropout and stochastic depth are left out: they belong to a training recipe. The form for small images halves the
resolution three times instead of five.
"""

from __future__ import annotations

from torch import nn

from bsconv_nas.network.models.blocks import StagedNetwork
from bsconv_nas.network.models.inverted_residual import Layout, SqueezeExcitation, Stage, inverted_network

__all__ = ["efficientnet_b0"]


def _gate(c_in: int, channels: int) -> SqueezeExcitation:
    return SqueezeExcitation(channels, max(1, c_in // 4), nn.SiLU, nn.Sigmoid)


LAYOUT = Layout(
    name="efficientnet_b0",
    stem=32,
    stages=(
        Stage(16, (0,), 3, 1, nn.SiLU, _gate),
        Stage(24, (96, 144), 3, 2, nn.SiLU, _gate),
        Stage(40, (144, 240), 5, 2, nn.SiLU, _gate),
        Stage(80, (240, 480, 480), 3, 2, nn.SiLU, _gate),
        Stage(112, (480, 672, 672), 5, 1, nn.SiLU, _gate),
        Stage(192, (672, 1152, 1152, 1152), 5, 2, nn.SiLU, _gate),
        Stage(320, (1152,), 3, 1, nn.SiLU, _gate),
    ),
    head=1280,
    activation=nn.SiLU,
    input_norm=False,
)


def efficientnet_b0(
    width: float | str = "w1", *, form: str = "cifar", in_channels: int = 3, num_classes: int = 10
) -> StagedNetwork:
    """Return EfficientNet-B0, at width 1 as published; see `inverted_network`.

    >>> sum(p.numel() for p in efficientnet_b0(form="imagenet", num_classes=1000).parameters())
    5288548
    """
    return inverted_network(LAYOUT, width, form, in_channels, num_classes)
