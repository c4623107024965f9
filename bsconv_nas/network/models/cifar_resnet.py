"""ResNets for small images: 6n+2 layers in three stages (He et al., arXiv 1512.03385, section 4.2).

As in the BSConv reference networks, the input passes a batch normalisation first, whatever its mean and deviation are,
and shortcuts that change shape are 1x1 projections.
"""

from __future__ import annotations

from torch import Tensor, nn

from bsconv_nas.network.models.blocks import blocks_per_stage, initialise, require_positive

__all__ = ["BasicBlock", "CifarResNet", "cifar_resnet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = _projection(c_in, c_out, stride) if stride != 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual(x))."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out + identity)
        return result


class CifarResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks at widths w, 2w, 4w, global pooling, classifier."""

    def __init__(self, blocks: int, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_channels, H, W) in any scale."""
        x = self.relu(self.bn1(self.conv1(self.input_norm(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def cifar_resnet(depth: int = 20, *, in_channels: int = 3, num_classes: int = 10, width: int = 16) -> CifarResNet:
    """Return the ResNet of `depth` = 6n + 2 layers whose stages have `width`, 2 `width` and 4 `width` channels.

    Raises:
        SpaceError: a depth that is not 6n + 2, or a size below 1.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters())
    272480
    """
    require_positive("cifar_resnet", in_channels=in_channels, num_classes=num_classes, width=width)
    return CifarResNet(blocks_per_stage("cifar_resnet", depth, rest=2), in_channels, num_classes, width)


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(c_in, c_out, stride), *rest)
