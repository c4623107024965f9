"""Networks that do, or hold, something else in training than in evaluation."""

import torch
import torch.nn.functional as F
from odd_net import CLASSES, Net, PreActivation, conv
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class Unused(Net):
    """An auxiliary head and a parameter that the forward never reads, one of them in a block that can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(PreActivation(8), PreActivation(8))
        self.blocks[1].spare = nn.Linear(3, 3)
        self.aux, self.never = nn.Sequential(conv(8, 4), nn.Linear(4, 2)), nn.Parameter(torch.zeros(7))

    def body(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Noisy(nn.Module):
    """Computes something else in training, so it stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.randn_like(x) if self.training else x)


class Leafy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.noisy, self.after = conv(8, 8), Noisy(), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.noisy(self.before(x)))


class Paired(nn.Module):
    """Stays whole, as it computes something else in training, and answers with two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = conv(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x + torch.randn_like(x) if self.training else x)
        return y, self.gate(y.mean((2, 3)))


class Answering(Net):
    """A layer whose answer is a tuple: its multiply-adds and parameters count."""

    def __init__(self) -> None:
        super().__init__()
        self.paired, self.after = Paired(), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        y, gate = self.paired(x)
        return self.after(y * gate[:, :, None, None])


class Dropping(nn.Module):
    """Reads the mode, but makes the same calls in both: it is looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.dropout(x, 0.5, training=self.training))


class DropPath(nn.Module):
    """Without weights, and the identity in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], *[1] * (x.dim() - 1)) > 0.5)


class Stochastic(Net):
    """Residual blocks whose branch is dropped at random in training, in the ways of two libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inverted(DropPath()), Inverted(StochasticDepth(0.5, "row")))
        self.dropping = Dropping()

    def body(self, x: Tensor) -> Tensor:
        return self.dropping(self.blocks(F.max_pool2d(x, 4)))


class Inverted(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = conv(8, 8), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.conv(x))


class Auxiliary(Net):
    """A head that training alone reads: evaluation does not show its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.b = conv(8, 8), conv(8, 4), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            x = x + self.aux(x).mean()
        return self.b(x)


class Rescaled(nn.Module):
    """A bare parameter ties two tensors in training alone; evaluation reads it once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x) * self.scale)
        x = x * self.scale if self.training else x
        return self.head(x.mean((2, 3)))
