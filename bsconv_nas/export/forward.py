"""The `forward` of a module as readable statements, traced by torch.fx with the module's children as leaves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.expression import (
    Argument,
    Call,
    Expression,
    Items,
    Literal,
    Name,
    flat,
    is_name,
    literal,
    render,
)
from bsconv_nas.export.layers import is_idle, torch_class
from bsconv_nas.export.trace import trace
from bsconv_nas.export.variables import INFIX, is_inlined, is_size, operator_name, variables

__all__ = ["Forward", "access", "forward"]

PREFIX = {"neg": "-", "pos": "+", "invert": "~"}
NAMESPACES: dict[str, ModuleType] = {
    "torch": torch,
    "F": F,
    "math": math,
    "torch.fft": torch.fft,
    "torch.linalg": torch.linalg,
}
INDENT = 2  # [levels] of the statements of a method
_STATE = (nn.Module.named_parameters, nn.Module.named_buffers, nn.Module.named_modules)


@dataclass(frozen=True, slots=True)
class Forward:
    """What `forward` takes and does: `lines` start at the margin; `constants` are the plain tensors that it reads.

    `reached` are the dotted paths of what it reads inside its children. `evaluation_only` says that the original does
    something else in training mode that no argument expresses.
    """

    params: tuple[str, ...]
    lines: tuple[str, ...]
    constants: tuple[str, ...]
    reached: tuple[str, ...]
    evaluation_only: bool


def forward(module: nn.Module, path: str) -> Forward:
    """Return the statements that compute what `module` computes in evaluation mode, without calls that do nothing.

    An argument that is False in evaluation and True in training becomes `self.training`, so that functional dropout
    keeps its meaning. Constants that the tracer finds are set as attributes of `module`: hand over a copy.

    Raises:
        ExportError: control flow on values, or a call to something outside torch.
    """
    graph, training = trace(module, path)
    for traced in filter(None, (graph, training)):
        _skip_idle(traced, module)
    writer = _Writer(module, path, graph, training or graph)
    return writer.write(evaluation_only=training is None)


def _skip_idle(graph: fx.Graph, module: nn.Module) -> None:
    """Take out the calls of children that hand over what they get."""
    for node in list(graph.nodes):
        if node.op == "call_module" and is_idle(module.get_submodule(str(node.target))):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def access(module: nn.Module, target: str) -> str:
    """Return the code that reads the attribute `target`, a dotted path, of `self`.

    >>> access(nn.ModuleDict({"stem": nn.Sequential(nn.ReLU())}), "stem.0")
    'self["stem"][0]'
    """
    code, owner = "self", module
    for part in target.split("."):
        kind = torch_class(owner)
        if kind in (nn.Sequential, nn.ModuleList, nn.ParameterList) and part.isdigit():
            code += f"[{part}]"
        elif kind is nn.ModuleDict:
            code += f"[{literal(part)}]"
        else:
            code = f"{code}.{part}" if is_name(part) else f"getattr({code}, {literal(part)})"
        owner = getattr(owner, part)
    return code


class _Writer:
    """Writes the statements of one graph, most often one a node."""

    def __init__(self, module: nn.Module, path: str, graph: fx.Graph, training: fx.Graph) -> None:
        self.module, self.path = module, path
        self.nodes = list(graph.nodes)
        self.training = dict(zip(graph.nodes, training.nodes, strict=True))
        self.variables = variables(self.nodes)

    def write(self, evaluation_only: bool) -> Forward:
        params = tuple(self.variables[node] for node in self.nodes if node.op == "placeholder")
        lines = [line for node in self.nodes for line in self._statement(node)]
        read = {str(node.target) for node in self.nodes if node.op in ("get_attr", "call_module")}
        held = {name for named in _STATE for name, _ in named(self.module)}
        reached = tuple(sorted(target for target in read if "." in target))
        return Forward(params, tuple(lines), tuple(sorted(read - held)), reached, evaluation_only)

    def _statement(self, node: fx.Node) -> Iterator[str]:
        if node.op == "output":
            yield from self._return(node.args[0])
        elif node.op != "placeholder" and not is_inlined(node) and not self._is_returned(node):
            prefix = f"{self.variables[node]} = " if node.users else ""
            yield from _lines(self._expression(node), prefix)

    def _return(self, value: Any) -> list[str]:
        returned = isinstance(value, fx.Node) and self._is_returned(value)
        return _lines(self._expression(value) if returned else self._value(value), "return ")

    def _is_returned(self, node: fx.Node) -> bool:
        """Whether the node is the last one and all that it does is to be returned: its expression follows `return`."""
        call = node.op in ("call_module", "call_function", "call_method")
        return call and self.nodes[-1].args[0] is node and self.nodes[-2] is node and len(node.users) == 1

    def _expression(self, node: fx.Node) -> Expression:
        args, kwargs = node.args, node.kwargs
        other = self.training[node]
        values = [self._value(a, b) for a, b in zip(args, other.args, strict=True)]
        named = {key: self._value(value, other.kwargs[key]) for key, value in kwargs.items()}
        if node.op == "get_attr":
            return Name(access(self.module, str(node.target)))
        if node.op == "call_module":
            return _call(access(self.module, str(node.target)), values, named)
        if is_size(node):
            return Name(f"{flat(values[0])}.shape")
        if node.op == "call_method":
            return _call(f"{flat(values[0])}.{node.target}", values[1:], named)
        return self._function(node, values, named)

    def _function(self, node: fx.Node, values: list[Expression], named: dict[str, Expression]) -> Expression:
        name, texts = operator_name(node), [flat(value) for value in values]
        if node.target is getattr:
            return Name(f"{texts[0]}.{node.args[1]}")
        if name == "getitem":
            return Name(f"{texts[0]}[{self._index(node.args[1])}]")
        if name in INFIX:
            return Name(f"{texts[0]} {INFIX[name]} {texts[1]}")
        if name in PREFIX:
            return Name(f"{PREFIX[name]}{texts[0]}")
        function = cast("Callable[..., Any]", node.target)
        defaults = _defaults(function)
        kept = {key: value for key, value in named.items() if value != Literal(defaults.get(key, ...))}
        return _call(self._function_name(function), values, kept)

    def _function_name(self, function: Callable[..., Any]) -> str:
        name = getattr(function, "__name__", repr(function))
        for prefix, namespace in NAMESPACES.items():
            if getattr(namespace, name, None) is function:
                return f"{prefix}.{name}"
        raise ExportError(
            f"A forward must call nothing outside torch to become source, but that of {self.path or 'the network'!r} "
            f"({type(self.module).__name__}) calls {getattr(function, '__module__', '?')}.{name}: use torch operations."
        )

    def _index(self, index: Any) -> str:
        if isinstance(index, tuple):
            return ", ".join(map(self._index, index)) + "," * (len(index) == 1)
        if isinstance(index, slice):
            start, stop = ("" if bound is None else flat(self._value(bound)) for bound in (index.start, index.stop))
            return f"{start}:{stop}" + ("" if index.step is None else f":{flat(self._value(index.step))}")
        return "..." if index is Ellipsis else flat(self._value(index))

    def _value(self, value: Any, training: Any = None) -> Expression:
        """Return the expression of an argument, whose value in the training trace is `training`."""
        if isinstance(value, fx.Node):
            return self._expression(value) if is_inlined(value) else Name(self.variables[value])
        if value is False and training is True:
            return Name("self.training")
        if isinstance(value, list | tuple):
            others = training if isinstance(training, list | tuple) else [None] * len(value)
            return Items(tuple(map(self._value, value, others)), "[]" if isinstance(value, list) else "()")
        if isinstance(value, dict):
            return Items(tuple(Name(f"{literal(k)}: {flat(self._value(v))}") for k, v in value.items()), "{}")
        return Name("...") if value is Ellipsis else Literal(value)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a Python function of torch; F.max_pool2d and its like keep theirs in F._max_pool2d."""
    function = getattr(F, f"_{getattr(function, '__name__', '')}", function)
    if not inspect.isfunction(function):
        return {}
    return {name: param.default for name, param in inspect.signature(function).parameters.items()}


def _call(callee: str, values: Sequence[Expression], named: dict[str, Expression]) -> Call:
    positional = tuple(Argument("", value, positional=True) for value in values)
    return Call(callee, positional + tuple(Argument(key, value) for key, value in named.items()))


def _lines(expression: Expression, prefix: str) -> list[str]:
    """Return the statement's lines, broken as they stand in a method."""
    return [line[4 * INDENT :] for line in render(expression, INDENT, prefix)]
