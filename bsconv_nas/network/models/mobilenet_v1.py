"""MobileNetV1: depthwise separable convolutions all the way (Howard et al., arXiv 1704.04861, table 1).

As in the BSConv reference networks, the input passes a batch normalisation first, and the form for small images halves
the resolution three times instead of five.
"""

from __future__ import annotations

from torch import nn

from bsconv_nas.network.models.blocks import (
    StagedNetwork,
    conv_block,
    convolution,
    form_strides,
    require_positive,
    scaled,
    width_multiplier,
)

__all__ = ["DepthwiseSeparable", "mobilenet_v1"]

STEM = 32
# Channels, blocks and stride of each stage.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


class DepthwiseSeparable(nn.Sequential):
    """3x3 depthwise and pointwise convolution, each with norm and ReLU: (B, c_in, H, W) -> (B, c_out, H', W')."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = convolution(c_in, c_in, 3, stride, groups=c_in)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.pointwise = convolution(c_in, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=True)


def mobilenet_v1(
    width: float | str = "w1", *, form: str = "cifar", in_channels: int = 3, num_classes: int = 10
) -> StagedNetwork:
    """Return MobileNetV1 at a width: "w1", "w3d4", "w1d2", "w1d4" or any number.

    Args:
        width: multiplier of all channels.
        form: "cifar" for small images, "imagenet" for 224x224 [pixels].
        in_channels: of the image.
        num_classes: number of logits.

    Raises:
        SpaceError: a width that leaves no channel, an unknown form, or a size below 1.

    >>> sum(p.numel() for p in mobilenet_v1("w1").parameters())
    3217232
    """
    require_positive("mobilenet_v1", in_channels=in_channels, num_classes=num_classes)
    multiplier = width_multiplier(width)
    stem_stride, *strides = form_strides(form, [2, *(stride for *_, stride in STAGES)])
    c_in = stem = scaled(STEM, multiplier)
    stages = []
    for (channels, count, _), stride in zip(STAGES, strides, strict=True):
        c_out = scaled(channels, multiplier)
        rest = (DepthwiseSeparable(c_out, c_out, 1) for _ in range(count - 1))
        stages.append([DepthwiseSeparable(c_in, c_out, stride), *rest])
        c_in = c_out
    first = conv_block(in_channels, stem, 3, stem_stride, nn.ReLU)
    return StagedNetwork(first, stages, None, c_in, num_classes, in_channels)
