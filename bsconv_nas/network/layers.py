"""Torch modules of a plan, and the dense kernel that they compose to.

The layers are initialised by one rule: whatever the option, the kernel that the sequence composes to has the variance
2 / (M K^2) of the dense convolution it stands in for (He et al., arXiv 1502.01852).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bsconv_nas.decompositions import Activation, Conv, Norm, Plan, Primitive
from bsconv_nas.errors import DecompositionError, suggest

__all__ = ["ACTIVATIONS", "OrthonormalConv2d", "compose", "layer"]

# Named as in torch.nn.functional.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class OrthonormalConv2d(nn.Conv2d):
    """A convolution that is trained with the orthonormality loss of BSConv-S (arXiv 2003.13549, section 4.2).

    Whoever trains it adds `penalty()` to the loss. The penalty reads the module's own weight each time it is called,
    so deep copies, EMA copies and replicas have theirs.
    """

    alpha = 0.1

    def penalty(self) -> Tensor:
        """Return alpha ||W W^T - I||_F, not squared, as a scalar; W is the weight as a (c_out, fan_in) matrix."""
        # Under autocast the product would be rounded to half precision and never come closer to I than 1e-3.
        with torch.autocast(self.weight.device.type, enabled=False):
            rows = self.weight.flatten(1)
            identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            distance: Tensor = torch.linalg.matrix_norm(rows @ rows.T - identity)
        return self.alpha * distance

    def extra_repr(self) -> str:
        """Return Conv2d's summary and the penalty, which would otherwise be invisible in `print(model)`."""
        summary: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{summary}, penalty={self.alpha} ||W W^T - I||_F"


def layer(primitives: Plan) -> nn.Module:
    """Return the initialised module of a plan: (B, M, H, W) -> (B, N, H', W').

    A single convolution stands alone; several primitives become an `nn.Sequential` with their names. Weights are drawn
    by torch's global generator.

    Raises:
        DecompositionError: an activation that is not in `ACTIVATIONS`.

    >>> from bsconv_nas.decompositions import ConvSpec, plan
    >>> [name for name, _ in layer(plan(ConvSpec(16, 32, (3, 3)), "bsconv_u")).named_children()]
    ['pointwise', 'depthwise']
    """
    modules = OrderedDict((primitive.name, _module(primitive)) for primitive in primitives)
    return nn.Sequential(modules) if len(modules) > 1 else next(iter(modules.values()))


def _module(primitive: Primitive) -> nn.Module:
    match primitive:
        case Conv():
            return _convolution(primitive)
        case Norm():
            return nn.BatchNorm2d(primitive.channels)
        case Activation():
            return _activation(primitive)


def _convolution(conv: Conv) -> nn.Conv2d:
    """Return the convolution, weights drawn from N(0, gain / fan_in) or with orthonormal rows, bias 0."""
    kind = OrthonormalConv2d if conv.orthonormal else nn.Conv2d
    module = kind(
        conv.c_in,
        conv.c_out,
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias,
        conv.padding_mode,  # type: ignore[arg-type]  # torch checks it
    )
    if conv.orthonormal:
        nn.init.orthogonal_(module.weight)  # unit rows: the entries' variance is 1 / fan_in as well
    else:
        nn.init.normal_(module.weight, std=math.sqrt(conv.gain / conv.fan_in))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _activation(activation: Activation) -> nn.Module:
    if activation.kind not in ACTIVATIONS:
        known = suggest(activation.kind, ACTIVATIONS)
        raise DecompositionError(f"Unknown activation {activation.kind!r} of {activation.name!r} in a plan: {known}.")
    return ACTIVATIONS[activation.kind]()


def compose(module: nn.Module) -> Tensor:
    """Return the dense kernel (N, M, Kh, Kw) of a convolution, or of a sequence where at most one kernel exceeds 1x1.

    With the spatial layer's stride, padding and dilation that kernel does what the sequence does, borders included.

    Raises:
        DecompositionError: a norm or an activation stands inside.
    """
    children = [child for child in module.modules() if not isinstance(child, nn.Sequential)]
    convs = [child for child in children if isinstance(child, nn.Conv2d)]
    if foreign := [type(child).__name__ for child in children if child not in convs]:
        law = "Only convolutions compose to a dense kernel"
        raise DecompositionError(f"{law}, but {foreign[0]} stands among them: use inner=none or fold it first.")
    kernel = torch.eye(convs[0].in_channels).to(convs[0].weight)[..., None, None]
    for conv in convs:
        # (groups g, outputs p, inputs c) x (g, c, M) -> (g, p, M); the kernels' 1s broadcast.
        weight, read = (t.reshape(conv.groups, -1, *t.shape[1:]) for t in (conv.weight, kernel))
        kernel = torch.einsum("gpcij,gcmij->gpmij", weight, read).flatten(0, 1)
    return kernel
