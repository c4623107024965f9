"""What the families of base networks share: width names, the two forms, convolution blocks and the frame around stages.

Activations are modules of their own, one a place: a search space replaces layers, so what stands between a depthwise
and a pointwise convolution must belong to that pair alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from torch import nn

from bsconv_nas.errors import SpaceError, suggest

__all__ = [
    "Activation",
    "StagedNetwork",
    "blocks_per_stage",
    "conv_block",
    "convolution",
    "form_strides",
    "initialise",
    "require_positive",
    "scaled",
    "width_multiplier",
]

Activation = Callable[..., nn.Module]

FORMS = ("cifar", "imagenet")
WIDTH_NAME = re.compile(r"w([1-9]\d*)(?:d([1-9]\d*))?")


def width_multiplier(width: float | str) -> Fraction:
    """Return the exact multiplier that a number or a width name stands for.

    Raises:
        SpaceError: neither a positive number nor a name such as "w1", "w3d4" or "w7d20".

    >>> width_multiplier("w3d4") == width_multiplier(0.75) == Fraction(3, 4)
    True
    """
    if isinstance(width, str):
        if name := WIDTH_NAME.fullmatch(width):
            return Fraction(int(name[1]), int(name[2] or 1))
    elif 0 < width < float("inf"):
        return Fraction(str(width))
    raise SpaceError(f"A width must be a positive number or a name such as 'w1' or 'w3d4', but got {width!r}.")


def scaled(channels: int, width: Fraction) -> int:
    """Return floor(width C), the rounding of the published networks.

    Raises:
        SpaceError: no channel is left.

    >>> scaled(24, Fraction(7, 20))
    8
    """
    if width * channels < 1:
        law = f"A width must leave at least one of {channels} channels"
        raise SpaceError(f"{law}, but {float(width):g} leaves none: take 'w1d{channels}' or more.")
    return int(width * channels)


def form_strides(form: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of stem and stages in a form: for small images the first two of those above 1 become 1.

    Raises:
        SpaceError: an unknown form.

    >>> form_strides("cifar", [2, 1, 2, 2, 2])
    (1, 1, 1, 2, 2)
    """
    if form not in FORMS:
        raise SpaceError(f"Unknown form {form!r} of a base network: {suggest(form, FORMS)}.")
    reducing = [i for i, stride in enumerate(strides) if stride > 1]
    dropped = reducing[:2] if form == "cifar" else []
    return tuple(1 if i in dropped else stride for i, stride in enumerate(strides))


def require_positive(network: str, **sizes: int) -> None:
    """Refuse a size of `network` below 1.

    Raises:
        SpaceError: naming the size and its value.
    """
    for name, value in sizes.items():
        if value < 1:
            raise SpaceError(f"The {name} of a {network} must be at least 1, but got {value}.")


def blocks_per_stage(network: str, depth: int, rest: int) -> int:
    """Return n of a `network` with three stages of n blocks of two layers: `depth` = 6n + `rest`.

    Raises:
        SpaceError: a depth that is not of this form.

    >>> blocks_per_stage("wrn", 28, rest=4)
    4
    """
    blocks, left = divmod(depth - rest, 6)
    if blocks < 1 or left:
        near = 6 * max(1, round((depth - rest) / 6)) + rest
        raise SpaceError(f"The depth of a {network} must be 6n + {rest} with n >= 1, but got {depth}: take {near}.")
    return blocks


def convolution(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that pads by half its odd kernel: (B, c_in, H, W) -> (B, c_out, H', W')."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def conv_block(c_in: int, c_out: int, kernel: int, stride: int, activation: Activation) -> nn.Sequential:
    """Return convolution, norm and activation: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
    block = nn.Sequential()
    block.conv = convolution(c_in, c_out, kernel, stride)
    block.bn = nn.BatchNorm2d(c_out)
    block.act = activation(inplace=True)
    return block


class StagedNetwork(nn.Sequential):
    """Input norm, stem, stages, head, global pooling, classifier: (B, in_channels, H, W) -> (B, num_classes).

    Args:
        stem: what reads the normalised image.
        stages: the blocks of each stage.
        head: what stands between the last stage and the pooling, if anything.
        channels: what the classifier reads.
        num_classes: number of logits.
        in_channels: of the image; None leaves its norm out.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[Iterable[nn.Module]],
        head: nn.Module | None,
        channels: int,
        num_classes: int,
        in_channels: int | None,
    ) -> None:
        super().__init__()
        if in_channels is not None:
            self.input_norm = nn.BatchNorm2d(in_channels)
        self.stem = stem
        for number, blocks in enumerate(stages, start=1):
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        if head is not None:
            self.head = head
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)


def initialise(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_in), the variance that its decompositions are given as well."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
