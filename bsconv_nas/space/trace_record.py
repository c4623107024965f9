"""One run of a traced graph on the meta device: a rule for every node, and what each answers."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from bsconv_nas.space.graph import Fixed
from bsconv_nas.space.trace_failures import check_types, copied
from bsconv_nas.space.trace_rules import (
    ACTIVATIONS,
    FUNCTION_RULES,
    MODULE_RULES,
    NORMS,
    bare_parameter,
    fixed_parameter,
    opaque,
    same,
)
from bsconv_nas.space.trace_symbolic import acts_as
from bsconv_nas.space.trace_values import Rule, Value, Variables, Visit

__all__ = ["Recorder", "flop_counts", "label", "multiply_adds"]

# The multiply-adds of convolutions and linear layers, as torch calls them below its modules.
COUNTED = frozenset({torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm})
OWN = {"weight", "bias"}
CHANNELS = 1  # the axis
CONVOLUTIONS = (functional.conv2d, torch.conv2d)


class Recorder(fx.Interpreter):
    """Runs the graph once on the meta device and applies a rule to every node.

    `uses` tells of modules, by their paths, how the network uses them beside calling them on one tensor. With `other`,
    the recorder of another graph of `base`, a layer reads and writes the same channels in both.
    """

    def __init__(
        self, base: nn.Module, graph: fx.Graph, uses: Mapping[str, str], other: Recorder | None = None
    ) -> None:
        super().__init__(base, graph=graph)  # no GraphModule: its code has no names for children such as "class"
        self.uses = uses
        self.variables: Variables = other.variables if other else Variables()
        self.values: dict[fx.Node, Value] = {}
        self.fields: dict[fx.Node, dict[str, Any]] = {}
        self.fixed: list[Fixed] = []
        self.unread = {id(p): path for path, p in base.named_parameters()}
        self.read_in_training: set[int] = set()  # those of them that the other mode reads
        self.running: fx.Node | None = None
        self._owners = Counter(id(p) for m in base.modules() for p in m.parameters(recurse=False))
        self._read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
        self._tuples: dict[fx.Node, list[Value]] = {}
        self._owed: dict[fx.Node, tuple[int, int]] = {}  # MACs and parameters of what answers with several tensors
        self._storages: dict[int, int] = {}
        self._untouched = False  # whether the running node hands over its very input
        self._kept: list[torch.Tensor] = []  # a freed storage's address may come again

    def run_node(self, n: fx.Node) -> Any:
        """Return what a node computes, and record it."""
        self.running = n
        entered = [(id(self.env[source]), _version(self.env[source])) for source in n.all_input_nodes]
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self._untouched = entered == [(id(result), _version(result))]
        flops = counter.get_flop_counts().get("Global", {})
        if n.op == "output":
            self._fix(n, "the network's output")
        elif isinstance(result, torch.Tensor):
            self._record(n, result, self._macs(n, flops))
        elif _holds_tensor(result):
            self._fix(n, f"enters {label(self.module, n)}")
            self._tuples[n] = self._inputs(n)
            self._owe(n, self._macs(n, flops))
        elif not self._spares_channels(n):
            self._fix(n, f"its size is read by {n.name}")
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a layer computes from values of a type that it takes."""
        check_types(str(target), self.module.get_submodule(str(target)), next(iter((*args, *kwargs.values())), None))
        return super().call_module(target, args, kwargs)

    def fix_what_is_new(self, other: Recorder) -> None:
        """Fix what those weights meet that `other` has not come by: nothing there would resize them with it."""
        known = {n.target for n in other.values}
        for n, value in self.values.items():
            if n.op in ("call_module", "get_attr") and n.target not in known and self._weights(n):
                self._fix(n, f"is read by {n.target} in training alone")
                self.variables.fix(value.variable, f"is written by {n.target} in training alone")

    def _new_weights(self, n: fx.Node) -> int:
        """Return how many parameters a node reads that none before it has read."""
        return sum(p.numel() for p in self._weights(n) if self.unread.pop(id(p), None))

    def _weights(self, n: fx.Node) -> list[nn.Parameter]:
        """Return the parameters of the module that a node calls, or the one that it reads."""
        if n.op == "call_module":
            return [*self.module.get_submodule(str(n.target)).parameters()]
        found = self._attribute(str(n.target)) if n.op == "get_attr" else None
        return [] if found is None else [found]

    def _fix(self, n: fx.Node, reason: str) -> None:
        for value in self._inputs(n):
            self.variables.fix(value.variable, reason)

    def _inputs(self, n: fx.Node) -> list[Value]:
        """Return the tensors that a node reads, also out of tuples."""
        found = ([self.values[s]] if s in self.values else self._tuples.get(s, []) for s in n.all_input_nodes)
        return [value for values in found for value in values]

    def _macs(self, n: fx.Node, flops: Mapping[Any, int]) -> int:
        """Return the multiply-adds of convolutions and linear layers, and name other operators that have some."""
        for operation in flops.keys() - COUNTED:
            self.fixed.append(Fixed(label(self.module, n), f"the multiply-adds of {operation} are not counted"))
        return multiply_adds(flops)

    def _record(self, n: fx.Node, result: torch.Tensor, macs: int) -> None:
        visit = self._visit(n, _shape_of_one(result), macs)
        variable, features = self._rule(n, visit)(visit)
        if n.op == "call_function" and n.target in CONVOLUTIONS:
            visit.reason = "its weight is no convolution layer's own"
        if visit.reason and not visit.fields.get("shared"):
            self.fixed.append(Fixed(f"conv.{visit.path or n.name}", visit.reason))
        storage = self._storages.setdefault(result.untyped_storage()._cdata, len(self.values))
        visit.fields["alias"] = storage if storage < len(self.values) else None
        visit.fields["inputs"] = tuple(value.node for value in visit.values)
        macs, params = self._dues(n)
        visit.fields |= {"macs": visit.fields.get("macs", 0) + macs, "params": visit.fields.get("params", 0) + params}
        self.fields[n] = visit.fields
        self.values[n] = Value(variable, features, len(self.values), visit.shape)
        self._kept.append(result)

    def _owe(self, n: fx.Node, macs: int) -> None:
        """Leave what a node with several tensors costs, and what it owes itself, to the first node that reads it."""
        before = self._dues(n)
        self._owed[n] = before[0] + macs, before[1] + self._new_weights(n)

    def _dues(self, n: fx.Node) -> tuple[int, int]:
        """Return, once, the MACs and parameters of the nodes with several tensors that a node reads."""
        owed = [self._owed.pop(source) for source in n.all_input_nodes if source in self._owed]
        return sum(macs for macs, _ in owed), sum(params for _, params in owed)

    def _visit(self, n: fx.Node, shape: tuple[int, ...], macs: int) -> Visit:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        path = str(n.target) if n.op in ("call_module", "get_attr") else ""
        weights = self._new_weights(n)
        name, values = label(self.module, n), self._inputs(n)
        call = (name, path, n.target, module, n.args, n.kwargs)
        return Visit(self.variables, *call, values, shape, macs, weights)

    def _attribute(self, path: str) -> nn.Parameter | None:
        owner, _, name = path.rpartition(".")
        return self.module.get_submodule(owner)._parameters.get(name)

    def _rule(self, n: fx.Node, visit: Visit) -> Rule:
        if n.op == "placeholder":
            return lambda visit: visit.fresh("the image's channels")
        if n.op == "get_attr":
            return self._attribute_rule(visit)
        if n.op == "call_module":
            return self._module_rule(visit.path, self.module.get_submodule(str(n.target)))
        return FUNCTION_RULES.get(n.target, same if self._untouched else opaque)

    def _module_rule(self, path: str, module: nn.Module) -> Rule:
        """Return the rule of a module; one without state that is the identity here only disturbs in training."""
        kind = acts_as(module)
        reason = self._why_opaque(path, module)
        if kind in MODULE_RULES and not reason:
            return MODULE_RULES[kind]
        if isinstance(module, nn.Conv2d):
            return lambda visit: opaque(visit, reason)
        return same if self._untouched and not [*module.parameters(), *module.buffers()] else opaque

    def _spares_channels(self, n: fx.Node) -> bool:
        """Whether what a node reads of a tensor is not the number of its channels."""
        if n.target is operator.getitem or n.target in ("dim", "ndimension"):
            return True
        if n.target is getattr and n.args[1] != "shape":
            return n.args[1] in ("device", "dtype", "is_cuda", "layout", "ndim", "requires_grad")
        axes = n.args[1:] if n.target == "size" and len(n.args) > 1 else [_axis(user) for user in n.users]
        source = n.all_input_nodes[0]
        is_size = n.target in (getattr, "size") and source in self.values and source.op != "get_attr"
        return is_size and all(_spares(axis, len(self.values[source].shape) + 1) for axis in axes)

    def _attribute_rule(self, visit: Visit) -> Rule:
        weight = self._attribute(visit.path)
        if weight is None:
            return lambda visit: visit.fresh(f"the buffer {visit.path}")
        owner = self.module.get_submodule(visit.path.rpartition(".")[0])
        alone = self._owners[id(weight)] == 1 and acts_as(owner) not in MODULE_RULES
        return bare_parameter if alone else fixed_parameter

    def _why_opaque(self, path: str, module: nn.Module) -> str:
        """Return what but a module's own forward, weight and bias has a say, or "" if nothing has.

        What may be replaced may have no other use than to be called: its stand-in has other attributes.
        """
        own, kind = dict(module.named_parameters()), acts_as(module)
        if "forward" in vars(module):
            return "has a forward of its own"
        if module._forward_hooks or module._forward_pre_hooks:
            return "has hooks"
        if parametrize.is_parametrized(module):
            return "its weight is computed by a parametrization"
        if path in self.uses and (own or kind in NORMS or kind in ACTIVATIONS):
            return self.uses[path]
        shared = any(self._owners[id(p)] > 1 for p in own.values())
        return "has weights that others use too" if shared or path in self._read or own.keys() - OWN else ""


