"""From a module to its torch.fx graph: what is traced into, and what is kept whole.

Kept whole are torch's own layers and what derives from them, modules that do something else in training than in
evaluation, and what the user declares. All else is looked into.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bsconv_nas.space.trace_rules import NORMS, PER_CHANNEL_MODULES
from bsconv_nas.space.trace_seed import seeded
from bsconv_nas.space.trace_words import Line, Place, Untraceable, is_foreign, running_line, running_place

__all__ = ["ForwardTracer", "acts_as", "frozen", "in_mode", "reads_training", "symbolic_graph"]

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
NORM_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
TYPE_QUESTIONS = ("isinstance(", "is_tensor(", "torch.is_tensor(")
REGISTRIES = vars(nn.Module()).keys()
Calls = list[tuple[Any, ...]]


class ForwardTracer(fx.Tracer):
    """Traces the forward that a module has, also where it chose another of its methods.

    `asked` notes of which values lines have asked for the type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[fx.Node, Line]] = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a module's forward."""
        if chosen := vars(root).get("forward"):
            self.traced_func_name = chosen.__name__
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of a node."""
        return _Standin(node, self)


class _Standin(fx.Proxy):
    """Stands for a value while tracing, and passes for a tensor where a forward asks for its type."""

    tracer: ForwardTracer

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        code = sys._getframe(1).f_code
        if is_foreign(code.co_filename) and code.co_name != "is_tensor":
            return type(self)
        line = running_line()
        if line is None or not line.part.startswith(TYPE_QUESTIONS):  # torch's own functions ask too
            return type(self)
        self.tracer.asked.append((self.node, line))
        return Tensor


class _Tracer(ForwardTracer):
    """Traces one network; `failed` is the innermost module in which that failed."""

    def __init__(self, leaves: Sequence[str] = ()) -> None:
        super().__init__()
        self._leaves = leaves
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        declared = any(fnmatch.fnmatchcase(module_qualified_name, pattern) for pattern in self._leaves)
        return declared or super().is_leaf_module(m, module_qualified_name) or _stays_whole(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


class Traced(NamedTuple):
    """What a network computes.

    `uses` tells by path how modules are used but by calls, `asked` of which values lines have asked for the type, and
    `places` where each operation stands in the code.
    """

    graph: fx.Graph
    uses: dict[str, str]
    asked: list[tuple[fx.Node, Line]]
    places: dict[fx.Node, Place]


class _Watcher(_Tracer):
    """Traces one network as it is called with one batch.

    `uses` tells of modules what is done but to call them so.
    """

    def __init__(self, root: nn.Module, leaves: Sequence[str]) -> None:
        super().__init__(leaves)
        self.uses: dict[str, str] = {}
        self.places: dict[fx.Node, Place] = {}
        self._paths = {id(module): path for path, module in root.named_modules() if path}
        self._called: list[int] = []
        for path, module in root.named_modules():
            for name, held in _held_aside(module):
                self._note(
                    held, f"it is also held in {'.'.join(filter(None, (path, name)))}, where no other can stand in"
                )

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs:
            self._note(m, "it is called with more than one unnamed argument")
        self._called.append(id(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._called.pop()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of a node, and note where that was asked for."""
        if place := running_place():
            self.places[node] = place
        return super().proxy(node)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with self._watched():
            return super().trace(root, concrete_args)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        """Return the forward as called with a batch alone, so that all else has its default, and what it takes."""
        names = [name for name in inspect.signature(root_fn).parameters][1:]
        image = self.create_proxy("placeholder", names[0] if names else "x", (), {})
        return (lambda root, batch: root_fn(root, batch)), [self.root, image]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Note for a while what code outside torch and this room reads of modules that are not running."""
        plain = nn.Module.__getattribute__

        def noted(module: nn.Module, name: str) -> Any:
            by_user = not is_foreign(sys._getframe(1).f_code.co_filename)
            if by_user and id(module) not in self._called and not name.startswith("__") and name != "training":
                self._note(module, f"its {name} is read by the forward")
            return plain(module, name)

        nn.Module.__getattribute__ = noted  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            del nn.Module.__getattribute__

    def _note(self, module: nn.Module, use: str) -> None:
        if id(module) in self._paths:
            self.uses.setdefault(self._paths[id(module)], use)


def _held_aside(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a module keeps in plain lists, tuples or tables beside its children, by the attribute."""
    for name, value in vars(module).items():
        if name not in REGISTRIES:
            yield from ((name, held) for held in pytree.tree_leaves(value) if isinstance(held, nn.Module))


