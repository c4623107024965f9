"""ResNets of basic blocks at ImageNet's resolution (He et al., arXiv 1512.03385), 10 to 102 layers deep.

As in the BSConv reference networks, which train them on fine-grained classes, the input passes a batch normalisation
first; torchvision's have none, and bottlenecks from 50 layers on.
"""

from __future__ import annotations

from torch import nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.models.blocks import StagedNetwork, conv_block, require_positive
from bsconv_nas.network.models.cifar_resnet import BasicBlock

__all__ = ["resnet"]

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (3, 3, 3, 3),
    34: (3, 4, 6, 3),
    68: (3, 4, 23, 3),
    102: (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)


def resnet(depth: int = 18, *, in_channels: int = 3, num_classes: int = 1000) -> StagedNetwork:
    """Return the ResNet of `depth` layers, all blocks of two 3x3 convolutions.

    Raises:
        SpaceError: a depth that is not in `BLOCKS`, or a size below 1.

    >>> sum(p.numel() for p in resnet(18).parameters())
    11689518
    """
    require_positive("resnet", in_channels=in_channels, num_classes=num_classes)
    if depth not in BLOCKS:
        raise SpaceError(f"The depth of a resnet must be one of {list(BLOCKS)}, but got {depth}.")
    stem = conv_block(in_channels, WIDTHS[0], 7, 2, nn.ReLU)
    stem.pool = nn.MaxPool2d(3, 2, padding=1)
    c_in, stages = WIDTHS[0], []
    for c_out, count in zip(WIDTHS, BLOCKS[depth], strict=True):
        rest = (BasicBlock(c_out, c_out, 1) for _ in range(count - 1))
        stages.append([BasicBlock(c_in, c_out, 1 if c_in == c_out else 2), *rest])
        c_in = c_out
    return StagedNetwork(stem, stages, None, c_in, num_classes, in_channels)
