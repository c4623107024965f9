"""What a network answers at weights and images that are the same everywhere: a few numbers by which it is known.

All is drawn by NumPy's legacy generator, whose stream never changes, and computed in float64 where the forward allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["answers", "is_statistic"]

IMAGES = 3
LOGITS = 16  # of each image, at most
DIGITS = 8  # of a number in the record
# Sizes of activations behind norms: small ones show a norm's eps, large ones where an activation saturates.
SIZES = {"small": 0.1, "large": 5.0}
SPREAD = 0.2  # of norms' values around their means, relative to the activations' size
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # what norms gather in training


def answers(module: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Return a few outputs of a network in both modes, and what training makes of its buffers, as JSON values.

    `small` and `large` have a row per image in evaluation, for small and large activations, `training` for small ones
    in training, and `gradients` how much each parameter would learn there. `buffers` has the size and the first value
    of each buffer that this batch in training changes. The network is filled, used and left in any state: hand over a
    copy. torch's global generator is left as it was.

    Raises:
        Exception: whatever its forward raises, in float64 and in float32.

    >>> sorted(answers(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)))
    ['buffers', 'gradients', 'large', 'small', 'training']
    """
    constants = {name: b.clone() for name, b in module.named_buffers() if not is_statistic(name)}
    try:
        return _computed(module.double(), input_size, constants)
    except Exception:  # a forward that converts or makes tensors may refuse doubles
        return _computed(module.float(), input_size, constants)


def is_statistic(name: str) -> bool:
    """Return whether a buffer is what a norm gathers in training, by its name."""
    return name.rpartition(".")[2] in STATISTICS


def _computed(module: nn.Module, input_size: tuple[int, int, int], constants: dict[str, Tensor]) -> dict[str, Any]:
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.from_numpy(_drawn("images", (IMAGES, *input_size))).to(weight.dtype)
    found: dict[str, Any] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for mode in ("large", "small", "training"):
            size = SIZES.get(mode, SIZES["small"])
            _fill(module, constants, size)
            before = {name: buffer.clone() for name, buffer in module.named_buffers()}
            torch.manual_seed(0)
            with torch.set_grad_enabled(mode == "training"):
                output = module.train(mode == "training")(images * size)
            found[mode] = _few(output)
        found["gradients"] = _gradients(module, output)
        after = {name: buffer for name, buffer in module.named_buffers() if not _same(before.get(name), buffer)}
    return {**found, "buffers": {name: _summary(buffer) for name, buffer in after.items()}}


def _gradients(module: nn.Module, output: Any) -> dict[str, list[float]]:
    """Return the size of the gradient of each parameter that has one, for a sum of the outputs with drawn weights.

    In float32 there are none: its oneDNN kernels may damage memory, see `bsconv_nas.training.guard`.
    """
    parts = [part for part in _tensors(output) if part.requires_grad and part.dtype == torch.float64]
    if not parts:
        return {}
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    drawn = (torch.from_numpy(_drawn("answer", tuple(part.shape))).to(part.dtype) for part in parts)
    with torch.enable_grad():
        total = torch.stack([(part * weights).sum() for part, weights in zip(parts, drawn, strict=True)]).sum()
        try:
            found = torch.autograd.grad(total, [*named.values()], allow_unused=True)
        except RuntimeError:  # what cannot be trained has none
            return {}
    pairs = zip(named, found, strict=True)
    return {name: [_rounded(_size(gradient.double()))] for name, gradient in pairs if gradient is not None}


def _fill(module: nn.Module, constants: dict[str, Tensor], size: float) -> None:
    """Give weights and statistics their drawn values for activations of a size, and other buffers what they had.

    Kernels do not depend on the size, and are drawn once.
    """
    for name, weight in module.named_parameters():
        if weight.dim() < 2 or size == SIZES["large"]:
            weight.copy_(_values(name, weight, size))
    for name, buffer in module.named_buffers():
        if not is_statistic(name):
            buffer.copy_(constants.get(name, buffer))
        elif buffer.is_floating_point():
            buffer.copy_(_values(name, buffer, size))
        else:
            buffer.zero_()


def _values(name: str, like: Tensor, size: float) -> Tensor:
    """Return what a tensor is filled with: kernels keep activations alike in ReLU networks (He et al., 2015)."""
    drawn, kind = _drawn(name, tuple(like.shape)), name.rpartition(".")[2]
    if like.dim() > 1:
        drawn *= np.sqrt(2 * len(drawn) / max(drawn.size, 1))
    elif kind == "running_var":
        drawn = size**2 * (1 + SPREAD * drawn)
    else:
        drawn = size * ((kind == "weight") + SPREAD * drawn)
    return torch.from_numpy(np.asarray(drawn))


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return uniform values of mean 0 and variance 1 that depend on the name and the shape alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.asarray(np.sqrt(12) * (np.random.RandomState(seed).random_sample(shape) - 0.5))


def _few(output: Any) -> list[list[float]]:
    """Return per image the size of its values and some of them, of all the tensors that a forward returns."""
    rows = torch.cat([part.detach().double().reshape(IMAGES, -1) for part in _tensors(output)], 1)
    chosen = torch.linspace(0, rows.shape[1] - 1, min(LOGITS, rows.shape[1])).long()
    return [[_rounded(_size(row)), *map(_rounded, row[chosen])] for row in rows]


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: auxiliary classifiers answer in training, as a tuple or a table."""
    if isinstance(output, Tensor):
        yield output
    for part in output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ():
        yield from _tensors(part)


def _same(before: Tensor | None, after: Tensor) -> bool:
    return before is not None and before.shape == after.shape and torch.equal(before, after)


def _summary(buffer: Tensor) -> list[float]:
    values = buffer.detach().double().flatten()
    return [_rounded(_size(values)), *map(_rounded, values[:1])]


def _size(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _rounded(value: Tensor) -> float:
    return float(f"{value.item():.{DIGITS}g}")
