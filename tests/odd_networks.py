"""Small networks with everything odd that a user's forward may hold, and what must be named as fixed in each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

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


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, channels)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(self.bn2(out).relu())


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


class Attention(Net):
    """A product of two tensors has multiply-adds that are no layer's: named, not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        scores = torch.softmax(torch.bmm(self.q(x).flatten(2), self.k(x).flatten(2).transpose(1, 2)), -1)
        return torch.bmm(scores, self.v(x).flatten(2)).view_as(x)


class Unruled(Net):
    """Norms and layers that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(8, 8), nn.GroupNorm(2, 8), conv(8, 8)
        self.up, self.c = nn.ConvTranspose2d(8, 8, 2, 2), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.c(self.up(self.b(F.relu(self.norm(self.a(x))))))


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


class Nested(Net):
    """Elements of a sequential that are sequentials of one residual block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Sequential(PreActivation(8)), nn.Sequential(PreActivation(8)))

    def body(self, x: Tensor) -> Tensor:
        return self.stages(x)


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
        {"conv.first": "others use", "conv.tied": "others use", "conv.hooked": "hooks", "conv.read": "others use"},
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
    "attention": Odd(Attention, {"bmm": "not counted", "width.q": "enters flatten"}, ("conv.v",)),
    "unruled": Odd(Unruled, {"width.a": "enters norm", "width.b": "enters up"}, ("conv.a", "conv.c", "width.c")),
    "in place": Odd(InPlace, {}, ("conv.a", "width.stem")),
    "resized": Odd(Resized, {"conv.stem": "stem"}, ("conv.a", "width.a", "width.b"), (3, 6, 10)),
}
