"""Activations beside depthwise convolutions as modules of their own.

A forward may apply an activation as a function, `F.relu(self.norm(self.conv(x)))`, or one module at several places. An
option that replaces a separable pair has to take away what stands between its two convolutions, and only a module of
its own can be taken away.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import keyword
import linecache
from collections import Counter
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from torch import fx, nn

from bsconv_nas.space.trace_rules import ACTIVATIONS
from bsconv_nas.space.trace_symbolic import in_mode

__all__ = ["with_own_activations"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MODULES = {name: kind for kind, name in ACTIVATIONS.items() if isinstance(kind, type)}


def with_own_activations(root: nn.Module) -> nn.Module:
    """Return `root` with a module for every activation that a module beside a depthwise convolution applies.

    What is computed and the keys of the state dict stay. `root` is changed in place; a module whose forward is
    rewritten keeps its attributes and methods, in a class that derives from its own. A forward stays as it is if it
    cannot be traced on its own, computes something else in training, makes a tensor of its own or takes more than one
    tensor, if the module has hooks, which may do anything, and if it calls a child that is named like a keyword of
    Python, for which torch.fx writes no code.

    >>> import torch.nn.functional as F
    >>> class Pair(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)
    ...     def forward(self, x):
    ...         return self.pointwise(F.relu(self.depthwise(x)))
    >>> [name for name, _ in with_own_activations(Pair()).named_children()]
    ['depthwise', 'pointwise', 'relu']
    """
    owners = [module for module in root.modules() if _is_beside_depthwise(module)]
    for owner in reversed(owners):  # the inner ones first
        _unshare(root, owner)
        _rewrite(owner)
    return root


def _is_beside_depthwise(module: nn.Module) -> bool:
    """Whether a module, or a container that it holds, holds a depthwise convolution."""
    children = [*module.children()]
    inside = any(_is_depthwise(child) for child in children)
    return inside or any(_is_beside_depthwise(child) for child in children if isinstance(child, CONTAINERS))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _places(root: nn.Module, module: nn.Module | None) -> list[tuple[nn.Module, str]]:
    """Return all the modules that hold `module`, with its name in each."""
    return [(m, name) for m in root.modules() for name, child in m._modules.items() if child is module]


def _unshare(root: nn.Module, owner: nn.Module) -> None:
    """Give a module its own activations where others hold them too."""
    for name, child in owner._modules.items():
        if type(child) in ACTIVATIONS and len(_places(root, child)) > 1:
            setattr(owner, name, copy.deepcopy(child))


def _rewrite(owner: nn.Module) -> None:
    """Let a module call each activation as a module, by a forward of its class, unless that is so or cannot be."""
    graph = None if isinstance(owner, CONTAINERS) else _graph(owner)
    calls = [] if graph is None else [*_calls(owner, graph)]
    if graph is None or not calls:
        return
    for n, activation in calls:
        name = _free_name(owner, activation)
        owner.add_module(name, activation.train(owner.training))
        with graph.inserting_before(n):
            n.replace_all_uses_with(graph.call_module(name, (n.all_input_nodes[0],)))
        graph.erase_node(n)
    code = graph.python_code("self")
    read = tuple((name, value) for name, value in code.globals.items() if name in code.src)
    owner.__class__ = _with_forward(type(owner), code.src, read)  # type: ignore[arg-type]  # a class has a hash


@cache
def _with_forward(kind: type[nn.Module], source: str, read: tuple[tuple[str, Any], ...]) -> type[nn.Module]:
    """Return a class like `kind`, with its name, whose forward has a source that reads some globals."""
    scope = dict(read)
    file = f"<forward of {kind.__qualname__}, {hash(source):x}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for tracebacks and debuggers
    exec(compile(source, file, "exec"), scope)  # what torch.fx writes of a graph
    modules = tuple((name, value.__name__) for name, value in read if isinstance(value, ModuleType))
    others = tuple((name, value) for name, value in read if not isinstance(value, ModuleType))

    def reduced(module: nn.Module) -> tuple[Any, ...]:
        return _restored, (kind, source, modules, others), vars(module)

    own = {"forward": scope["forward"], "__reduce__": reduced, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), {**own, "__doc__": kind.__doc__})


def _restored(kind: type[nn.Module], source: str, modules: tuple[Any, ...], others: tuple[Any, ...]) -> nn.Module:
    """Return a module of such a class without its state: copies and files of modules begin with it."""
    imported = tuple((name, importlib.import_module(path)) for name, path in modules)
    found = _with_forward(kind, source, (*imported, *others))  # type: ignore[arg-type]  # a class has a hash
    return found.__new__(found)


class _Tracer(fx.Tracer):
    """Traces one forward; whatever it calls stays whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _graph(owner: nn.Module) -> fx.Graph | None:
    """Return the graph of a module's own forward, or None where its trace may not be all that it computes."""
    hooks = any(found for name, found in vars(owner).items() if name.endswith("_hooks"))
    takes = inspect.signature(type(owner).forward).parameters
    if hooks or len(takes) != 2 or "forward" in vars(owner):
        return None
    graphs = []
    for training in (True, False):
        try:
            with in_mode(owner, training):
                graphs.append(_Tracer().trace(copy.deepcopy(owner)))  # a forward may keep what it computes
        except Exception:  # whatever the user's forward raises under symbolic tracing
            return None
    same = len({graph.python_code("self").src for graph in graphs}) == 1
    computes = any(n.op == "get_attr" and "_tensor_constant" in str(n.target) for n in graphs[0].nodes)
    unnamed = any(keyword.iskeyword(part) for n in graphs[0].nodes for part in str(n.target).split("."))
    return graphs[0] if same and not computes and not unnamed else None


def _calls(owner: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Yield the calls of activations that need a module, with that module."""
    seen: Counter[str] = Counter()
    for n in graph.nodes:
        if n.op == "call_module":
            child = owner.get_submodule(str(n.target))
            seen[str(n.target)] += 1
            if type(child) in ACTIVATIONS and seen[str(n.target)] > 1:
                yield n, copy.deepcopy(child)
        elif n.op in ("call_function", "call_method") and n.target in ACTIVATIONS:
            activation = _module(n)
            if activation is not None:
                yield n, activation


def _module(n: fx.Node) -> nn.Module | None:
    """Return the module of a function's call with its settings, or None if there is no such module."""
    kind: Any = MODULES.get(ACTIVATIONS[n.target])
    names = [*inspect.signature(n.target).parameters] if inspect.isfunction(n.target) else ["input"]
    settings = {**dict(zip(names, n.args, strict=False)), **n.kwargs}
    settings.pop(names[0], None)
    if kind is None or len(n.args) > len(names) or len(n.all_input_nodes) != 1:
        return None
    known = inspect.signature(kind).parameters.keys() >= settings.keys()
    return kind(**settings) if known else None


def _free_name(module: nn.Module, activation: nn.Module) -> str:
    stem = ACTIVATIONS[type(activation)]
    names = (f"{stem}_{i}" if i else stem for i in itertools.count())
    return next(name for name in names if not hasattr(module, name))
