"""What the odd networks share: a stem, a classifier, a residual block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


def conv(c_in: int, c_out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


class Net(nn.Module):
    """A stem to 8 channels, whatever `body` does, and a classifier over pooled channels."""

    def __init__(self, out: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.head = nn.Linear(out, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(self.stem(x)), 1).flatten(1))


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, channels)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(self.bn2(out).relu())
