"""Small networks, each with what another kind of module needs from the export."""

import random
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from bsconv_nas.decompositions import ConvSpec, plan
from bsconv_nas.export.probe import disturb, images
from bsconv_nas.network.layers import layer
from bsconv_nas.network.models.cifar_resnet import cifar_resnet

OPTIONS = ("regular", "dsc", "bsconv_u", "bsconv_s", "bsconv_u:r=2", "bsconv_s:inner=none,p=1/2")


class PreActivation(nn.Module):
    """Functional activations and a residual around them."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv(F.relu(self.norm(x)))
        out += x
        return out


class Concatenation(nn.Module):
    """Branches that are read side by side, one of them through a slice."""

    def __init__(self, channels):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels // 2, channels, 1, bias=False)

    def forward(self, input):
        half = input[:, : input.shape[1] // 2]
        left, right = torch.cat([self.wide(input), self.narrow(half)], dim=1).chunk(2, dim=1)
        return F.max_pool2d(left * torch.sigmoid(right), 2)


class Shuffle(nn.Module):
    """Sizes that are computed with, as in ShuffleNet."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Tensors(nn.Module):
    """Bare parameters, and buffers inside and outside the state dict."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1))
        self.scales = nn.ParameterList([torch.rand(channels, 1, 1), torch.rand(1)])
        self.register_buffer("mean", torch.rand(channels, 1, 1))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("weights", torch.tensor([0.25, 0.75]), persistent=False)
        self.offset = torch.tensor(0.125)

    def forward(self, x):
        x = (x - self.mean) * self.gamma + self.offset * self.steps
        return self.weights[0] * x + self.weights[1] * self.scales[0] * self.scales[1]


class Dropping(nn.Module):
    """Functional dropout, which acts in training only."""

    def forward(self, x):
        return F.dropout(x, 0.4, self.training)


class Penalised(nn.Conv2d):
    """A convolution with something that matters to training alone."""

    def penalty(self):
        return self.weight.square().sum()


class Standardised(nn.Conv2d):
    """A convolution that computes something else than its parent."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Lists(nn.Module):
    """Children in containers that the parent walks itself."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, channels, 1), nn.Sequential(nn.ReLU(), nn.Identity())])
        self.heads = nn.ModuleDict({"left": nn.Conv2d(channels, 4, 1), "the right": nn.Conv2d(channels, 4, 1)})

    def forward(self, x):
        x = self.layers[1][1](self.layers[1][0](self.layers[0](x)))
        return self.heads["left"](x) - 2 * self.heads["the right"](x)


class Named(nn.Sequential):
    """An ordinary sequence under a name of its own."""


def zoo():
    """Return a network of all of the above for (3, 8, 8)."""
    stem = OrderedDict(pointwise=nn.Conv2d(3, 8, 1, bias=False), depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8))
    return nn.Sequential(
        Named(nn.Sequential(stem), nn.BatchNorm2d(8), nn.PReLU(8)),
        *(PreActivation(8) for _ in range(4)),
        nn.Identity(),
        Concatenation(8),
        Penalised(8, 8, 3, padding="same", padding_mode="reflect"),
        Standardised(8, 8, 3, padding=1),
        Shuffle(),
        Tensors(8),
        Dropping(),
        Lists(8),
        nn.AdaptiveAvgPool2d((2, None)),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, 5),
    )


def mixed(depth, seed):
    """Return a CIFAR ResNet with a random decomposition at each place and its last block of stage 2 dropped."""
    choose = random.Random(seed).choice
    network = cifar_resnet(depth)
    places = [(name, conv) for name, conv in network.named_modules() if getattr(conv, "kernel_size", 1) == (3, 3)]
    for name, conv in places[1:]:
        parent, _, attribute = name.rpartition(".")
        spec = ConvSpec(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        setattr(network.get_submodule(parent), attribute, layer(plan(spec, choose(OPTIONS))))
    network.layer2[-1] = nn.Identity()
    return network


def disturbed(network, input_size, seed=0):
    """Return the network with random weights and statistics that let it answer differently to different images."""
    generator = torch.Generator().manual_seed(seed)
    disturb(network, images(input_size, generator), generator)
    return network
