"""Networks with layers that are no plain ones of torch, or whose weights are not theirs alone."""

import torch
import torch.nn.functional as F
from odd_net import CLASSES, Net, conv
from torch import Tensor, nn


class Reparametrised(Net):
    """Tied, normalised and hooked weights, a weight that is read elsewhere: whole, fixed and counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = conv(8, 8), conv(8, 8)
        self.tied.weight = self.first.weight
        self.normed = nn.utils.parametrizations.weight_norm(conv(8, 8))
        self.hooked, self.read, self.free = conv(8, 8), conv(8, 8), conv(8, 8)
        self.hooked.register_forward_hook(_double)

    def body(self, x: Tensor) -> Tensor:
        x = self.hooked(self.normed(self.tied(self.first(x))))
        return self.free(self.read(x)) * self.read.weight.mean()


def _double(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return 2 * output


class FunctionalConv(Net):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = conv(8, 8), conv(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8, 3, 3))

    def body(self, x: Tensor) -> Tensor:
        return self.after(F.conv2d(self.before(x), self.weight, padding=1))


class Unruled(Net):
    """Norms and layers that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(8, 8), nn.GroupNorm(2, 8), conv(8, 8)
        self.up, self.c = nn.ConvTranspose2d(8, 8, 2, 2), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.c(self.up(self.b(F.relu(self.norm(self.a(x))))))


class Named(nn.Conv2d):
    """A convolution under another name."""


class Explicit(nn.Linear):
    """A linear layer that says itself what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Standardised(nn.Conv2d):
    """Another function of its weight than a convolution's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, padding=1)


class Same(nn.Conv2d):
    """Pads by what it reads: the trace of its forward would fail."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1)) if input.shape[-1] > 1 else input)


class NormAndActivation(nn.BatchNorm2d):
    """A norm that activates, and is made in another way."""

    def __init__(self, activation: nn.Module, channels: int) -> None:
        super().__init__(channels, eps=0.01)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(super().forward(input))


class NormAndMask(nn.BatchNorm2d):
    """A norm with a state of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mask", torch.ones(channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.mask


class Derived(Net):
    """Layers of classes that derive from torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.norm = Named(8, 8, 3, padding=1), NormAndActivation(nn.SiLU(), 8)
        self.standardised, self.same = Standardised(8, 8, 3, padding=1), Same(8, 8, 3)
        self.free, self.hidden, self.head = conv(8, 8), Explicit(8, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.named(F.max_pool2d(self.stem(x), 4)))
        x = self.free(self.same(self.standardised(x)))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


class DerivedNorms(Net):
    """Norms that do more than one of torch's would, and are kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.a = NormAndMask(8), conv(8, 8)
        self.pooled, self.b = NormAndActivation(nn.MaxPool2d(2), 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.b(self.pooled(self.a(self.masked(F.max_pool2d(x, 2)))))
