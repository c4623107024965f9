"""Statistics of batch norms, taken anew after weights were changed without training."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["NORMS", "reestimate"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def reestimate(module: nn.Module, images: Iterable[Tensor], new_norms: Collection[str] = ()) -> None:
    """Take the statistics of all batch norms anew: means over the batches, as training on them would see them.

    Args:
        module: changed in place and moved to the images' device; its mode is kept.
        images: batches (N, C, H, W); none change nothing.
        new_norms: paths of norms that stay the identity: they get the scale and shift that undo their statistics.
    """
    training = module.training
    norms = {path: m for path, m in module.eval().named_modules() if isinstance(m, NORMS) and m.track_running_stats}
    fresh = {path: norms.pop(path) for path in new_norms}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    batches = iter(images)
    first = next(batches, None)
    if first is not None:
        module.to(first.device)
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        seen = {path: _Moments(norm) for path, norm in fresh.items()}
        for batch in itertools.chain([first], batches):
            module(batch)
        for path, norm in norms.items():
            norm.momentum = momenta[path]
        for moments in seen.values():
            moments.settle()
    module.train(training)


class _Moments:
    """Sums up what enters a norm that is the identity, and then makes it the identity on normalised values."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm, self.count = norm, 0
        self.mean, self.variance = (norm.get_buffer(f"running_{name}") for name in ("mean", "var"))
        self.sum, self.squares = (torch.zeros_like(self.mean, dtype=torch.float64) for _ in range(2))
        self.handle = norm.register_forward_pre_hook(self._see)

    def _see(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sum += values.sum(1)
        self.squares += values.square().sum(1)

    def settle(self) -> None:
        """Write the statistics, and the scale and shift that undo them."""
        self.handle.remove()
        mean = self.sum / self.count
        variance = self.squares / self.count - mean.square()
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.norm.get_parameter("weight").copy_((self.variance + cast(float, self.norm.eps)).sqrt())
        self.norm.get_parameter("bias").copy_(mean)
