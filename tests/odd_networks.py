"""Small networks with everything odd that a user's forward may hold, and what must be named as fixed in each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from odd_layers import Derived, DerivedNorms, FunctionalConv, Reparametrised, Unruled
from odd_modes import Answering, Auxiliary, Leafy, Rescaled, Stochastic, Unused
from odd_net import CLASSES, Net, PreActivation, conv
from torch import Tensor, nn


class Functional(nn.Module):
    """Functional activations and pools, a flatten of 2 x 2 pixels, a norm and a PReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8, bias=False), conv(8, 12, 5, stride=2)
        self.slope = nn.PReLU(12, init=0.1)
        self.hidden, self.norm = nn.Linear(12 * 4, 20), nn.BatchNorm1d(20)
        self.late = nn.PReLU(20)
        self.out = nn.Linear(20, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = F.max_pool2d(self.slope(self.b(x)), 2)
        return self.out(self.late(self.norm(self.hidden(x.view(x.size(0), -1)))))


class PreActivated(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.blocks = nn.Sequential(PreActivation(8), PreActivation(8), conv(8, 16, stride=2), PreActivation(16))

    def body(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Depthwise(Net):
    """A MobileNet block: the depthwise convolution, its norm and ReLU6 follow the channels."""

    def __init__(self) -> None:
        super().__init__(12)
        self.dw = conv(8, 8, groups=8, stride=2)
        self.bn, self.act = nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        self.pw = nn.Conv2d(8, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.pw(self.act(self.bn(self.dw(x))))


class Squeeze(Net):
    """Squeeze and excitation: the last convolution joins what it scales, the squeeze width is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(F.relu(self.down(scale))))


class SquareMean(Net):
    """A mean over channels and rows of as many columns as channels looks like a pool, but is none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.stem(x)).mean((1, 2)))


class Shared(Net):
    """One convolution called twice, one slope for all, one norm with two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slope = conv(8, 8), nn.PReLU()
        self.left = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8))
        self.right = nn.Sequential(conv(8, 8), self.left[1])

    def body(self, x: Tensor) -> Tensor:
        x = self.slope(self.conv(self.slope(self.conv(x))))
        return self.right(self.left(x))


class Lender(nn.Module):
    def __init__(self, lent: nn.Module) -> None:
        super().__init__()
        self.own, self.lent = conv(8, 8), lent

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lent(self.own(x))


class SharedBetweenBlocks(Net):
    """Two residual blocks that share a layer: dropping the first would leave the second without it."""

    def __init__(self) -> None:
        super().__init__()
        lent = conv(8, 8)
        self.first, self.second = nn.Sequential(Lender(lent)), nn.Sequential(Lender(lent), PreActivation(8))

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Concatenated(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b, self.c = conv(8, 8), conv(8, 4), conv(12, 6)
        self.free = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.free(x)
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.grouped, self.after = conv(8, 8), conv(8, 8, groups=2), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.grouped(self.before(x)))


class Bare(Net):
    """A scale a channel follows the channels, a scalar gate concerns none, a map of positions fixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(8, 8), conv(8, 8), conv(8, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.bias = nn.Parameter(torch.arange(8.0).reshape(1, 8, 1, 1))
        self.gate = nn.Parameter(torch.ones(()))
        self.position = nn.Parameter(torch.zeros(1, 8, 8, 8))
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.logits = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x - self.mean)) * self.scale + self.bias
        x = self.b(F.relu(x)) * self.gate
        x = self.c(self.b(x)) + self.position
        return self.head(x.mean((2, 3))) + self.logits


class Viewed(Net):
    """A channel shuffle, and a squeeze by linear layers that reads the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(8, 8), conv(8, 8), nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.b(x)
        return x * self.fc(x.mean((2, 3))).view(-1, 8, 1, 1)


class Chunked(Net):
    """Half of the channels gates the other; a slice is convolved."""

    def __init__(self) -> None:
        super().__init__(4)
        self.wide, self.narrow, self.first = conv(8, 16), conv(8, 4), conv(3, 8)

    def body(self, x: Tensor) -> Tensor:
        a, b = self.wide(x).chunk(2, 1)
        x = self.narrow(a * b)
        return x + self.narrow(self.first(a[:, :3]))


class Masked(Net):
    """A mask of one channel is broadcast over the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mask = conv(8, 8), conv(8, 1, 7)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x * torch.sigmoid(self.mask(x))


class Attention(Net):
    """A product of two tensors has multiply-adds that are no layer's: named, not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 12), conv(12, 8)
        self.q, self.k, self.v = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        scores = torch.softmax(torch.bmm(self.q(x).flatten(2), self.k(x).flatten(2).transpose(1, 2)), -1)
        return torch.bmm(scores, self.v(x).flatten(2)).view_as(x)


class InPlace(Net):
    """Everything that can be overwritten is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(8, 8), conv(8, 8), conv(8, 8, dilation=1, padding_mode="reflect")
        self.relu = nn.ReLU(inplace=True)

    def body(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        z = self.b(self.relu(y))
        z *= 2
        return self.c(nn.functional.dropout(z.add_(y), training=False))


class Resized(nn.Module):
    """Upsampled, padded by hand, pooled in two ways; rows and columns differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, (1, 3), (2, 1))
        self.up, self.pad, self.norm = nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.InstanceNorm2d(8, affine=True)
        self.b, self.flat, self.head = conv(8, 6, 5, bias=False), nn.Flatten(), nn.Linear(6 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.a(self.pad(self.stem(x)))))
        return self.head(self.flat(F.adaptive_avg_pool2d(self.b(F.avg_pool2d(x, 2)), 2)))


class Sized(Net):
    """Reads every size but the number of channels, and pads and cuts what is behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(8, 8), conv(8, 8), conv(8, 8), conv(12, 8)

    def body(self, x: Tensor) -> Tensor:
        assert x.ndim is not None
        small = self.a(F.pad(x, (1, 1, 1, 1)))[:, :, ::2, ::2]
        x = self.b(F.interpolate(small, size=x.shape[-2:])) + x.mean((2, 3), keepdim=True).expand_as(x)
        return self.d(F.pad(self.c(F.max_pool2d(x, (x.size(2) // 2, x.shape[3] // 2))), (0, 0, 0, 0, 2, 2)))


class Nested(Net):
    """Elements of a sequential that are sequentials of one residual block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Sequential(PreActivation(8)), nn.Sequential(PreActivation(8)))

    def body(self, x: Tensor) -> Tensor:
        return self.stages(x)


class Flat(Net):
    """Rows are averaged away; what pools and pads the last two axes of (N, C, W) works on the channels."""

    def __init__(self) -> None:
        super().__init__(2)
        self.a, self.b, self.c = conv(8, 8), conv(4, 8), conv(8, 8)
        self.pool, self.pad = nn.AvgPool2d(2), nn.ZeroPad2d((0, 0, 0, 2))

    def body(self, x: Tensor) -> Tensor:
        x = self.pool(self.a(x).mean(3))[..., None]
        x = self.pad(self.b(x).mean(3))[:, :8, :, None]
        return F.max_pool2d(self.c(x).mean(3), (4, 1))[..., None]


class SizedSqueeze(nn.Module):
    """A residual block with a squeeze by linear layers, which reads the sizes of what it scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = conv(8, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, _, _ = y.size()
        return x + y * self.squeeze(F.adaptive_avg_pool2d(y, 1).view(b, c)).view(b, c, 1, 1).expand_as(y)


class SizedBlocks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(SizedSqueeze(), SizedSqueeze())

    def body(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@dataclass(frozen=True)
class Odd:
    """A network, and for each name a part of the reason why it is fixed; names that must not be fixed are `free`."""

    factory: Callable[[], nn.Module]
    fixed: Mapping[str, str] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    input_size: tuple[int, int, int] = (3, 8, 8)


ODD = {
    "functional": Odd(Functional, {"conv.a": "stem", "width.out": "output"}, ("conv.b", "width.b", "width.hidden")),
    "pre-activation": Odd(PreActivated, {}, ("depth.blocks.0", "depth.blocks.3", "conv.blocks.0.conv1")),
    "depthwise": Odd(Depthwise, {}, ("width.stem", "width.pw", "conv.dw")),
    "squeeze": Odd(Squeeze, {"conv.down": "1x1"}, ("width.conv", "width.down", "width.stem")),
    "square mean": Odd(SquareMean, {"width.conv": "enters mean"}, ("conv.conv", "width.stem")),
    "shared": Odd(Shared, {"conv.conv": "more than once"}, ("conv.left.0", "width.stem", "width.left.0")),
    "shared between blocks": Odd(
        SharedBetweenBlocks, {"conv.first.0.lent": "more than once"}, ("conv.first.0.own", "depth.second")
    ),
    "concatenated": Odd(
        Concatenated,
        {"width.a": "enters cat", "width.b": "enters cat", "width.cat": "leaves cat"},
        ("conv.a", "conv.c", "width.free", "width.c"),
    ),
    "grouped": Odd(
        Grouped,
        {"conv.grouped": "grouped", "width.before": "enters", "width.grouped": "leaves"},
        ("conv.after", "width.stem", "width.after"),
    ),
    "bare": Odd(
        Bare, {"conv.b": "more than once", "width.c": "bare parameter position"}, ("conv.c", "width.a", "width.stem")
    ),
    "viewed": Odd(Viewed, {"width.a": "size is read", "width.b": "leaves view"}, ("conv.a", "conv.b", "width.stem")),
    "chunked": Odd(
        Chunked,
        {"width.wide": "enters chunk", "width.first": "leaves getitem", "conv.narrow": "more than once"},
        ("conv.wide", "conv.first", "width.narrow"),
    ),
    "masked": Odd(Masked, {"width.mask": "broadcast"}, ("width.a", "conv.mask")),
    "reparametrised": Odd(
        Reparametrised,
        {
            "conv.first": "others use",
            "conv.tied": "others use",
            "conv.hooked": "hooks",
            "conv.read": "its weight is read",
        },
        ("conv.free", "width.free"),
    ),
    "functional conv": Odd(FunctionalConv, {"conv.conv2d": "no convolution layer"}, ("conv.after", "width.stem")),
    "unused": Odd(
        Unused,
        {"conv.aux.0": "not called", "never": "not read", "blocks.1.spare.weight": "not read"},
        ("depth.blocks",),
    ),
    "leafy": Odd(Leafy, {"conv.noisy.conv": "inside noisy", "width.before": "enters noisy"}, ("conv.after",)),
    "stochastic": Odd(
        Stochastic,
        {},
        ("depth.blocks", "conv.blocks.1.conv", "conv.dropping.conv", "width.stem", "width.dropping.conv"),
    ),
    "derived": Odd(
        Derived,
        {
            "conv.standardised": "forward of its own",
            "conv.same": "forward of its own",
            "width.named": "enters standardised",
            "width.same": "leaves same",
        },
        ("conv.named", "conv.free", "width.stem", "width.free", "width.hidden"),
    ),
    "derived norms": Odd(
        DerivedNorms, {"width.stem": "enters masked", "width.a": "enters pooled"}, ("conv.a", "conv.b", "width.b")
    ),
    "sized": Odd(
        Sized, {"width.c": "enters pad", "width.pad_1": "leaves pad"}, ("conv.a", "width.stem", "width.a", "width.d")
    ),
    "auxiliary": Odd(
        Auxiliary,
        {"width.a": "is read by aux in training", "conv.aux": "not called"},
        ("conv.a", "conv.b", "width.stem", "width.b"),
    ),
    "rescaled": Odd(Rescaled, {}, ("conv.a", "width.stem")),
    "nested": Odd(Nested, {}, ("depth.stages", "conv.stages.0.0.conv1")),
    "attention": Odd(Attention, {"bmm": "not counted", "width.q": "enters flatten"}, ("conv.v", "width.a")),
    "unruled": Odd(Unruled, {"width.a": "enters norm", "width.b": "enters up"}, ("conv.a", "conv.c", "width.c")),
    "flat": Odd(
        Flat,
        {"width.a": "enters pool", "width.b": "enters pad", "width.c": "enters max_pool2d"},
        ("conv.a", "conv.b", "conv.c", "width.stem"),
    ),
    "sized blocks": Odd(SizedBlocks, {"width.stem": "size is read"}, ("depth.blocks", "conv.blocks.1.conv")),
    "answering": Odd(
        Answering, {"conv.paired.conv": "inside paired", "width.stem": "enters paired"}, ("conv.after", "width.after")
    ),
    "in place": Odd(InPlace, {}, ("conv.a", "width.stem")),
    "resized": Odd(Resized, {"conv.stem": "stem"}, ("conv.a", "width.a", "width.b"), (3, 6, 10)),
}
