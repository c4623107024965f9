"""Networks as people write them by hand, and what the product owes each: a space that keeps its word, or a reason."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4
SIZE = (3, 16, 16)


def unit(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Plain(nn.Module):
    """Three convolutions and a classifier; the others change what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(3, 8), unit(8, 12, 2), unit(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class DefaultScale(Plain):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(x * scale)


class DefaultMask(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, as_features: bool = False) -> Tensor:
        x = self.features(x)
        if mask is not None:
            x = x * mask
        return x if as_features else self.head(x.mean((2, 3)))


class InList(nn.Module):
    """Registered layers that the forward finds in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.walk = []
        for i, (c_in, c_out) in enumerate([(3, 8), (8, 12), (12, 12)]):
            self.add_module(f"conv{i}", nn.Conv2d(c_in, c_out, 3, padding=1))
            self.walk.append(self.get_submodule(f"conv{i}"))
        self.last = unit(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.walk:
            x = F.relu(layer(x))
        return self.head(self.last(x).mean((2, 3)))


class InModuleList(InList):
    """The same, as a refusal advises."""

    def __init__(self) -> None:
        super().__init__()
        self.walk = nn.ModuleList(self.walk)
        del self.conv0, self.conv1, self.conv2


class OnlyInList(InList):
    """Nothing but what the list holds could vary."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.head = nn.Identity(), nn.Linear(12, CLASSES)


class Untraced(Plain):
    """Refuses the tracing by which fvcore counts."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise NotImplementedError("no tracing here")
        return super().forward(x)


class BlocksInTable(nn.Module):
    """Residual blocks that the forward finds in a plain table of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.blocks = nn.Sequential(Residual(), Residual(), Residual())
        self.head = nn.Linear(8, CLASSES)
        self.plan = {"stage": [[*self.blocks]]}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.plan["stage"][0]:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = unit(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class ReadsChannels(nn.Module):
    """The forward asks a layer that may be replaced for its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.b(F.relu(self.a(x)))), 1)
        return self.head(x.view(-1, self.b.out_channels))


class Gated(nn.Module):
    """A GRU reads the columns of the feature map and answers with a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(3, 8), unit(8, 8, 2)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.b(self.a(x)).mean(2).transpose(1, 2))[0].mean(1))


class Remembering(nn.Module):
    """An LSTM of two directions answers with a pair of which one is a pair; only the innermost is used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(3, 8), unit(8, 8, 2)
        self.rnn = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.rnn(self.b(self.a(x)).mean(2).transpose(1, 2))
        return self.head(hidden[-1])


class Elman(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 8, nonlinearity="relu", batch_first=True)


class Attending(nn.Module):
    """An attention layer answers with a pair, one part of which is None."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(3, 8), unit(8, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Forked(nn.Module):
    """Answers with a table of two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = unit(8, 8), unit(8, 8, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"fine": [self.fine(x)], "coarse": self.coarse(x)}


class Exchange(nn.Module):
    """Takes a table of two resolutions and answers with a list of them, as the stages of an HRNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.down = unit(8, 8, 2)

    def forward(self, parts: dict[str, Any]) -> list[Tensor]:
        return [parts["fine"][0], parts["coarse"] + self.down(parts["fine"][0])]


class ManyResolutions(nn.Module):
    """Modules hand each other tables and lists; kept whole, they cost what they cost."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fork, self.exchange = unit(3, 8), Forked(), Exchange()
        self.last = unit(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, coarse = self.exchange(self.fork(self.stem(x)))
        return self.head(self.last(coarse).mean((2, 3)))


class Call:
    """Calls a layer, of which it holds the attribute."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


class InObject(nn.Module):
    """A layer that the forward finds in an object of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = unit(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.call = Call(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.stem(x)).mean((2, 3)))


class OneImage(Plain):
    """Right for one image: the batch is written down."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)).reshape(1, 12))


class OneAnswer(Plain):
    """Right for one image, and no error for more: their logits become one row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, -1)


class Detached(Plain):
    """One convolution cannot learn."""

    def features(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).detach()))


class Drawn(Plain):
    """Each instance scales its channels by values of its own, which no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.rand(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scales)


def pictures(spec: object) -> dict[str, object]:
    """Images for these networks, as a user's data function returns them."""
    images = np.arange(40 * math.prod(SIZE), dtype=np.int64).reshape(40, *SIZE) % 251
    return {"train": (images.astype(np.uint8), np.arange(40) % CLASSES)}


class Skipping(nn.Module):
    """Residual blocks that are left out at random, each as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = unit(3, 8), unit(8, 12), nn.Linear(12, CLASSES)
        self.blocks = nn.ModuleList(MayBeLeft() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean((2, 3)))


class MayBeLeft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = unit(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.5:
            return x
        return x + self.conv(x)


class Undefined(Plain):
    """Answers with logarithms of what random weights make negative."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


class Noisy(Plain):
    """Answers at random, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(1, device=x.device)


class Overwriting(Plain):
    """Overwrites what the backward pass needs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3)).exp()
        return self.head(x) + x.mul_(2).mean()


class HalfPrecise(Plain):
    """Computes with few digits in a context."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class Teaching(Plain):
    """A layer that training alone reads, and that cannot learn."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = unit(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + self.extra(x).detach()
        return super().forward(x)


