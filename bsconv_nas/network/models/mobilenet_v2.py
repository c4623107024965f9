"""MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2).

As in the BSConv reference networks, the input passes a batch normalisation first, the first block has an expansion of
ratio 1, and the form for small images halves the resolution three times instead of five.
"""

from __future__ import annotations

from torch import nn

from bsconv_nas.network.models.blocks import StagedNetwork
from bsconv_nas.network.models.inverted_residual import Layout, Stage, inverted_network

__all__ = ["mobilenet_v2"]

LAYOUT = Layout(
    name="mobilenet_v2",
    stem=32,
    stages=(
        Stage(16, (32,), 3, 1, nn.ReLU6),
        Stage(24, (96, 144), 3, 2, nn.ReLU6),
        Stage(32, (144, 192, 192), 3, 2, nn.ReLU6),
        Stage(64, (192, 384, 384, 384), 3, 2, nn.ReLU6),
        Stage(96, (384, 576, 576), 3, 1, nn.ReLU6),
        Stage(160, (576, 960, 960), 3, 2, nn.ReLU6),
        Stage(320, (960,), 3, 1, nn.ReLU6),
    ),
    head=1280,
    activation=nn.ReLU6,
)


def mobilenet_v2(
    width: float | str = "w1", *, form: str = "cifar", in_channels: int = 3, num_classes: int = 10
) -> StagedNetwork:
    """Return MobileNetV2 at a width: "w1", "w3d4", "w1d2", "w1d4" or any number; see `inverted_network`.

    >>> sum(p.numel() for p in mobilenet_v2("w1").parameters())
    2237776
    """
    return inverted_network(LAYOUT, width, form, in_channels, num_classes)
