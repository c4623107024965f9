"""Why a network could not be traced: its own forward fails on such images, or it does what tracing cannot follow."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bsconv_nas.errors import SpaceError, first_line

__all__ = ["TORCH", "MixedTypes", "check_shapes", "check_types", "explained", "place", "raised"]

TORCH = str(Path(torch.__file__).parent)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)
TYPED = (nn.modules.conv._ConvNd, nn.Linear, nn.PReLU, *NORMS)  # they take values of their weights' type alone
SHORT_FLOATS = (torch.float16, torch.bfloat16)


class MixedTypes(Exception):
    """A layer meets values of another type than its weights, which the meta device lets pass."""


def place(error: Exception, besides: str = __file__) -> str:
    """Return the innermost `file:line` outside torch that an error went through, or "" if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(TORCH) and frame.filename != besides]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def check_shapes(module: nn.Module) -> None:
    """Refuse a base whose weights take their shapes from its first batch."""
    for path, tensor in module.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise SpaceError(
                f"The weights of a base must have shapes, but {path!r} of {type(module).__name__!r} is lazy: name its "
                "channels."
            )


def check_types(path: str, layer: nn.Module, value: object) -> None:
    """Raise `MixedTypes` for values that a layer would refuse; norms with float32 weights take shorter floats too."""
    weight = getattr(layer, "weight", None)
    if not (isinstance(layer, TYPED) and isinstance(weight, Tensor) and isinstance(value, Tensor)):
        return
    taken = SHORT_FLOATS if isinstance(layer, NORMS) and weight.dtype == torch.float32 else ()
    if value.dtype not in (weight.dtype, *taken):
        raise MixedTypes(f"the {type(layer).__name__} {path!r} has {weight.dtype} weights and gets {value.dtype}")


def explained(module: nn.Module, meta: nn.Module, image: Tensor, training: bool, error: Exception) -> SpaceError:
    """Return why the trace of a network ended in `error`.

    Args:
        module: the network.
        meta: the same on the meta device.
        image: of shape (1, C, H, W), on the meta device; in training two are tried, as norms need more than one value.
        training: in which mode.
        error: a `SpaceError` where there is no graph, or what its run on the meta device raised.
    """
    name = repr(type(module).__name__)
    if isinstance(error, MixedTypes):
        return SpaceError(
            f"The forward of {name} must give layers values of their weights' type, but {first_line(error)}: call the "
            "network's float(), and let its forward and its buffers keep to float32."
        )
    batch = torch.ones(1 + training, *image.shape[1:], dtype=image.dtype)
    if wrong := _raised(_with_values(copy.deepcopy(module)).train(training), batch):
        shape = f"{tuple(batch.shape)}{' in training' if training else ''}"
        return SpaceError(
            f"The forward of {name} must accept a batch of shape {shape}, but: {wrong}; mend it, or set "
            "base.input_size (data.channels and data.resolution in an experiment) or the base's own arguments."
        )
    if isinstance(error, SpaceError):
        return error
    reason = _raised(copy.deepcopy(meta).train(training), image) or first_line(error)
    return SpaceError(
        f"The forward of {name} must run on torch's meta device, where tensors have no values, but: {reason}; take out "
        "what depends on values, and register tensors as buffers."
    )


def _raised(module: nn.Module, batch: Tensor) -> str:
    """Return what calling a module raises, with the layer and the line where it does, or "" if it runs."""
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), batch.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(batch.to(device))
    except Exception as error:  # whatever the user's forward raises
        return raised(module, error)
    return ""


def raised(module: nn.Module, error: Exception) -> str:
    """Return what calling a module raised, with the layer and the line where it did."""
    at = ", ".join(filter(None, [_innermost(module, error), place(error)]))
    return f"{first_line(error)}{f' ({at})' if at else ''}"


def _with_values(module: nn.Module) -> nn.Module:
    """Return a module on the meta device with zeros on the CPU, others as they are."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        module.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.zero_()
    return module


def _innermost(root: nn.Module, error: Exception) -> str:
    """Return the class and path of the innermost module in which an error was raised, or "" for the root itself."""
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = {id(module): path for path, module in root.named_modules()}
    found = next((caller for caller in reversed(callers) if paths.get(id(caller))), None)
    return "" if found is None else f"in the {type(found).__name__} {paths[id(found)]!r}"