def flop_counts(module: nn.Module, shape: tuple[int, ...]) -> Mapping[str, Mapping[Any, int]]:
    """Return torch's own counts by the class and path of each module, for a batch of a shape, in evaluation.

    A copy runs on the meta device, without weights that ask for a gradient: torch's counter takes no views of those.
    """
    meta = copied(module).to("meta").requires_grad_(False)
    meta.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(*shape, device="meta"))
    flops: dict[str, dict[Any, int]] = counter.get_flop_counts()
    return flops


def multiply_adds(flops: Mapping[Any, int]) -> int:
    """Return the multiply-adds of convolutions, linear and recurrent layers among what torch has counted."""
    return sum(flops[operation] for operation in flops.keys() & COUNTED) // 2


def _holds_tensor(value: Any) -> bool:
    """Whether a tensor is in a tuple, list or table, at whatever depth."""
    return any(isinstance(part, torch.Tensor) for part in pytree.tree_leaves(value))


def label(root: nn.Module, n: fx.Node) -> str:
    """Return what a node is called in a reason: the module's path or the function's name."""
    return str(n.target) if n.op == "call_module" else getattr(n.target, "__name__", str(n.target))


def _shape_of_one(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape without a first axis of one index: the batch, or what is broadcast over it.

    A longer one is no batch of one image: rows of weights, or several samples made of the image.
    """
    shape = tuple(tensor.shape)
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _version(value: Any) -> int:
    """Return how often a tensor was written to."""
    return value._version if isinstance(value, torch.Tensor) else 0


def _axis(n: fx.Node) -> Any:
    """Return which of some sizes a node reads, or None if it reads them all."""
    return n.args[1] if n.target is operator.getitem else None


def _spares(axis: Any, rank: int) -> bool:
    """Whether an index, or a slice, of the sizes of a tensor leaves out that of the channels."""
    if isinstance(axis, slice):
        known = all(bound is None or isinstance(bound, int) for bound in (axis.start, axis.stop, axis.step))
        return known and CHANNELS not in range(rank)[axis]
    return isinstance(axis, int) and axis % rank != CHANNELS
