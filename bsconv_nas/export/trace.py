"""The graph of a module's own forward, traced by torch.fx with the module's children as leaves."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn
from torch.fx.proxy import TraceError

from bsconv_nas.errors import ExportError
from bsconv_nas.space.trace_symbolic import ForwardTracer
from bsconv_nas.space.trace_words import last_line

__all__ = ["trace"]

# What running a user's forward on proxies raises where the code cannot be traced.
UNTRACEABLE = (TraceError, TypeError, ValueError, RuntimeError, AttributeError, LookupError, NameError, AssertionError)


class _Tracer(ForwardTracer):
    """Traces one module: children are leaves, required parameters become placeholders, others keep their defaults."""

    proxy_buffer_attributes = True

    def __init__(self, is_network: bool = False) -> None:
        super().__init__()
        self._is_network = is_network

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a value; what is handed to an inner module may be a list, as in a DenseNet."""
        is_tensor = node.op != "placeholder" or self._is_network
        return super().proxy(node) if is_tensor else fx.Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in _required(self.root))]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Walk through the answer of a child whose own forward says how many parts that has."""
        if obj.node.op == "call_module":
            answer = _Tracer().trace(self.root.get_submodule(str(obj.node.target))).output_node().args[0]
            if isinstance(answer, tuple | list):
                return (operator.getitem(obj, i) for i in range(len(answer)))
        return super().iter(obj)


def _required(module: nn.Module) -> list[str]:
    """Return the names of the parameters that every call of `module.forward` gives."""
    params = inspect.signature(module.forward).parameters.values()
    named = [param for param in params if param.default is param.empty]
    if any(param.kind is param.VAR_POSITIONAL for param in named):
        raise ExportError(
            f"A forward must name all that it takes to become source, but that of {type(module).__name__!r} takes "
            "*args: name its arguments."
        )
    return [param.name for param in named if param.kind is not param.VAR_KEYWORD]


def trace(module: nn.Module, path: str) -> tuple[fx.Graph, fx.Graph | None]:
    """Return the graph in evaluation mode, and its twin in training mode or None where that is another program.

    The twins differ in no more than arguments that are False in evaluation and True in training.

    Raises:
        ExportError: the forward cannot be traced, or gives a child more than its required arguments.
    """
    module.eval()  # what a module's own returns is not asked for
    graph = _graph(module, path)
    _check_calls(graph, module, path)
    module.train()
    try:
        training = _graph(module, path)
    except ExportError:
        return graph, None
    finally:
        module.eval()
    return graph, training if _alike(graph, training) else None


def _graph(module: nn.Module, path: str) -> fx.Graph:
    before, buffers = dict(vars(module)), dict(module._buffers)
    try:
        return _Tracer(is_network=not path).trace(module)
    except UNTRACEABLE as error:
        line = last_line(error)
        does = f"{line} {line.deed()[0]}" if line else "it needs what is known only when the network runs"
        raise ExportError(
            f"A forward must be traceable by torch.fx to become source, but that of {path or 'the network'!r} "
            f"({type(module).__name__}) is not, as {does}: take out what depends on its input's values or type."
        ) from error
    finally:  # a forward may keep what it computes, here of proxies
        vars(module).update(before)
        module._buffers.clear()
        module._buffers.update(buffers)


def _check_calls(graph: fx.Graph, module: nn.Module, path: str) -> None:
    """Refuse a child that is called with more than its required arguments: its own trace keeps their defaults."""
    for node in graph.nodes:
        child = module.get_submodule(node.target) if node.op == "call_module" else None
        if child is None or type(child).__module__.startswith("torch.nn."):
            continue
        given, named = len(node.args) + len(node.kwargs), _required(child)
        if given != len(named):
            raise ExportError(
                f"A child module must be called with its {len(named)} required arguments to become source, but "
                f"{f'{path}.{node.target}'.strip('.')!r} gets {given}: make the others constructor arguments."
            )


def _alike(graph: fx.Graph, training: fx.Graph) -> bool:
    """Whether two traces differ in no more than arguments that are False in the first and True in the second."""
    pairs = list(zip(graph.nodes, training.nodes, strict=False))
    return len(graph.nodes) == len(training.nodes) and all(_same_call(a, b) for a, b in pairs)


def _same_call(a: fx.Node, b: fx.Node) -> bool:
    constants = str(a.target).startswith("_tensor_constant") and str(b.target).startswith("_tensor_constant")
    return a.op == b.op and (a.target == b.target or constants) and _same((a.args, a.kwargs), (b.args, b.kwargs))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        return isinstance(a, fx.Node) and isinstance(b, fx.Node) and a.name == b.name
    if isinstance(a, slice) and isinstance(b, slice):
        return _same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return (a is False and b is True) or bool(a == b)
