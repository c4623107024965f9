"""Layers of torch.nn as constructor expressions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.expression import Argument, Call, Expression, Items, Literal, Name, literal

__all__ = ["constant", "empty", "is_idle", "layer", "torch_class"]

LARGEST_CONSTANT = 64
# What a subclass may override and still compute what its torch.nn parent does.
HARMLESS = {"extra_repr", "reset_parameters"}
NOT_SHOWN = {"device", "dtype"}


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the torch.nn class that computes what `module` does, or None if its own code has to be written out.

    It is the module's class or the nearest torch.nn parent of which the subclass overrides nothing that computes.
    """
    own: set[str] = {"forward"} & vars(module).keys()  # an object's own
    for cls in type(module).__mro__:
        if cls is nn.Module:
            return None
        if cls.__module__.startswith("torch.nn.modules."):
            overridden = {name for name in own - HARMLESS if hasattr(cls, name) and not name.startswith("__")}
            holder = issubclass(cls, nn.Sequential) and (module._parameters or module._buffers)
            return None if overridden or "__call__" in own or holder else cls
        own |= set(vars(cls))
    return None


def is_idle(module: nn.Module) -> bool:
    """Return whether a module hands over what it gets in both modes: an identity, or a sequence of nothing else."""
    cls = torch_class(module)
    return cls is nn.Identity or (cls is nn.Sequential and all(map(is_idle, module.children())))


def layer(module: nn.Module, cls: type[nn.Module], path: str) -> Call:
    """Return the call of `cls`, a torch.nn layer, that rebuilds `module`.

    Raises:
        ExportError: the arguments cannot be read back from the module.
    """
    arguments = list(_arguments(module, cls))
    if not _rebuilds(module, cls, {name: value for name, value, _ in arguments}):
        raise ExportError(
            f"A layer must be what its constructor makes of its attributes, but {path!r} is no plain "
            f"nn.{cls.__name__}: undo what was changed since, as by a parametrization, or take a layer that keeps its "
            "constructor's arguments."
        )
    return Call(
        f"nn.{cls.__name__}",
        tuple(
            Argument(name, Literal(value), None if required else Literal(default), required)
            for name, value, default in arguments
            for required in [default is inspect.Parameter.empty]
        ),
    )


def empty(tensor: torch.Tensor) -> Call:
    """Return the call of torch.zeros that makes room for a value of the weights file."""
    sizes = tuple(Argument("size", Literal(size), positional=True) for size in tensor.shape)
    dtype = Argument("dtype", Literal(tensor.dtype), Literal(torch.float32))
    return Call("torch.zeros", (*(sizes or (Argument("size", Literal(()), positional=True),)), dtype))


def constant(tensor: torch.Tensor, path: str) -> Call:
    """Return the call of torch.tensor that holds the values of a tensor outside the weights file.

    Raises:
        ExportError: more than 64 values.
    """
    if tensor.numel() > LARGEST_CONSTANT:
        raise ExportError(
            f"A tensor outside the state dict must have at most {LARGEST_CONSTANT} values to be written as source, but "
            f"{path!r} has {tensor.numel()}: register it as a persistent buffer."
        )
    dtype = Argument("dtype", Literal(tensor.dtype), Literal(torch.get_default_dtype()))
    return Call("torch.tensor", (Argument("data", _display(tensor.tolist()), positional=True), dtype))


def _display(value: Any) -> Expression:
    return Items(tuple(map(_display, value))) if isinstance(value, list) else Name(literal(value))


def _arguments(module: nn.Module, cls: type[nn.Module]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and default of each constructor argument that the module keeps as an attribute."""
    for name, param in _signature(cls).items():
        value = getattr(module, name, param.default)
        variadic = param.kind in (param.VAR_POSITIONAL, param.VAR_KEYWORD)
        if variadic or name in NOT_SHOWN or name.startswith("_") or value is param.empty:
            continue
        if name == "bias":
            value = _has_bias(module, value, param.default)
        elif isinstance(module, nn.modules.conv._ConvNd) and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        yield name, value, param.default


def _signature(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor; recurrent layers hand theirs on to a common one, unnamed."""
    if not issubclass(cls, nn.RNNBase):
        return dict(inspect.signature(cls).parameters)
    others = {"mode"} if cls is nn.LSTM else {"mode", "proj_size"}
    found = {name: param for name, param in inspect.signature(nn.RNNBase).parameters.items() if name not in others}
    if cls is nn.RNN:
        found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    return found


def _has_bias(module: nn.Module, bias: object, default: object) -> object:
    """Return the argument `bias`; a norm without a weight has no bias either and needs no second argument to say so."""
    return default if getattr(module, "weight", True) is None else isinstance(bias, torch.Tensor) or bias is True


def _rebuilds(module: nn.Module, cls: type[nn.Module], values: dict[str, Any]) -> bool:
    """Whether the constructor makes a layer with the summary and the state of `module`."""
    try:
        with torch.device("meta"):
            rebuilt = cls(**values)
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(cls.extra_repr(rebuilt) == cls.extra_repr(module)) and _shapes(rebuilt) == _shapes(module)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
