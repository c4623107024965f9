"""Networks of inverted residuals (Sandler et al., arXiv 1801.04381), each written as a table.

MobileNetV2, MobileNetV3 and EfficientNet differ in their tables alone: stages, activations, gates and head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from bsconv_nas.network.models.blocks import (
    Activation,
    StagedNetwork,
    conv_block,
    convolution,
    form_strides,
    require_positive,
    scaled,
    width_multiplier,
)

__all__ = ["InvertedResidual", "Layout", "SqueezeExcitation", "Stage", "inverted_network"]


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate that reads their means (Hu et al., arXiv 1709.01507): (B, C, H, W) -> the same."""

    def __init__(self, channels: int, squeezed: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = activation(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Return x, each channel times a number in [0, 1]."""
        result: Tensor = x * self.gate(self.expand(self.act(self.reduce(self.avgpool(x)))))
        return result


Gate = Callable[[int, int], SqueezeExcitation]  # made from the channels that a block reads and those that it gates


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that write `c_out` channels, one for each of the `middles`; the first has the stage's stride.

    A middle counts the channels between expansion and projection; 0 stands for a block without expansion.
    """

    c_out: int
    middles: tuple[int, ...]
    kernel: int
    stride: int
    activation: Activation
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A network at width 1 and ImageNet's resolution: channels of stem and head, and the stages between them."""

    name: str
    stem: int
    stages: tuple[Stage, ...]
    head: int
    activation: Activation
    head_gate: Gate | None = None
    input_norm: bool = True


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, gate, projection: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride).

    The input is added where the shapes agree. `middle` = 0 leaves the expansion out.
    """

    def __init__(self, c_in: int, middle: int, c_out: int, stride: int, stage: Stage) -> None:
        super().__init__()
        channels = middle or c_in
        self.expand = conv_block(c_in, channels, 1, 1, stage.activation) if middle else None
        self.depthwise = convolution(channels, channels, stage.kernel, stride, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = stage.activation(inplace=True)
        self.gate = stage.gate(c_in, channels) if stage.gate else None
        self.project = convolution(channels, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, plus x where the shapes agree."""
        out = x if self.expand is None else self.expand(x)
        out = self.act(self.bn1(self.depthwise(out)))
        out = out if self.gate is None else self.gate(out)
        result: Tensor = self.bn2(self.project(out))
        return x + result if self.residual else result


def inverted_network(
    layout: Layout, width: float | str, form: str, in_channels: int, num_classes: int
) -> StagedNetwork:
    """Return the network of a layout.

    Args:
        layout: the table.
        width: multiplier of all channels, a number or a name such as "w3d4"; those of the head only grow with it.
        form: "cifar" for small images, "imagenet" for 224x224 [pixels].
        in_channels: of the image.
        num_classes: number of logits.

    Raises:
        SpaceError: a width that leaves no channel, an unknown form, or a size below 1.
    """
    require_positive(layout.name, in_channels=in_channels, num_classes=num_classes)
    multiplier = width_multiplier(width)
    stem_stride, *strides = form_strides(form, [2, *(stage.stride for stage in layout.stages)])
    stem, head = scaled(layout.stem, multiplier), scaled(layout.head, max(multiplier, Fraction(1)))
    last = conv_block(scaled(layout.stages[-1].c_out, multiplier), head, 1, 1, layout.activation)
    if layout.head_gate:
        last.gate = layout.head_gate(head, head)
    return StagedNetwork(
        conv_block(in_channels, stem, 3, stem_stride, layout.activation),
        _stages(layout.stages, strides, stem, multiplier),
        last,
        head,
        num_classes,
        in_channels if layout.input_norm else None,
    )


def _stages(
    stages: Sequence[Stage], strides: Sequence[int], c_in: int, width: Fraction
) -> Iterator[list[InvertedResidual]]:
    """Yield the blocks of each stage, with `strides` in place of the table's."""
    for stage, stride in zip(stages, strides, strict=True):
        c_out, blocks = scaled(stage.c_out, width), []
        for number, middle in enumerate(stage.middles):
            channels = scaled(middle, width) if middle else 0
            blocks.append(InvertedResidual(c_in, channels, c_out, 1 if number else stride, stage))
            c_in = c_out
        yield blocks