def symbolic_graph(module: nn.Module, leaves: Sequence[str] = (), training: bool = False) -> Traced:
    """Return what `module` computes in evaluation, or in training.

    The module is in evaluation mode.

    Args:
        module: the network.
        leaves: patterns of the paths of modules that are kept whole.
        training: which mode its forward reads.

    Raises:
        SpaceError: its forward cannot be traced.
    """
    try:
        return _traced(_Watcher(module, leaves), module, training)
    except Untraceable as refused:
        twin = _Watcher(module, leaves)
        twin.proxy_buffer_attributes = True  # buffers take sizes of the batch then, but no questions
        try:
            return _traced(twin, module, training)
        except Untraceable:
            raise refused from None


def _traced(tracer: _Watcher, module: nn.Module, training: bool) -> Traced:
    try:
        with in_mode(module, training):
            return Traced(tracer.trace(module), tracer.uses, tracer.asked, tracer.places)
    except Exception as error:  # whatever the user's forward raises under symbolic tracing
        mode, kind = " in training" if training else "", type(module.get_submodule(tracer.failed)).__name__
        refused = Untraceable(type(module).__name__, mode, tracer.failed, kind, error)
        refused.asked = tracer.asked
        raise refused from error


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Let a module and all inside read one mode for a while."""
    before = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in before:
            m.training = training
        yield
    finally:
        for m, mode in before:
            m.training = mode


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient for a while: torch's counter takes no views of those that do."""
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad = True


def _stays_whole(module: nn.Module) -> bool:
    """Whether a module derives from a layer of torch, or computes something else in training than in evaluation."""
    if _torch_layer(type(module)) is not None:
        return True
    return reads_training(module) and not _is_same_in_training(module)


def _is_same_in_training(module: nn.Module) -> bool:
    """Whether a module makes the same calls in both modes, as one that passes its mode on to a dropout does.

    One that draws a number by which it leaves something out does not, whatever it drew this time.
    """
    calls = _calls(module)
    if calls is None:
        return False
    with seeded(0) as draws:
        return calls == _calls(module, training=True) and not draws.any


def reads_training(module: nn.Module) -> bool:
    """Return whether the forward of a module asks for a mode; its code is asked, as not all has a text."""
    return "training" in _names(getattr(module.forward, "__code__", None))


def _names(code: CodeType | None) -> set[str]:
    """Return the globals and attributes that a function reads, also inside functions of its own."""
    if code is None:
        return set()
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*inner)


def _torch_layer(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the layer of torch that a class is or derives from; a container is none."""
    bases = (c for c in kind.__mro__ if c.__module__.startswith("torch.nn.modules.") and c not in CONTAINERS)
    return next(bases, None)


def acts_as(module: nn.Module) -> type[nn.Module]:
    """Return the layer of torch that a module computes, or else its own class.

    A class that derives from a layer computes that layer if its forward makes the same calls. A norm may also drop and
    activate what it has normalised, channel by channel.
    """
    own, base = type(module), _torch_layer(type(module))
    if base is None or base is own:
        return own
    if base in NORMS and _only_follows(module):
        return base
    twin = base.__new__(base)
    twin.__dict__.update(module.__dict__)
    calls = _calls(module)
    return base if calls is not None and calls == _calls(twin) else own


def _only_follows(norm: nn.Module) -> bool:
    """Whether a norm has no state but a norm's own, and nothing inside but what keeps the channels apart."""
    state = {name for name, _ in (*norm.named_parameters(), *norm.named_buffers())}
    return state <= NORM_STATE and all(type(child) in PER_CHANNEL_MODULES for child in norm.children())


def _calls(module: nn.Module, training: bool = False) -> Calls | None:
    """Return what a module calls on what, without flags and the names of what enters, or None if it has no trace.

    A copy is traced: a forward may leave traced tensors in a cache, where the trace of the network would find them.
    """
    try:
        module = copy.deepcopy(module)
        with in_mode(module, training):
            graph = _Tracer().trace(module)
    except Exception:  # whatever the user's forward raises under symbolic tracing
        return None
    order = {n: index for index, n in enumerate(graph.nodes)}

    def plain(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return "node", order[argument]
        return None if isinstance(argument, bool) else argument

    return [
        (n.op, n.target if n.op != "placeholder" else "", fx.node.map_aggregate((n.args, n.kwargs), plain))
        for n in graph.nodes
    ]
