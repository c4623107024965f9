"""From a module to its torch.fx graph: what is traced into, and what is kept whole.

Kept whole are torch's own layers and what derives from them, modules that do something else in training than in
evaluation, and what the user declares. All else is looked into.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.trace_rules import NORMS, PER_CHANNEL_MODULES

__all__ = ["acts_as", "reads_training", "symbolic_graph"]

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
NORM_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
TORCH = str(Path(torch.__file__).parent)
Calls = list[tuple[Any, ...]]


class _Tracer(fx.Tracer):
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


def symbolic_graph(module: nn.Module, leaves: Sequence[str] = (), training: bool = False) -> fx.Graph:
    """Return the graph of what `module` computes in evaluation, or in training; the module is in evaluation mode.

    Args:
        module: the network.
        leaves: patterns of the paths of modules that are kept whole.
        training: which mode its forward reads.

    Raises:
        SpaceError: its forward cannot be traced.
    """
    tracer = _Tracer(leaves)
    try:
        with _mode(module, training):
            return tracer.trace(module)
    except Exception as error:  # whatever the user's forward raises under symbolic tracing
        mode = " in training" if training else ""
        kind = type(module.get_submodule(tracer.failed)).__name__
        inside = f" in {tracer.failed!r} ({kind})" if tracer.failed else ""
        keep = f", or keep it whole by base.leaves = [{tracer.failed!r}]" if tracer.failed else ""
        raise SpaceError(
            f"The forward of {type(module).__name__!r} must be traceable by torch.fx{mode}, but{inside}: "
            f"{_first_line(error)}; {_place(error)}move such code into a module of its own{keep}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _place(error: Exception) -> str:
    """Return the innermost line outside torch that an error went through."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [frame for frame in frames if not frame.filename.startswith(TORCH) and frame.filename != __file__]
    return f"see {own[-1].filename}:{own[-1].lineno}; " if own else ""


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Let a module and all inside read a mode for a while."""
    before = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in before:
            m.training = training
        yield
    finally:
        for m, mode in before:
            m.training = mode


def _stays_whole(module: nn.Module) -> bool:
    """Whether a module derives from a layer of torch, or computes something else in training than in evaluation."""
    if _torch_layer(type(module)) is not None:
        return True
    return reads_training(type(module)) and not _is_same_in_training(module)


def _is_same_in_training(module: nn.Module) -> bool:
    """Whether a module makes the same calls in both modes, as one that passes its mode on to a dropout does."""
    calls = _calls(module)
    return calls is not None and calls == _calls(module, training=True)


def reads_training(kind: type[nn.Module]) -> bool:
    """Return whether the forward of a class asks for the mode."""
    try:
        return "self.training" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


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
    """Return what a module calls on what, without flags and the names of what enters, or None if it has no trace."""
    try:
        with _mode(module, training):
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
