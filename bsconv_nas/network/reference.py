"""fvcore's count of a network, the cross-check that stands beside ours in the report."""

from __future__ import annotations

import logging

import torch
from fvcore.nn.flop_count import FlopCountAnalysis
from torch import nn

__all__ = ["fvcore_macs"]


def fvcore_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return fvcore's figure for one image of `input_size` (C, H, W): a multiply-add counts once.

    It also counts normalisation and pooling, so it lies a little above `macs`, which has conv and linear layers alone.

    >>> fvcore_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)) == 3 * 8 * 9 * 64
    True
    """
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    training = model.training
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, *input_size))
    total = int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
    model.train(training)
    return total
