"""From a module to its graph: one trace with torch.fx on the meta device.

This file and its two neighbours `trace_rules` and `trace_blocks` are the only ones of the room that import torch.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.table import Block, Fixed, Graph, Group, Node
from bsconv_nas.space.trace_blocks import droppable_blocks, module_paths
from bsconv_nas.space.trace_rules import (
    ACTIVATIONS,
    FUNCTION_ACTIVATIONS,
    FUNCTION_RULES,
    MODULE_RULES,
    NORMS,
    Rule,
    Value,
    Variables,
    Visit,
    opaque,
)

__all__ = ["trace"]


class _Tracer(fx.Tracer):
    """Keeps modules that read `self.training` whole: their graph would freeze the mode."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _reads_training(type(m))


def _reads_training(kind: type[nn.Module]) -> bool:
    try:
        return "self.training" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


class _Recorder(fx.Interpreter):
    """Runs the graph once on the meta device and applies a rule to every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.variables = Variables()
        self.layers: dict[str, tuple[int, int]] = {}
        self.values: dict[fx.Node, Value] = {}
        self.fields: dict[fx.Node, dict[str, Any]] = {}
        self.storages: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # a freed storage's address may come again

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op != "output":
            self._record(n, result, counter.get_total_flops() // 2)
        elif n.op == "output":
            self._output(n)
        else:
            for source in n.all_input_nodes:
                if source in self.values and not _asks_for_batch(n):
                    self.variables.fix(self.values[source].variable, f"its size is read by {n.name}")
        return result

    def _record(self, n: fx.Node, result: torch.Tensor, macs: int) -> None:
        visit = self._visit(n, tuple(result.shape[1:] if n.op != "get_attr" else result.shape), macs)
        variable, features = self._rule(n)(visit)
        storage = self.storages.setdefault(result.untyped_storage()._cdata, len(self.values))
        visit.fields["alias"] = storage if storage < len(self.values) else None
        self.fields[n] = visit.fields
        self.values[n] = Value(variable, features, len(self.values), visit.shape)
        self._kept.append(result)

    def _visit(self, n: fx.Node, shape: tuple[int, ...], macs: int) -> Visit:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        values = [self.values[source] for source in n.all_input_nodes if source in self.values]
        path = str(n.target) if n.op in ("call_module", "get_attr") else ""
        return Visit(self.variables, self.layers, n.name, path, n.target, module, n.args, values, shape, macs)

    def _rule(self, n: fx.Node) -> Rule:
        if n.op == "placeholder":
            return lambda visit: visit.fresh("the image's channels")
        if n.op == "get_attr":
            return self._parameter
        if n.op == "call_module":
            return MODULE_RULES.get(type(self.module.get_submodule(str(n.target))), opaque)
        return FUNCTION_RULES.get(n.target, opaque)

    def _parameter(self, visit: Visit) -> tuple[int, int]:
        owner, _, name = visit.path.rpartition(".")
        trained = name in dict(self.module.get_submodule(owner).named_parameters(recurse=False))
        visit.fields["params"] = math.prod(visit.shape) if trained else 0
        return visit.fresh(f"the bare parameter {visit.path}")

    def _output(self, n: fx.Node) -> None:
        for source in n.all_input_nodes:
            if source in self.values:
                self.variables.fix(self.values[source].variable, "the network's output")


def _asks_for_batch(n: fx.Node) -> bool:
    """Whether the node reads only the batch size, or a shape of which only that is read."""
    if n.target == "size" and n.args[1:] == (0,):
        return True
    is_shape = n.target == "size" or (n.target is getattr and n.args[1] == "shape")
    readers = [user.target is operator.getitem and user.args[1] == 0 for user in n.users]
    return (is_shape and all(readers)) or n.target is operator.getitem


def trace(module: nn.Module, input_size: tuple[int, int, int]) -> Graph:
    """Return the graph of `module` for images of `input_size` (C, H, W), in eval mode, batch 1.

    Raises:
        SpaceError: the module cannot be traced, or its forward fails at this size.

    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10)), (3, 8, 8))
    >>> [group.reason for group in graph.groups]
    ["the image's channels", '', "the network's output"]
    """
    if not isinstance(module, nn.Module):
        raise SpaceError(f"A base must be a torch.nn.Module, but got {type(module).__name__!r}: return the network.")
    meta = copy.deepcopy(module).to("meta").eval()
    recorder = _Recorder(fx.GraphModule(meta, _graph(meta)))
    size = f"(1, {', '.join(str(n) for n in input_size)})"
    try:
        with torch.no_grad():
            result = recorder.run(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise SpaceError(
            f"The forward of {type(module).__name__!r} must accept a batch of shape {size}, but: "
            f"{str(error).splitlines()[0].rstrip('.')}; set base.input_size, or the base's own arguments."
        ) from None
    if not isinstance(result, torch.Tensor) or result.dim() != 2:
        raise SpaceError(
            f"The forward of {type(module).__name__!r} must return logits of shape (N, classes) for a batch of shape "
            f"{size}, but returned {_shape_or_type(result)}: flatten and classify, or wrap the network."
        )
    return _assemble(meta, recorder, input_size, int(result.shape[1]))


def _shape_or_type(result: Any) -> str:
    return str(tuple(result.shape)) if isinstance(result, torch.Tensor) else type(result).__name__


def _graph(module: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(module)
    except Exception as error:  # whatever the user's forward raises under symbolic tracing
        raise SpaceError(
            f"The forward of {type(module).__name__!r} must be traceable by torch.fx, but: "
            f"{str(error).splitlines()[0].rstrip('.')}; {_place(error)}move such code into a module of its own."
        ) from error


def _place(error: Exception) -> str:
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__]
    return f"see {own[-1].filename}:{own[-1].lineno}; " if own else ""


def _assemble(module: nn.Module, recorder: _Recorder, input_size: tuple[int, int, int], classes: int) -> Graph:
    variables = recorder.variables
    roots = sorted({variables.root(value.variable) for value in recorder.values.values()})
    blocks = droppable_blocks(module, recorder.values, variables)
    nodes = tuple(_node(recorder, n, roots, blocks) for n in recorder.values)
    resolutions = _resolutions(module, recorder)
    groups = tuple(_group(nodes, variables, root, i, resolutions) for i, root in enumerate(roots))
    fixed = tuple(Fixed(f"width.{group.name}", group.reason) for group in groups if group.reason)
    return Graph(nodes, groups, tuple(blocks), fixed, input_size, classes)


def _node(recorder: _Recorder, n: fx.Node, roots: list[int], blocks: list[Block]) -> Node:
    value, fields = recorder.values[n], dict(recorder.fields[n])
    if "spec" in fields:
        fields["spec"] = dataclasses.replace(fields["spec"], activation=_activation_behind(recorder.module, n))
    paths = module_paths(n)
    return Node(
        name=n.name,
        op=_label(recorder.module, n),
        path=str(n.target) if n.op in ("call_module", "get_attr") else "",
        inputs=tuple(recorder.values[source].node for source in n.all_input_nodes if source in recorder.values),
        shape=value.shape,
        group=roots.index(recorder.variables.root(value.variable)),
        features=value.features,
        block=next((i for i, b in enumerate(blocks) if b.path in paths), None),
        **fields,
    )


def _label(root: nn.Module, n: fx.Node) -> str:
    if n.op == "call_module":
        return type(root.get_submodule(str(n.target))).__name__.lower()
    return n.op if n.op in ("placeholder", "get_attr") else getattr(n.target, "__name__", str(n.target))


def _activation_behind(root: nn.Module, n: fx.Node) -> str:
    """Return the activation that the host applies behind a convolution, through its norm; relu if there is none."""
    for user in list(n.users)[:1]:
        module = root.get_submodule(str(user.target)) if user.op == "call_module" else None
        kind = FUNCTION_ACTIVATIONS.get(user.target) if module is None else ACTIVATIONS.get(type(module))
        if kind is not None:
            return kind
        if isinstance(module, NORMS):
            return _activation_behind(root, user)
    return "relu"


def _resolutions(module: nn.Module, recorder: _Recorder) -> list[tuple[int, ...]]:
    """Return for each node the resolution at which the element of the sequential around it ends: its stage's."""
    sequentials = {path for path, m in module.named_modules() if path and isinstance(m, nn.Sequential)}
    homes, ends = [], {}
    for n, value in recorder.values.items():
        inside = next((path for path in module_paths(n) if path.rpartition(".")[0] in sequentials), n.name)
        homes.append(inside)
        ends[inside] = value.shape[1:]
    return [ends[home] for home in homes]


def _group(
    nodes: tuple[Node, ...], variables: Variables, root: int, index: int, resolutions: list[tuple[int, ...]]
) -> Group:
    """Name a group by the first layer that writes it; it lives in a block if all that touches it does."""
    touching = [i for i, node in enumerate(nodes) if node.group == index]
    writers = [i for i in touching if nodes[i].spec is not None or nodes[i].op == "linear"] or touching
    homes = {nodes[i].block for i in touching}
    return Group(
        name=nodes[writers[0]].path or nodes[writers[0]].name,
        channels=variables.channels[root],
        resolution=resolutions[writers[-1]],
        reason=variables.reason[root],
        block=homes.pop() if len(homes) == 1 else None,
    )
