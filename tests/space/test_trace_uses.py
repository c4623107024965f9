"""Layers and blocks that a forward uses otherwise than by calling them: what is built must still run."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from separable_networks import classifier, depthwise, pointwise
from test_places import SIZE, fitting, table_of
from torch import Tensor, nn

from bsconv_nas.network.build import build


class Scaled(nn.Conv2d):
    """A convolution with an attribute of its own."""

    scale = 0.5


class Reads(nn.Module):
    """A layer of which the forward reads something by `use`."""

    def __init__(self, use: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.free, self.use = Scaled(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), use

    def forward(self, x: Tensor) -> Tensor:
        return self.free(self.use(self.conv, x))


USES: dict[str, Callable[[nn.Conv2d, Tensor], Tensor]] = {
    "its stride is read": lambda conv, x: conv(x) + x if conv.stride == (1, 1) else conv(x),
    "its out_channels is read": lambda conv, x: conv(x) / conv.out_channels,
    "its kernel_size is read": lambda conv, x: F.pad(conv(x), [conv.kernel_size[0] // 2] * 4),
    "its scale is read": lambda conv, x: conv(x) * conv.scale,
    "its weight is read": lambda conv, x: conv(x.to(conv.weight.dtype)),
    "its bias is read": lambda conv, x: conv(x) if conv.bias is not None else x,
    "called with more than one unnamed argument": lambda conv, x: conv(input=x),
}


def check_all_run(base: nn.Module, **choices: object) -> dict[str, str]:
    """Build networks of every option and call them; return what is fixed and why."""
    table = fitting(base, kernels=(3, 5), **choices)
    generator = torch.Generator().manual_seed(0)
    for step in range(max(table.sizes) * 4):
        draw = torch.randint(0, 1000, (len(table.sizes),), generator=generator) if step >= max(table.sizes) else step
        row = (torch.as_tensor(table.sizes) - 1).minimum(draw % torch.as_tensor(table.sizes))
        network = build(base, table, table.architecture(tuple(int(i) for i in row))).eval()
        assert network(torch.randn(1, *SIZE)).shape == (1, 5)
    assert len(table.names) > 1
    return {entry.name: entry.reason for entry in table.fixed}


@pytest.mark.parametrize("reason", USES)
def test_a_layer_of_which_something_is_read_stays(reason: str) -> None:
    fixed = check_all_run(classifier(Reads(USES[reason]), channels=8))
    assert reason in fixed["conv.1.conv"]
    assert "conv.1.free" not in fixed


class PairRead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm, self.act, self.pw = depthwise(8), nn.BatchNorm2d(8), nn.ReLU(), pointwise(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw(self.act(self.norm(self.dw(x))))
        return x + y if self.norm.num_features == 8 and self.act.inplace is False else y


def test_what_stands_in_a_pair_may_be_read() -> None:
    fixed = check_all_run(classifier(PairRead(), nn.Conv2d(8, 8, 3), channels=8))
    assert "outside a separable pair" in fixed["conv.1.dw"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(8, 8, 3, padding=1), 8

    def forward(self, x: Tensor, residual: bool = True) -> Tensor:
        return x + F.relu(self.conv(x)) if residual else self.conv(x)


class Looped(nn.Module):
    """Residual blocks that are called one by one, with `call`."""

    def __init__(self, call: Callable[[Residual, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks, self.call = nn.Sequential(Residual(), Residual()), call

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.call(block, x)
        return x


@pytest.mark.parametrize(
    ("reason", "call"),
    [
        ("called with more than one unnamed argument", lambda block, x: block(x, True)),
        ("called with more than one unnamed argument", lambda block, x: block(x=x)),
        ("its out is read", lambda block, x: block(x) * block.out),
        ("its conv is read", lambda block, x: block(x) if block.conv.groups == 1 else x),
    ],
)
def test_a_block_that_is_used_otherwise_cannot_be_dropped(
    reason: str, call: Callable[[Residual, Tensor], Tensor]
) -> None:
    fixed = check_all_run(classifier(Looped(call), nn.Conv2d(8, 8, 3), channels=8), depths="all")
    assert reason in fixed["depth.1.blocks.0"]
    assert reason in fixed["depth.1.blocks.1"]


def test_a_block_that_is_called_on_one_tensor_can_be_dropped() -> None:
    table = table_of(classifier(Looped(lambda block, x: block(x)), channels=8), depths="all")
    assert "depth.1.blocks" in table.names


def test_modules_are_left_as_they_were() -> None:
    table_of(classifier(Residual(), channels=8))
    assert "__getattribute__" not in vars(nn.Module)


class Weighed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(F.relu(self.conv(x)), x, alpha=0.5)


def test_a_block_that_scales_its_shortcut_cannot_be_dropped() -> None:
    graph = table_of(classifier(nn.Sequential(Weighed(), Residual()), channels=8), depths="all").graph
    assert [block.path for block in graph.blocks] == ["1.1"]
