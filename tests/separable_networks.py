"""Small separable networks: pairs with all that may stand between, and inverted residuals with and without extras."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(channels: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=bias)


def pointwise(c_in: int, c_out: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, bias=bias)


def classifier(*body: nn.Module, channels: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def separable() -> nn.Module:
    """Three pairs: with norm and activation, with nothing and biases, with a norm between."""
    norm_and_activation = [depthwise(8, stride=2), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), pointwise(8, 12)]
    bare = [depthwise(12, 5, bias=True), pointwise(12, 16, bias=True), nn.BatchNorm2d(16), nn.ReLU()]
    norm = [depthwise(16), nn.BatchNorm2d(16, eps=1e-3), pointwise(16, 8, bias=True), nn.ReLU()]
    return classifier(
        nn.Sequential(*norm_and_activation, nn.BatchNorm2d(12), nn.ReLU6(inplace=True)), *bare, *norm, channels=8
    )


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = pointwise(channels, 4, bias=True), pointwise(4, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return x * weights


class InvertedResidual(nn.Module):
    """Expansion, depthwise, squeeze-and-excitation if asked, linear projection; a shortcut where the shapes agree."""

    def __init__(self, c_in: int, ratio: int, c_out: int, stride: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        hidden = ratio * c_in
        expansion = [pointwise(c_in, hidden), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        middle = [depthwise(hidden, 3, stride), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        squeezed = [Squeeze(hidden)] if squeeze else []
        last = [pointwise(hidden, c_out), nn.BatchNorm2d(c_out)]
        self.body = nn.Sequential(*(expansion if ratio > 1 else []), *middle, *squeezed, *last)
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


def inverted() -> nn.Module:
    """Two stages of inverted residuals: one without an expansion, one with a squeeze-and-excitation."""
    first = nn.Sequential(InvertedResidual(8, 1, 8, squeeze=True), InvertedResidual(8, 4, 12, stride=2))
    second = nn.Sequential(InvertedResidual(12, 3, 12, squeeze=True), InvertedResidual(12, 3, 12))
    return classifier(first, second, channels=12)


class Functional(nn.Module):
    """Activations as functions, with settings, and one module for several places; pairs and an inverted residual."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.dw1, self.norm1, self.pw1, self.norm2 = (
            depthwise(8),
            nn.BatchNorm2d(8),
            pointwise(8, 12),
            nn.BatchNorm2d(12),
        )
        self.act, self.dw2, self.norm3, self.pw2 = act, depthwise(12, 5), nn.BatchNorm2d(12), pointwise(12, 8)
        self.expand, self.norm4 = pointwise(8, 24), nn.BatchNorm2d(24)
        self.middle = nn.Sequential(depthwise(24, stride=2), nn.BatchNorm2d(24))
        self.project, self.norm5 = pointwise(24, 8), nn.BatchNorm2d(8)
        self.dw3, self.pw3 = depthwise(8), pointwise(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm2(self.pw1(F.leaky_relu(self.norm1(self.dw1(x)), 0.2))), 0.2)
        x = self.act(self.pw2(self.act(self.norm3(self.dw2(x)))))
        x = F.relu6(self.middle(F.relu6(self.norm4(self.expand(x)))), inplace=True)
        return self.pw3(self.dw3(self.norm5(self.project(x))).relu())


def functional() -> nn.Module:
    act = nn.SiLU()
    return classifier(act, Functional(act), channels=8)


class Tapped(nn.Module):
    """Pairs that are none: an intermediate is read twice, something else stands between, another layer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.dw1, self.norm1, self.pw1 = depthwise(8), nn.BatchNorm2d(8), pointwise(8, 8)
        self.dw2, self.act, self.pw2 = depthwise(8), nn.PReLU(), pointwise(8, 8)
        self.dw3, self.dense = depthwise(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.norm1(self.dw1(x))
        x = F.relu(self.pw1(middle) + middle)
        return self.dense(self.dw3(F.relu(self.pw2(self.act(self.dw2(x))))))


def tapped() -> nn.Module:
    return classifier(Tapped(), channels=8)


SEPARABLE: dict[str, Callable[[], nn.Module]] = {
    "separable": separable,
    "inverted": inverted,
    "functional": functional,
    "tapped": tapped,
}
