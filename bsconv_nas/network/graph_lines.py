"""A network's graph as text: a line per operation, in order, with its constants and hyperparameters.

Nothing in it depends on where the code lies, on the names of its variables, or on the values of its weights.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.answers import is_statistic
from bsconv_nas.space.trace_symbolic import symbolic_graph

__all__ = ["graph_lines", "state_lines"]

DIGITS = 8  # of a constant
SHOWN = 4  # values of a constant tensor; more are told apart by their digest
WORD = re.compile(r"[\w .:-]{0,40}")  # text that names a choice, such as a padding mode, and no place on a machine


def graph_lines(module: nn.Module, leaves: Sequence[str] = (), training: bool = False) -> list[str]:
    """Return what a network computes in evaluation or in training, one line per operation: path, operation, inputs.

    `%3` is the result of line 3, counted from 0. Modules whose path matches one of `leaves` are kept whole.

    Raises:
        SpaceError: its forward cannot be traced in evaluation; in training there are no lines then.

    >>> graph_lines(nn.Sequential(nn.Flatten(), nn.ReLU()))[1:]
    ['0: Flatten(start_dim=1, end_dim=-1) of %0', '1: ReLU(inplace=False) of %1', 'output(%2)']
    """
    copied = copy.deepcopy(module).eval()
    try:
        graph = symbolic_graph(copied, leaves, training).graph
    except SpaceError:
        if training:
            return []
        raise
    order = {node: index for index, node in enumerate(graph.nodes)}
    return [_line(copied, node, order) for node in graph.nodes]


def state_lines(module: nn.Module) -> dict[str, str]:
    """Return what a network holds: each parameter and buffer with its shape, constants with their values.

    >>> state_lines(nn.PReLU())
    {'weight': 'parameter (1,)'}
    """
    parameters = {name: _parameter(weight) for name, weight in module.named_parameters(remove_duplicate=False)}
    buffers = {
        name: f"buffer {_shape(b)}" if is_statistic(name) else f"buffer {_tensor(b)}"
        for name, b in module.named_buffers(remove_duplicate=False)
    }
    return parameters | buffers


def _line(root: nn.Module, node: fx.Node, order: Mapping[fx.Node, int]) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return _attribute(root, str(node.target))
    inputs = [_text(value, order) for value in node.args]
    inputs += [f"{name}={_text(value, order)}" for name, value in sorted(node.kwargs.items())]
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return f"{node.target}: {_whole(module)} of {', '.join(inputs)}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", type(node.target).__name__)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return f"{f'{path}: ' if path else ''}{name}({', '.join(inputs)})"


def _attribute(root: nn.Module, path: str) -> str:
    owner, _, name = path.rpartition(".")
    value = getattr(root.get_submodule(owner), name)
    if isinstance(value, nn.Parameter):
        return f"{path}: {_parameter(value)}"
    if is_statistic(path):
        return f"{path}: buffer {_shape(value)}"
    shown = "constant" if name.startswith("_tensor_constant") else f"{path}: constant"
    return f"{shown} {_text(value, {})}"


def _whole(module: nn.Module) -> str:
    """Return a module by its class and hyperparameters, with those of all inside it."""
    inside = [f"{name}: {_whole(child)}" for name, child in module.named_children()]
    return f"{type(module).__name__}({', '.join([*_settings(module), *inside])})"


def _settings(module: nn.Module) -> list[str]:
    """Return the plain public attributes of a module, and its own tensors that are neither weights nor buffers."""
    found = []
    for name, value in vars(module).items():
        public = not name.startswith("_") and name != "training"
        if public and (_is_plain(value) or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))):
            found.append(f"{name}={_text(value, {})}")
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return WORD.fullmatch(value) is not None if isinstance(value, str) else isinstance(value, int | float | None)


def _text(value: Any, order: Mapping[fx.Node, int]) -> str:
    """Return a value as it shall stand in a line, the same in every version and process."""
    if isinstance(value, fx.Node):
        return f"%{order[value]}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_text(part, order) for part in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(part, order)}' for key, part in value.items())}}}"
    if isinstance(value, slice):
        return ":".join(_text(part, order) for part in (value.start, value.stop, value.step))
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    is_named = value is None or isinstance(value, int | str | torch.dtype | torch.device | type(...))
    return str(value) if is_named else getattr(value, "__name__", type(value).__name__)


def _tensor(value: Tensor) -> str:
    """Return a constant tensor by its shape and its values, or their digest."""
    if value.is_meta or not value.numel():
        return _shape(value)
    values = [f"{number:.{DIGITS - 2}g}" for number in value.detach().to("cpu", torch.float64).flatten().tolist()]
    digest = hashlib.sha256(" ".join(values).encode()).hexdigest()[:8]
    shown = ", ".join(values) if len(values) <= SHOWN else f"{', '.join(values[:SHOWN])}, ... {digest}"
    return f"{_shape(value)} [{shown}]"


def _parameter(weight: Tensor) -> str:
    return f"parameter {_shape(weight)}" + ("" if weight.requires_grad else ", frozen")


def _shape(value: Tensor) -> str:
    kind = "" if value.dtype == torch.float32 else f"{str(value.dtype).removeprefix('torch.')} "
    return f"{kind}{tuple(value.shape)}"
