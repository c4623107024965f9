"""Which residual blocks of a traced network can be dropped, and the stages that they form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from bsconv_nas.space.graph import Block, Fixed
from bsconv_nas.space.trace_rules import ACTIVATIONS, ADDITIONS
from bsconv_nas.space.trace_values import Value, Variables

__all__ = ["droppable_blocks", "element", "module_paths"]


def module_paths(n: fx.Node) -> list[str]:
    """Return the paths of the modules that a node was traced in, outermost first."""
    return [path.partition("@")[0] for path in n.meta.get("nn_module_stack", {})]


def element(module: nn.Module, n: fx.Node) -> str:
    """Return the outermost element of a sequential inside the network that a node was traced in, or ""."""
    paths = module_paths(n)
    parents = [path.rpartition(".")[0] for path in paths]
    around = (p and isinstance(module.get_submodule(p), nn.Sequential) for p in parents)
    return next((path for path, inside in zip(paths, around, strict=True) if inside), "")


def droppable_blocks(
    module: nn.Module, values: dict[fx.Node, Value], variables: Variables, uses: Mapping[str, str]
) -> tuple[list[Block], list[Fixed]]:
    """Return the blocks whose input reaches their final add unchanged, stage by stage, and those that stay for a use.

    Only the outermost such children of each sequential count; a stage is a maximal run of them with one width group.
    """
    blocks: list[Block] = []
    kept: list[Fixed] = []
    for path, parent in module.named_modules():
        if isinstance(parent, nn.Sequential) and not any(f"{path}.".startswith(f"{b.path}.") for b in blocks):
            groups = _groups(module, path, parent, values, variables)
            used = [child for child, group in groups.items() if group is not None and child in uses]
            kept += [Fixed(f"depth.{child}", f"{child} cannot be dropped: {uses[child]}") for child in used]
            runs = _runs({child: None if child in used else group for child, group in groups.items()})
            for run in runs:
                stage = path if len(runs) == 1 and path else run[0]
                blocks += [Block(child, stage, position) for position, child in enumerate(run)]
    return blocks, kept


def _groups(
    root: nn.Module, path: str, parent: nn.Sequential, values: dict[fx.Node, Value], variables: Variables
) -> dict[str, int | None]:
    """Return the width group of each child of a sequential that is a droppable block, and None for the others."""
    children = {f"{path}.{name}" if path else name: child for name, child in parent.named_children()}
    return {name: _residual_group(root, name, child, values, variables) for name, child in children.items()}


def _runs(groups: Mapping[str, int | None]) -> list[list[str]]:
    runs: list[list[str]] = []
    previous = None
    for child_path, group in groups.items():
        if group is not None and group == previous:
            runs[-1].append(child_path)
        elif group is not None:
            runs.append([child_path])
        previous = group
    return runs


def _residual_group(
    root: nn.Module, path: str, child: nn.Module, values: dict[fx.Node, Value], variables: Variables
) -> int | None:
    """Return the width group of a block that can be dropped, or None if it cannot."""
    if isinstance(child, nn.Conv2d) or not any(isinstance(m, nn.Conv2d) for m in child.modules()):
        return None
    nodes = set(next(iter(values)).graph.nodes)
    members = {n for n in nodes if path in module_paths(n)}  # sizes among them
    entries = {source for n in members for source in n.all_input_nodes if source not in members}
    ends = [n for n in members if any(user not in members for user in n.users)]
    if len(entries) != 1 or len(ends) != 1 or _weights(root, members) & _weights(root, nodes - members):
        return None
    (entry,), (end,) = entries, ends
    if entry not in values or end not in values or any(user not in members for user in entry.users):
        return None
    add = _final_add(root, end, members)
    unchanged = add is not None and entry in add.all_input_nodes and values[entry].shape == values[end].shape
    return variables.root(values[end].variable) if unchanged else None


def _weights(root: nn.Module, nodes: set[fx.Node]) -> set[int]:
    """Return the identities of the parameters that some nodes read."""
    paths = [str(n.target).rpartition(".") for n in nodes if n.op == "get_attr"]
    read = [root.get_submodule(owner)._parameters.get(name) for owner, _, name in paths]
    called = [root.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
    return {id(p) for p in (*read, *(p for module in called for p in module.parameters())) if p is not None}


def _final_add(root: nn.Module, end: fx.Node, members: set[fx.Node]) -> fx.Node | None:
    """Return the addition that a block ends with, at most an activation behind it."""
    n = end
    while n.target not in ADDITIONS:
        if not _is_activation(root, n) or n.all_input_nodes[0] not in members:
            return None
        n = n.all_input_nodes[0]
    return n if n.kwargs.get("alpha", 1) == 1 else None  # torch.add may scale what it adds


def _is_activation(root: nn.Module, n: fx.Node) -> bool:
    """Whether a node keeps every value where it is: it has one input and no weights of a layer."""
    if n.op != "call_module":
        return n.target in ACTIVATIONS
    return type(root.get_submodule(str(n.target))) in (*ACTIVATIONS, nn.Identity)
