"""Slow, independent counts of a built network: every tensor of its graph, one operation after the other."""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

CONV_AND_LINEAR = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # classes that derive from them are layers too


class _Flattener(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, LAYERS) or "self.training" in inspect.getsource(type(m).forward)
        return whole or super().is_leaf_module(m, module_qualified_name)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-adds of conv and linear layers at batch 1, as torch counts them."""
    device = next(module.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, *input_size, device=device))
    flops = counter.get_flop_counts()["Global"]
    return sum(flops.get(operation, 0) for operation in CONV_AND_LINEAR) // 2


def peak_memory(module: nn.Module, input_size: tuple[int, ...]) -> int:
    """Largest sum of live storages [bytes] over the operations at batch 1, weights and buffers not counted."""
    module = module.to("meta").eval()
    held = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    runner = fx.Interpreter(fx.GraphModule(module, _Flattener().trace(module)), garbage_collect_values=False)
    with torch.no_grad():
        runner.run(torch.zeros(1, *input_size, device="meta"))
    uses = [
        ({*_storages(runner, n, held)}, {s for i in n.all_input_nodes for s in _storages(runner, i, held)})
        for n in runner.graph.nodes
    ]
    sizes = {s: size for n in runner.graph.nodes for s, size in _storages(runner, n, held).items()}
    last = {s: step for step, (written, read) in enumerate(uses) for s in (*written, *read)}
    peak, live = 0, set[int]()
    for step, (written, read) in enumerate(uses):
        live |= written | read
        peak = max(peak, sum(sizes[s] for s in live))
        live = {s for s in live if last[s] > step}
    return peak


def _storages(runner: fx.Interpreter, n: fx.Node, held: set[int]) -> dict[int, int]:
    tensors: list[Any] = [leaf for leaf in tree_leaves(runner.env.get(n)) if isinstance(leaf, Tensor)]
    storages = [t.untyped_storage() for t in tensors]
    return {s._cdata: s.nbytes() for s in storages if s._cdata not in held}
