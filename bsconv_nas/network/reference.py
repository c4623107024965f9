"""fvcore's count of a network, the cross-check that stands beside ours in the report."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles a loss with torch.jit.script when imported
    from fvcore.nn.flop_count import FlopCountAnalysis

__all__ = ["fvcore_macs"]


def fvcore_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return fvcore's figure for one image of `input_size` (C, H, W): a multiply-add counts once.

    It also counts normalisation and pooling, so it lies a little above `macs`, which has conv and linear layers alone.

    >>> fvcore_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)) == 3 * 8 * 9 * 64
    True
    """
    copied = copy.deepcopy(model).eval()
    analysis = FlopCountAnalysis(copied, torch.zeros(1, *input_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace, by which it counts, is deprecated and chatty
        return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