class Keeping(Plain):
    """Keeps what it computes, in an attribute, in a table, and in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.features(x)
        self.cache["last"] = self.kept
        if self.training:
            self.size = self.kept.square().mean()
        return self.head(self.kept.mean((2, 3)))


class Unpacking(Plain):
    """Keeps a size, and unpacks it: a refusal that is no error of ours."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.shape
        _, *_ = self.seen
        return super().forward(x)


class Cumulative(Plain):
    """Its norms average over all batches, which asks for the number of them."""

    def __init__(self) -> None:
        super().__init__()
        for norm in (self.a[1], self.b[1], self.c[1]):
            norm.momentum = None


class Averaging(Plain):
    """Reassigns a buffer in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return super().forward(x - self.mean.reshape(1, 3, 1, 1))


class LowRank(Plain):
    """The classifier's weight is a product, once for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 12)), nn.Parameter(torch.randn(CLASSES, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return F.linear(x, self.head.weight + self.up @ self.down, self.head.bias)


class Asking(Plain):
    """Learned questions are projected, once for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.questions, self.project = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.project(self.questions).mean(0)


class InClosure(Plain):
    """A layer that a function holds, which no copy of the network follows."""

    def __init__(self) -> None:
        super().__init__()
        b = self.b
        self.call: Callable[[Tensor], Tensor] = lambda x: b(x)

    def features(self, x: Tensor) -> Tensor:
        return self.c(self.call(self.a(x)))


class Orthogonal(Plain):
    """A classifier of orthogonal rows, which are computed where the network is made."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.orthogonal(self.head)


class Normalised(Plain):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.b[0])


class Mixed(Plain):
    """Calls a layer where one place was replaced and another not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        if isinstance(self.b[0], nn.Conv2d) == isinstance(self.c[0], nn.Conv2d):
            x = self.c(x)
        return self.head(x.mean((2, 3)))


class Frozen(Plain):
    """Nothing can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


@dataclass(frozen=True)
class Brought:
    """A network, and what is owed: `fixed` are the beginnings of what `space show` must name as fixed."""

    factory: Callable[[], nn.Module]
    fixed: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    refused: str = ""


KEPT = {
    "an argument with a default number": Brought(DefaultScale),
    "arguments with None and False": Brought(DefaultMask),
    "layers in a plain list": Brought(InList, ("conv.conv1: it is also held in walk",)),
    "layers in a list of modules": Brought(InModuleList),
    "blocks in a plain table": Brought(BlocksInTable, ("depth.blocks.1: blocks.1 cannot be dropped: it is also held",)),
    "blocks left out at random": Brought(
        Skipping,
        ("conv.blocks.0.conv.0: inside blocks.0, which is kept whole, as it computes something else in training",),
    ),
    "answers that are not finite": Brought(Undefined, unchecked=("not finite",)),
    "tensors kept on the way": Brought(Keeping),
    "norms without a momentum": Brought(Cumulative),
    "a buffer reassigned in training": Brought(Averaging),
    "a product once for all images": Brought(LowRank),
    "a layer that reads a parameter": Brought(Asking),
    "a normalised weight": Brought(
        Normalised, ("conv.b.0: its weight is computed by a parametrization",), unchecked=("exported source",)
    ),
    "an orthogonal weight": Brought(Orthogonal, unchecked=("exported source",)),
    "GRU": Brought(Gated, ("width.b.0: enters transpose",)),
    "LSTM": Brought(Remembering, ("width.b.0: enters transpose",)),
    "RNN": Brought(Elman, ("width.b.0: enters transpose",)),
    "attention": Brought(
        Attending, ("attention: the multiply-adds of aten.bmm are not counted",), unchecked=("aten.bmm",)
    ),
    "tables and lists": Brought(ManyResolutions, ("conv.fork.fine.0: inside fork",), leaves=("fork", "exchange")),
}
BROKEN = {
    "a layer in an object": Brought(
        InObject, refused=r"'conv.weight' \(Conv2d\) gets no gradient in 20 passes: see .*brought_networks.py:\d+"
    ),
    "the batch written down": Brought(
        OneImage,
        refused=r"must run in evaluation on 5 images .*brought_networks.py:\d+.*; let it compute for any number of ima",
    ),
    "the batch written down in the end": Brought(
        OneAnswer, refused=r"logits of shape \(5, 4\) in evaluation, but returned \(1, 20\): see .*networks.py:\d+, and"
    ),
    "a layer called by what stands at two places": Brought(
        Mixed, refused=r"multiply-adds .*'c.0' has 0 .*: let .*networks.py:\d+ call the same layers in every network"
    ),
    "a gradient cut off": Brought(
        Detached, refused=r"'a\.0\.weight' \(Conv2d\) gets no gradient in 20 passes: see .*:\d+"
    ),
    "a value overwritten": Brought(
        Overwriting,
        refused=r"its backward pass fails: .*; see .*networks.py:\d+, and overwrite nothing",
    ),
    "nothing to train": Brought(Frozen, refused=r"must have something to train, but all is frozen: see .*works.py:\d+"),
    "a context that is not written out": Brought(
        HalfPrecise, refused=r"as its exported source does within 1e-05, .*networks.py:\d+, .* such as torch.autocast"
    ),
    "a layer of training alone that cannot learn": Brought(
        Teaching, refused=r"'extra.0.weight' .* gets no gradient in 20"
    ),
    "values drawn at construction": Brought(
        Drawn, refused=r"base must answer as its build .* differs by .*brought_networks.py:\d+"
    ),
}
