"""Trains where the guard matters and compares every gradient with float64's; run in a process of its own.

python guarded.py networks NAME ...   some of NETWORKS, by the training loop
python guarded.py decompositions      one step of every decomposition, few channels, both layouts
python guarded.py large               one step on large images, at which AVX-512 shows the fault
"""

import itertools
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from bsconv_nas.decompositions import DECOMPOSITIONS, ConvSpec, plan
from bsconv_nas.network.layers import layer
from bsconv_nas.training.data import DataSpec, load
from bsconv_nas.training.guard import StridedPointwiseGuard
from bsconv_nas.training.loop import train
from bsconv_nas.training.recipe import Recipe

CHANNELS = 4
EXACT = 1e-4  # of the largest entry


def narrow(shortcut: nn.Module) -> nn.Sequential:
    """A classifier of digits whose `shortcut` reads few channels."""
    stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.Tanh())
    return nn.Sequential(stem, shortcut, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def pointwise(stride: int | tuple[int, int] = 2) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, 8, 1, stride)


class Permuting(nn.Module):
    """Normalises over the last axis, as ConvNeXt does: what it hands on is channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(CHANNELS), pointwise()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Functional(nn.Module):
    """Convolves by the function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(input=x, weight=self.weight, stride=2)


class Checkpointed(nn.Module):
    """Computes its forward pass again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.conv, self.reentrant = pointwise(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.conv, x, use_reentrant=self.reentrant)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: narrow(pointwise()),
    "strided along one axis": lambda: narrow(pointwise((2, 1))),
    "permuting": lambda: narrow(Permuting()),
    "arriving in channels last": lambda: narrow(pointwise()).to(memory_format=torch.channels_last),
    "functional": lambda: narrow(Functional()),
    "checkpointed": lambda: narrow(Checkpointed(False)),
    "checkpointed, reentrant": lambda: narrow(Checkpointed(True)),
}


class Doubled(nn.Module):
    """A network in float64, for which torch has other kernels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double()).float()


def train_network(name: str) -> float:
    """Return the largest error of the last step's gradients, in both layouts."""
    return max(error(last_gradients(name, last), last_gradients(name, last, Doubled)) for last in (True, False))


def last_gradients(
    name: str, channels_last: bool, wrap: Callable[[nn.Module], nn.Module] = nn.Sequential
) -> list[Tensor]:
    """Return what the last step of a training computes; its weights move too little to change it."""
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=1e-9, weight_decay=0.0, channels_last=channels_last)
    torch.manual_seed(0)
    network = wrap(NETWORKS[name]())
    for _ in train(network, load(DataSpec(limit=300)), recipe, seed=0):
        pass
    return gradients_of(network)


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest error relative to the largest entry of all gradients: in front of a norm some are exactly 0.

    It is at most EXACT.
    """
    ours, truth = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, exact))
    worst = ((ours - truth).abs().max() / truth.abs().max()).item()
    assert worst <= EXACT, f"gradients are wrong by {worst:.2g} of the largest"
    return worst


def train_decompositions() -> float:
    """Return the largest relative error of one step over all decompositions, strides, channels and layouts."""
    strides, kernels, formats = (1, 2, 3), (1, 3), (torch.contiguous_format, torch.channels_last)
    cases = itertools.product(DECOMPOSITIONS, strides, range(1, 18), kernels, formats)
    return max(itertools.starmap(step, cases))


def step(
    option: str,
    stride: int,
    c_in: int,
    kernel: int,
    memory_format: torch.memory_format,
    size: tuple[int, int, int] = (13, 8, 8),
    c_out: int = 8,
) -> float:
    torch.manual_seed(c_in)
    spec = ConvSpec(c_in, c_out, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
    module, twin = (layer(plan(spec, option)) for _ in range(2))
    images = torch.randn(size[0], c_in, *size[1:])
    twin = twin.double()
    twin.load_state_dict(module.state_dict())
    module, images = module.to(memory_format=memory_format), images.to(memory_format=memory_format)
    with StridedPointwiseGuard():
        module(images.requires_grad_()).square().sum().backward()
    twin(images.detach().double()).square().sum().backward()
    return error(gradients_of(module), gradients_of(twin))


def train_large_images() -> float:
    """Return the largest error of one step on images at which the fault shows with AVX-512."""
    return max(step("regular", 2, c_in, 1, torch.channels_last, (32, 64, 64), 16) for c_in in (4, 9, 15))


def gradients_of(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1]:
        case "networks":
            worst = max(map(train_network, sys.argv[2:]))
        case "decompositions":
            worst = train_decompositions()
        case "large":
            worst = train_large_images()
    print(f"{worst:.1e}")
