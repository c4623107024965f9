"""The base network of the tables: as few layers as have an operator, a width and a depth in each of three stages."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["small_residual"]


class Residual(nn.Module):
    """A 3x3 convolution beside its input: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn(self.conv(x)))


def small_residual(in_channels: int = 1, num_classes: int = 10, width: int = 8) -> nn.Module:
    """Return a network of 7 layers whose stages have `width`, 2 `width` and 4 `width` channels."""
    return nn.Sequential(
        _halved(in_channels, width, stride=1),
        nn.Sequential(Residual(width)),
        nn.Sequential(_halved(width, 2 * width), Residual(2 * width)),
        nn.Sequential(_halved(2 * width, 4 * width), Residual(4 * width)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def _halved(c_in: int, c_out: int, stride: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
