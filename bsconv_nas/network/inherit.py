"""Weights for any architecture of a space from a trained base network: by projection, without training.

Each place gets the weights with which its layers come closest to the trained kernel (`bsconv_nas.network.projection`):
exact where the option contains it, as `bsconv_u:r=R` does from R = K^2 on. Fewer channels are those that matter most,
more are copies whose readers share the weight, as in Net2Net (Chen et al., arXiv 1511.05641), so that widening changes
nothing. Kernels are cut around their middle or padded with zeros.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bsconv_nas.decompositions import Conv, Norm, Plan
from bsconv_nas.network.build import build
from bsconv_nas.network.projection import project
from bsconv_nas.network.reestimate import NORMS, reestimate
from bsconv_nas.space.graph import Node
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.space.trace_activations import with_own_activations

__all__ = ["inherit"]

_BY_CHANNEL = (*NORMS, nn.InstanceNorm2d, nn.PReLU)


def inherit(base: nn.Module, table: Table, architecture: Architecture, images: Iterable[Tensor] = ()) -> nn.Module:
    """Return the network of `architecture` with the weights of a trained base, projected.

    Args:
        base: the trained base network of `table`; left as it is.
        table: the space.
        architecture: one of its networks.
        images: batches (N, C, H, W) on which the statistics of all norms are taken anew; without any, norms keep what
            they had, which holds where nothing was lost.

    >>> from torchvision.models import resnet18
    >>> import bsconv_nas as nas
    >>> space = nas.SearchSpace.from_module(resnet18)
    >>> smaller = inherit(resnet18(num_classes=10), space.table, space.sample(1)[0])
    """
    module = build(base, table, architecture).eval()
    heir = _Heir(with_own_activations(copy.deepcopy(base)), module, table, architecture.indices)
    with torch.no_grad():
        for index, node in enumerate(table.graph.nodes):
            if node.path and not node.shared and table.is_alive(node.block, architecture.indices):
                heir.fill(index, node)
    reestimate(module, images, heir.new_norms)
    return module.train()


@dataclass(frozen=True, slots=True)
class _Kept:
    """Which of the base's channels stand in a group, (c,), and by what their readers' weights are multiplied, (c,)."""

    channels: Tensor
    shares: Tensor

    def spread(self, features: int) -> _Kept:
        """Return the same for an axis on which each channel has several values."""
        within = torch.arange(features)
        return _Kept((self.channels[:, None] * features + within).flatten(), self.shares.repeat_interleave(features))


class _Heir:
    """Fills the layers of one network from those of the base."""

    def __init__(self, base: nn.Module, module: nn.Module, table: Table, row: tuple[int, ...]) -> None:
        self.base, self.module, self.table, self.row = base, module, table, row
        self.new_norms: list[str] = []
        self._lost: dict[int, Tensor] = {}  # by node: the shift that its layers no longer make
        self._kept = [self._keep(group) for group in range(len(table.graph.groups))]

    def fill(self, index: int, node: Node) -> None:
        """Give the layers of one node their weights."""
        writes = self._kept[node.group]
        if node.op == "get_attr":
            self._fill_parameter(node.path, writes)
        elif node.place is not None:
            self._fill_place(index, node)
        elif node.bias is not None:
            self._fill_linear(node, writes)
        elif isinstance(self.base.get_submodule(node.path), _BY_CHANNEL):
            self._fill_channels(node.path, writes.spread(node.features))
            self._make_good(node)

    def _make_good(self, norm: Node) -> None:
        """Let a norm expect values without the shift that the place before it has lost."""
        mean = getattr(self.module.get_submodule(norm.path), "running_mean", None)
        if mean is not None and norm.inputs[0] in self._lost:
            mean -= self._lost[norm.inputs[0]]

    def _fill_place(self, index: int, node: Node) -> None:
        assert node.place is not None
        option, kernel = self.table.operator_at(index, self.row), self.table.kernel_at(index, self.row)
        reads, writes = self._kept[self.table.input_group(index)], self._kept[node.group]
        primitives = self.table.plan_at(index, self.row)
        if node.place.keeps(option):
            self._fill_own(node, primitives, reads, writes, kernel)
        else:
            dense, shift = self._dense(node)
            kept = _cut(_resized(dense, kernel), writes, reads)
            weights = project(kept, "regular" if option == "fused" else option)
            self._fill_projected(node.parts[0], primitives, weights, shift[writes.channels])
            last = primitives[-1]
            if not (isinstance(last, Conv) and last.bias):
                self._lost[index] = shift[writes.channels]

    def _fill_own(self, node: Node, primitives: Plan, reads: _Kept, writes: _Kept, kernel: int | None) -> None:
        """Fill the base's own layers at a place; `reads` is what the next of them sees."""
        for path, primitive in zip(node.parts, primitives, strict=True):
            if isinstance(primitive, Norm):
                self._fill_channels(path, reads)
            elif isinstance(primitive, Conv):
                whole = self.base.get_submodule(path).get_parameter("weight").detach()
                weight = whole if whole.shape[2:] == (1, 1) else _resized(whole, kernel)
                if self.base.get_submodule(path).groups == 1:
                    weight, reads = _cut(weight, writes, reads), writes
                else:
                    weight = weight[reads.channels]
                self._copy(path, "weight", weight)
                self._copy_cut(path, "bias", reads)

    def _fill_projected(self, first: str, primitives: Plan, weights: Mapping[str, Tensor], shift: Tensor) -> None:
        """Fill the layers that stand in for the base's own; norms among them start as the identity."""
        for primitive in primitives:
            path = f"{first}.{primitive.name}" if len(primitives) > 1 else first
            if isinstance(primitive, Conv):
                self._copy(path, "weight", weights[primitive.name])
                if primitive.bias and primitive is primitives[-1]:  # elsewhere no bias does what the base's did
                    self._copy(path, "bias", shift)
            elif isinstance(primitive, Norm):
                norm = self.module.get_submodule(path)
                norm.get_parameter("weight").fill_(math.sqrt(1 + cast(float, norm.eps)))
                self.new_norms.append(path)

    def _fill_linear(self, node: Node, writes: _Kept) -> None:
        before = self.table.graph.nodes[node.inputs[0]]
        reads = self._kept[before.group].spread(before.features)
        self._copy(node.path, "weight", _cut(self.base.get_submodule(node.path).get_parameter("weight"), writes, reads))
        self._copy_cut(node.path, "bias", writes)

    def _fill_channels(self, path: str, kept: _Kept) -> None:
        """Fill a layer all of whose values belong to one channel each, or to none."""
        layer = self.base.get_submodule(path)
        for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            self._copy_cut(path, name, kept)

    def _copy_cut(self, path: str, name: str, kept: _Kept) -> None:
        """Copy the kept entries of a vector, if the layer has it."""
        values = getattr(self.base.get_submodule(path), name, None)
        if values is not None:
            own = getattr(self.module.get_submodule(path), name)
            own.copy_(values if own.shape == values.shape else values[kept.channels])

    def _copy(self, path: str, name: str, values: Tensor) -> None:
        getattr(self.module.get_submodule(path), name).copy_(values)

    def _fill_parameter(self, path: str, kept: _Kept) -> None:
        """Fill a bare parameter that varies, which has one value a channel; what does not vary is there already."""
        own, values = (operator.attrgetter(path)(network) for network in (self.module, self.base))
        if own.shape != values.shape:
            axis = next(i for i, size in enumerate(values.shape) if size > 1)
            own.copy_(values.index_select(axis, kept.channels))

    def _dense(self, node: Node) -> tuple[Tensor, Tensor]:
        """Return the kernel (N, M, Kh, Kw) and the shift (N,) that the base's layers at a place compose to.

        Activations are left out, and so is what zero padding makes of a shift before a kernel.
        """
        kernel, shift = torch.empty(0), torch.zeros(())
        for layer in map(self.base.get_submodule, filter(None, node.parts)):
            if isinstance(layer, nn.Conv2d):
                bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
                shift = _passed(layer, shift) + bias.to(layer.weight)
                kernel = _composed(kernel, layer.weight) if kernel.numel() else layer.weight
            elif isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None and layer.running_mean is not None:
                scale = layer.weight / (layer.running_var + layer.eps).sqrt()
                kernel, shift = kernel * scale[:, None, None, None], (shift - layer.running_mean) * scale + layer.bias
        return kernel, shift

    def _keep(self, group: int) -> _Kept:
        """Return the channels of a group to keep, in order: the most important, and copies where there are more."""
        had, size = self.table.graph.groups[group].channels, self.table.channels_at(group, self.row)
        if had == size:
            return _Kept(torch.arange(had), torch.ones(had))
        ranked = self._importance(group, had).argsort(descending=True, stable=True)
        chosen = ranked.repeat(-(-size // had))[:size]
        counts = torch.bincount(chosen, minlength=had)
        channels = chosen.sort().values
        return _Kept(channels, 1.0 / counts[channels])

    def _reader(self, node: Node) -> nn.Module | None:
        """Return the layer of a node that mixes the channels it reads, of a pair the pointwise one, or its first."""
        layers = [self.base.get_submodule(path) for path in node.parts or (node.path,) if path]
        return next((layer for layer in layers if getattr(layer, "groups", 0) == 1), layers[0] if layers else None)

    def _importance(self, group: int, had: int) -> Tensor:
        """Return what each channel of the base is worth: its norms' squared scales times the energy of its readers.

        Both are means over the layers, each on its own scale.
        """
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index, node in enumerate(self.table.graph.nodes):
            layer = None if node.op == "get_attr" else self._reader(node)
            if isinstance(layer, NORMS) and node.group == group and layer.affine:
                found[0].append(layer.weight.detach().reshape(had, -1))
            elif node.is_layer and self.table.input_group(index) == group and isinstance(layer, nn.Conv2d | nn.Linear):
                found[1].append(layer.weight.detach().transpose(0, 1).reshape(had, -1))
        worth = torch.ones(had)
        for values in found:
            energies = [rows.square().sum(1) for rows in values]
            worth *= torch.stack([e / e.mean().clamp_min(1e-12) for e in energies]).mean(0) if energies else 1
        return worth


def _cut(weight: Tensor, writes: _Kept, reads: _Kept) -> Tensor:
    """Return the kept rows and columns of a weight (out, in, ...); readers of copies share what the original had."""
    shares = reads.shares.reshape(-1, *(1,) * (weight.dim() - 2)).to(weight)
    return weight[writes.channels][:, reads.channels] * shares


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """Return the dense kernel of a depthwise and a pointwise weight, in either order."""
    return second * (first.transpose(0, 1) if second.shape[2:] == (1, 1) else first)


def _passed(conv: nn.Conv2d, shift: Tensor) -> Tensor:
    """Return what a convolution makes of a constant in each channel, borders aside."""
    taps = conv.weight.sum((2, 3))
    return taps[:, 0] * shift if conv.groups > 1 or not shift.dim() else taps @ shift


def _resized(weight: Tensor, kernel: int | None) -> Tensor:
    """Return a weight (..., K, K) with its kernel cut around the middle, or padded with zeros."""
    border = 0 if kernel is None else (kernel - weight.shape[-1]) // 2
    return functional.pad(weight, (border,) * 4)
