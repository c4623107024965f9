"""A guard against a kernel of torch that damages memory while networks are trained on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["StridedPointwiseGuard", "provoke"]

FEW_CHANNELS = 16  # per group: oneDNN's blocks of channels are 8 wide with AVX2 and 16 with AVX-512
# Images that showed the fault, (N, C, H, W): small ones with AVX2, large ones with AVX-512.
SUSPECTS = [(61, 2, 8, 8), (61, 4, 8, 8), (32, 4, 64, 64), (32, 9, 64, 64), (32, 15, 64, 64)]


class StridedPointwiseGuard(TorchFunctionMode):
    """A context that computes strided 1x1 convolutions of few input channels on a CPU in an equal, safe form.

    In channels last, oneDNN writes the gradient of their weights past a buffer: a crash, a hang or wrong values
    (https://github.com/uxlfoundation/oneDNN/issues/6035; this file and what uses it can go when no supported torch
    carries the fault). A 1x1 convolution of stride s is one of stride 1 on every s-th pixel.

    The guard sees calls of `torch.conv2d`, which every `nn.Conv2d` makes, by whatever name, so it holds in whatever
    layout a network arrives or computes, and leaves the network unchanged. `loss.backward()` belongs inside as well:
    activation checkpointing computes the forward pass again there. Scripted modules and gradients that an
    `autograd.Function` computes itself are not reached.

    >>> layer = torch.nn.Conv2d(4, 8, 1, stride=2).to(memory_format=torch.channels_last)
    >>> with StridedPointwiseGuard():
    ...     layer(torch.randn(2, 4, 9, 9)).square().sum().backward()
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what the call returns."""
        if func is torch.conv2d:
            func = _conv2d
        elif func is Tensor.backward:
            func = self._backward
        return func(*args, **(kwargs or {}))

    def _backward(
        self,
        loss: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Do what `loss.backward()` does, guarded: torch takes a mode off for the time of the call that it sees.

        So the engine is asked itself, as torch does, for a plain loss; whatever else is torch's to judge.
        """
        if gradient is not None or inputs is not None or loss.numel() != 1 or not loss.is_floating_point():
            loss.backward(gradient, retain_graph, create_graph, inputs)
            return
        keep = create_graph if retain_graph is None else retain_graph
        with self:
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), keep, create_graph, (), allow_unreachable=True, accumulate_grad=True
            )


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.conv2d` returns; its arguments have the names that callers may use."""
    steps, borders = _pair(stride), _pair(0 if padding == "valid" else padding)
    if steps and borders and _is_unsafe(input, weight, steps):
        (down, right), (rows, columns) = steps, borders
        if rows or columns:
            input = functional.pad(input, (columns, columns, rows, rows))
        input, stride, padding = input[..., ::down, ::right], 1, 0
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> tuple[int, int] | None:
    """Return (vertical, horizontal) of a number, or of a sequence of one or two; None for what torch has to judge."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) > 2 or not all(hasattr(number, "__index__") and number >= 0 for number in values):
        return None
    return (int(values[0]), int(values[-1])) if values else None


def _is_unsafe(images: Tensor, weight: Tensor, steps: tuple[int, int]) -> bool:
    is_pointwise = weight.shape[2:] == (1, 1) and min(steps) > 0 and steps != (1, 1)
    is_native = images.device.type == "cpu" and images.layout == torch.strided
    return is_pointwise and is_native and weight.shape[1] < FEW_CHANNELS


def provoke(repeats: int = 10) -> float:
    """Return the largest relative error of the gradients that the unguarded kernel computes.

    Where torch carries the fault, the process may die or hang instead: call it in a process of its own.
    """
    torch.manual_seed(0)
    errors = []
    for shape in SUSPECTS:
        images = torch.randn(shape).to(memory_format=torch.channels_last)
        weight = torch.randn(16, shape[1], 1, 1)
        exact = _gradient(images.double(), weight.double())
        found = torch.stack([_gradient(images, weight) for _ in range(repeats)])
        errors.append((found - exact).abs().max() / exact.abs().max())
    return torch.stack(errors).max().item()  # which, unlike Python's max, keeps a NaN


def _gradient(images: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weights of a 1x1 convolution of stride 2, for a loss of squares."""
    weight = weight.detach().requires_grad_()
    torch.conv2d(images.detach().requires_grad_(), weight, stride=2).square().sum().backward()
    assert weight.grad is not None
    return weight.grad
