"""Pre-activation ResNets for small images (He et al., arXiv 1603.05027), and wide ones (Zagoruyko, 1605.07146).

As in the BSConv reference networks, the input passes a batch normalisation first, shortcuts that change shape are 1x1
projections of the activated input, and widening leaves the stem at 16 channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from bsconv_nas.network.models.blocks import blocks_per_stage, convolution, initialise, require_positive

__all__ = ["PreactBlock", "PreactResNet", "cifar_preact_resnet", "wrn"]

STEM = 16


class PreactBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = convolution(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = convolution(c_out, c_out, 3)
        self.downsample = convolution(c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut + residual; a projection reads what the first convolution reads."""
        out = self.relu1(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv2(self.relu2(self.bn2(self.conv1(out))))
        result: Tensor = out + identity
        return result


class PreactResNet(nn.Module):
    """Stem, three stages of `blocks` pre-activation blocks at widths w, 2w, 4w, norm, pooling, classifier."""

    def __init__(self, blocks: int, stem: int, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, stem, 3)
        self.layer1 = _stage(stem, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_channels, H, W) in any scale."""
        x = self.conv1(self.input_norm(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits


def cifar_preact_resnet(
    depth: int = 20, *, in_channels: int = 3, num_classes: int = 10, width: int = STEM
) -> PreactResNet:
    """Return the pre-activation twin of `cifar_resnet`: `depth` = 6n + 2 layers, stages of `width`, 2 and 4 `width`.

    Raises:
        SpaceError: a depth that is not 6n + 2, or a size below 1.

    >>> sum(p.numel() for p in cifar_preact_resnet(20).parameters())
    272288
    """
    require_positive("cifar_preact_resnet", in_channels=in_channels, num_classes=num_classes, width=width)
    blocks = blocks_per_stage("cifar_preact_resnet", depth, rest=2)
    return PreactResNet(blocks, width, width, in_channels, num_classes)


def wrn(depth: int = 16, k: int = 4, *, in_channels: int = 3, num_classes: int = 10) -> PreactResNet:
    """Return WRN-`depth`-`k`: `depth` = 6n + 4 layers (the projections count), stages of 16 k, 32 k and 64 k channels.

    Raises:
        SpaceError: a depth that is not 6n + 4, or a size below 1.

    >>> sum(p.numel() for p in wrn(28, 10).parameters())
    36479200
    """
    require_positive("wrn", k=k, in_channels=in_channels, num_classes=num_classes)
    return PreactResNet(blocks_per_stage("wrn", depth, rest=4), STEM, STEM * k, in_channels, num_classes)


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (PreactBlock(c_out, c_out, 1) for _ in range(blocks - 1))
    return nn.Sequential(PreactBlock(c_in, c_out, stride), *rest)
